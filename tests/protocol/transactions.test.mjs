// What a client learns of transactions: those that the shape shows nothing of, and being woken by them.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isUpToDate, ok, openEvents, served, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `create table items (id int primary key, v text); insert into items select i, 'v' from generate_series(1, 100) i;
    create table others (id int primary key); create table "Odd, name" (id int)`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '1500' },
})

const params = { table: 'items', where: 'id <= 10' }

/** Runs a statement and returns its transaction's id, as clients know it. */
async function xid(statement) {
  const { rows } = await site.client.query(`with s as (${statement} returning 1) select (pg_current_xact_id()::xid)::text as xid, (select count(*) from s)`)
  return Number(rows[0].xid)
}

const unseen = (v) => xid(`update items set v = '${v}' where id = 50`)
const seen = (v) => xid(`update items set v = '${v}' where id = 5`)
/** Where a client is that has everything. */
const atTheEnd = async () => ok(await site.api.get({ ...params, offset: 'now' }))
const txids = (answer) => answer.controls.at(-1).headers.txids

/** Requests from one place until the log has come so far that the answer satisfies the condition. */
const until = (from, condition) => waitFor(async () => {
  const answer = ok(await site.api.get({ ...params, handle: from.handle, offset: from.offset }))
  return condition(answer) && answer
})

test('up-to-date names transactions that touched the table and are no operation of the shape', async () => {
  const from = await site.api.follow(params)
  const silent = [await unseen('a'), await xid('delete from items where id = 99')]
  const loud = await seen('a')
  await xid('insert into others values (1)')
  const answer = await until(from, ({ operations }) => operations.length === 1)
  assert.deepEqual(answer.operations[0].headers.txids, [loud])
  assert.deepEqual(txids(answer), silent)
  const at = { handle: answer.handle, offset: answer.offset }
  assert.equal(txids(ok(await site.api.get({ ...params, ...at }))), undefined)
  const next = await unseen('b')
  await until(at, (one) => JSON.stringify(txids(one)) === JSON.stringify([next]))
  for (let i = 0; i < 120; i++) await unseen(`c${i}`)
  const last = await unseen('d')
  const many = await until(at, (one) => txids(one)?.at(-1) === last)
  assert.equal(txids(many).length, 100, 'the newest')
})

test('so do live answers, with operations and without', async () => {
  const from = await atTheEnd()
  const ask = (extra) => site.api.get({ ...params, handle: from.handle, offset: from.offset, live: 'true', ...extra })
  const held = ask()
  await waitFor(async () => (await site.sidecar.metric('shapefeed_live_requests')) === 1)
  await site.api.get({ ...params, handle: from.handle, offset: from.offset }) // the shape is attached by now, or soon
  const silent = await unseen('e')
  const idle = ok(await held)
  assert.ok(idle.ms > 1000, `${idle.ms} ms: it is not woken by what it does not ask for`)
  assert.deepEqual([idle.operations.length, txids(idle)], [0, [silent]])
  const second = ask()
  await new Promise((resolve) => setTimeout(resolve, 100))
  const another = await unseen('f')
  const loud = await seen('f')
  const news = ok(await second)
  assert.deepEqual([news.operations.map((one) => one.headers.txids), txids(news)], [[[loud]], [silent, another]])
})

test('wake=1 has a live request answered when the table is touched', async () => {
  const from = await atTheEnd()
  const ask = (wake) => site.api.get({ ...params, handle: from.handle, offset: from.offset, live: 'true', wake })
  const [woken, asleep] = [ask('1'), ask('false')]
  await waitFor(async () => (await site.sidecar.metric('shapefeed_wakeful_requests')) === 1)
  const began = performance.now()
  const silent = await unseen('g')
  const answer = ok(await woken)
  assert.ok(performance.now() - began < 800, 'it is answered soon')
  assert.deepEqual([txids(answer), answer.upToDate, answer.hasData], [[silent], true, 'false'])
  // It goes on behind that: the same transaction does not wake it again.
  const next = ok(await site.api.get({ ...params, handle: answer.handle, offset: answer.offset, live: 'true', wake: '1' }))
  assert.ok(next.ms > 1000 && txids(next) === undefined)
  assert.ok(ok(await asleep).ms > 1000)
})

test('wake with tables: a live request is answered when one of them is touched, whoever follows it', async () => {
  const { api, sidecar } = await site.another({ env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '4000' } })
  const from = await atTheEnd()
  const ask = async (at, wake) => ok(await api.get({ ...params, handle: at.handle, offset: at.offset, live: 'true', wake }))
  const held = () => waitFor(async () => (await sidecar.metric('shapefeed_wakeful_requests')) === 1)
  const touches = ['insert into others select coalesce(max(id), 0) + 1 from others', 'insert into "Odd, name" values (1)']
  const tables = 'public."Odd, name" , others'
  // The first may be answered at once: what was before it was there is not known.
  let at = await ask(from, 'others,"Odd, name"')
  for (const touch of touches) {
    const woken = ask(at, tables)
    await held()
    await site.sql(touch)
    const { rows: [{ head }] } = await site.client.query('select head::text from shapefeed._head()')
    at = await woken
    assert.ok(at.ms < 3500, 'it is answered soon')
    assert.deepEqual([at.upToDate, at.operations.length, txids(at)], [true, 0, undefined])
    assert.ok(BigInt(at.controls.at(-1).headers.global_last_seen_lsn) >= BigInt(head), 'as far as the other table')
  }
  assert.ok((await ask(at, tables)).ms > 3500, 'what woke it does not wake it again')
  const asleep = ask(at, 'true')
  await held()
  await site.sql(touches[0])
  assert.ok((await asleep).ms > 3500, 'nor what is not named')
})

test('wake names tables that there are', async () => {
  const from = await atTheEnd()
  const refused = async (wake) => {
    const answer = await site.api.get({ ...params, handle: from.handle, offset: from.offset, live: 'true', wake })
    assert.equal(answer.status, 400)
    return answer.json.errors
  }
  assert.deepEqual(await refused('others,nowhere'), { wake: ['Table "public"."nowhere" does not exist. If the table name contains capitals or special characters you must quote it.'] })
  assert.deepEqual(await refused('a b'), { wake: ['Invalid unquoted identifier contains special characters: a b'] })
  assert.deepEqual(await refused(Array.from({ length: 101 }, (_, i) => `t${i}`).join()), { wake: ['names more than 100 tables'] })
})

test('with a subquery, its tables count as well', async () => {
  const shape = { table: 'items', where: 'id in (select id from others where id > 1000)' }
  const from = ok(await site.api.get({ ...shape, offset: 'now' }))
  const ask = (at, extra) => site.api.get({ ...shape, handle: at.handle, offset: at.offset, live: 'true', ...extra })
  const first = ok(await ask(from, { wake: '1' }))
  const woken = ask(first, { wake: '1' })
  await waitFor(async () => (await site.sidecar.metric('shapefeed_wakeful_requests')) === 1)
  const touched = await xid('insert into others values (999)')
  const answer = ok(await woken)
  assert.ok(answer.ms < 1400)
  assert.deepEqual(txids(answer), [touched])
})

test('a stream that names a table hears of it', async () => {
  const { sidecar } = await site.another({ env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '30000' } })
  const from = await atTheEnd()
  const query = new URLSearchParams({ ...params, handle: from.handle, offset: from.offset, live: 'true', live_sse: 'true', wake: 'others' })
  const stream = await openEvents(sidecar.url, query)
  const far = (head) => (messages) => messages.some(({ headers }) => BigInt(headers.global_last_seen_lsn ?? 0) >= BigInt(head))
  for (let i = 0; i < 3; i++) {
    await site.sql('insert into others select coalesce(max(id), 0) + 1 from others')
    const { rows: [{ head }] } = await site.client.query('select head::text from shapefeed._head()')
    await stream.until(far(head))
  }
  stream.close()
})

test('a stream with wake=1 tells of each', async () => {
  const from = await atTheEnd()
  const query = new URLSearchParams({ ...params, handle: from.handle, offset: from.offset, live: 'true', live_sse: 'true', wake: '1' })
  const stream = await openEvents(site.sidecar.url, query)
  const first = await unseen('h')
  await stream.until((messages) => messages.at(-1)?.headers.txids?.at(-1) === first)
  const second = await unseen('i')
  await stream.until((messages) => messages.at(-1)?.headers.txids?.at(-1) === second)
  assert.ok(stream.messages.every(isUpToDate))
  stream.close()
})
