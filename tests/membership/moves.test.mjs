// Memberships that move many rows: those that the feed leaves to the log, and those that are too many for a shape.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'
import { startProxy } from '../lib/proxy.mjs'
import { followed, same } from './setup.mjs'

const MANY = 10_000
const MOST = 20_000

const site = served({
  schema: `create table rooms (id int primary key, open bool not null);
    create table seats (id int primary key, room int not null, taken int not null default 0);
    create index on seats (room);
    insert into rooms select i, false from generate_series(1, 4) i;
    insert into seats select i, 1 from generate_series(1, ${MANY}) i;
    insert into seats select ${MANY} + i, 2 from generate_series(1, ${MOST} + 1) i;
    insert into seats select 100000 + i, 3 from generate_series(1, 10) i;
    call shapefeed.track('rooms'); call shapefeed.track('seats')`,
  conf: [`shapefeed.max_moved_rows=${MOST}`],
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '5000' },
})

const seats = { table: 'seats', where: 'room in (select id from rooms where open)' }
const few = { table: 'seats', where: 'room in (select id from rooms where open and id = 3)' }
const query = `select id::text, room::text, taken::text from seats where ${seats.where}`

test('ten thousand rows that a flip moves come whole and in order, by the log, and others are told meanwhile', async () => {
  const followers = [await followed(site, seats), await followed(site, few)]
  const proxy = await startProxy(site.sidecar.url)
  const client = follow(proxy.url, seats)
  await untilSame(client, site.client, query)
  for (const follower of followers) await follower.live().catch(() => {})
  const skipped = () => site.sidecar.metric('shapefeed_skipped_moves_total')
  const before = await skipped()
  await site.sql(`begin; update seats set taken = 1 where id <= 3; update rooms set open = true where id in (1, 3);
    update seats set room = 3 where id = 5; commit`)
  for (const follower of followers) await follower.until(({ rows }) => rows.size >= 11)
  await followers[0].until(({ rows }) => rows.size === MANY + 10)
  for (const [i, shape] of [seats, few].entries()) await same(site, followers[i], shape)
  assert.equal(await skipped() - before, 1)
  const [touched, ...moved] = followers[0].seen.slice(-MANY - 10 + 3)
  assert.ok(touched.headers.op_position < moved[0].headers.op_position)
  assert.equal(new Set(followers[0].seen.map(({ headers }) => headers.lsn)).size, 1)
  await untilSame(client, site.client, query)
  // What comes after it is told by the feed again.
  await site.sql('update seats set taken = 1 where id = 100')
  await followers[0].until(({ seen }) => seen.at(-1).headers.operation === 'update')
  assert.equal(await skipped() - before, 1)
  await site.sql('update rooms set open = false where id = 1')
  await followers[0].until(({ rows }) => rows.size === 11)
  await same(site, followers[0], seats)
  await untilSame(client, site.client, query)
  client.stop()
  assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 1 })
  await proxy.stop()
})

test('a shape of which one transaction moves more rows than may be is begun anew, once, with its reason counted', async () => {
  const follower = await followed(site, seats)
  const proxy = await startProxy(site.sidecar.url)
  const client = follow(proxy.url, seats)
  await untilSame(client, site.client, query)
  await follower.sync()
  const { params, handle, offset } = follower
  await site.sql('update rooms set open = true where id = 2')
  await untilSame(client, site.client, query)
  client.stop()
  assert.deepEqual(proxy.refetches(), { conflicts: 1, initial: 2 })
  await proxy.stop()
  const answer = await site.api.get({ ...params, handle, offset })
  assert.equal(answer.status, 409)
  assert.notEqual(answer.handle, handle)
  assert.ok(await site.sidecar.metric('shapefeed_refetches_total{reason="amplification"}') >= 1)
  const again = await followed(site, seats)
  await same(site, again, seats)
})
