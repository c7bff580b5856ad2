// A sidecar on a streaming standby: the same shapes at the same handles and offsets; positions to come are "not yet".
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { freshDatabase, startCluster, startSidecar, startStandby, waitFor } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'

let primary, standby, database, near, far

before(async () => {
  primary = await startCluster({ conf: ['wal_level=replica', 'max_wal_senders=4'] })
  database = await freshDatabase(primary)
  await database.psql(`create table items (id int primary key, v text);
    insert into items select i, 'v' || i from generate_series(1, 200) i;
    call shapefeed.track('items');`)
  standby = await startStandby(primary)
  near = await startSidecar({ databaseUrl: database.url })
  far = await startSidecar({ databaseUrl: standby.urlOf(database.name), env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '2000' } })
})

after(async () => {
  await near?.stop()
  await far?.stop()
  await standby?.stop()
  await primary?.stop()
})

const get = (sidecar, query) => fetch(`${sidecar.url}/v1/shape?table=items&${query}`)

test('a client of the standby follows the primary', async () => {
  const follower = follow(far.url, { table: 'items', where: "v like '%1%'" })
  const client = await database.connect()
  const query = "select * from items where v like '%1%'"
  try {
    await untilSame(follower, client, query)
    for (let i = 0; i < 50; i++) await client.query("update items set v = 'new' || $1 where id = $1", [i + 1])
    await client.query("insert into items values (1000, 'x1')")
    await client.query('delete from items where id = 100')
    const started = Date.now()
    await client.query("insert into items values (1001, 'y1')")
    await waitFor(() => follower.rows().some((row) => row.includes('1001')), { intervalMs: 1, what: 'the row arrives' })
    const lagMs = Date.now() - started
    assert.ok(lagMs < 500, `lag ${lagMs} ms`)
    assert.ok((await untilSame(follower, client, query)) > 0)
  } finally {
    follower.stop()
    await client.end()
  }
})

test('handle and offset mean the same on both, and give the same operations', async () => {
  const first = await get(near, 'offset=-1')
  const handle = first.headers.get('electric-handle')
  await first.text()
  const rows = async (sidecar) => (await (await get(sidecar, `offset=-1&handle=${handle}`)).json()).map((message) => JSON.stringify(message)).sort()
  assert.deepEqual(await rows(far), await rows(near))
  // One transaction with many operations: their order and places are the log's, not of the server or process that reads it.
  await database.psql(`begin; update items set v = 'again' where id < 30; update items set id = id + 5000 where id between 30 and 39;
    delete from items where id between 40 and 49; insert into items select i, 'new' from generate_series(6000, 6019) i; commit;`)
  const chunk = async (sidecar, offset) => {
    const answer = await get(sidecar, `offset=${offset}&handle=${handle}`)
    assert.equal(answer.status, 200)
    return { text: await answer.text(), offset: answer.headers.get('electric-offset') }
  }
  const log = await waitFor(async () => {
    const found = await chunk(near, '0_0')
    return found.text.includes('"6019"') && found
  })
  await waitFor(async () => (await chunk(far, '0_0')).text.includes('"6019"'), { what: 'the standby has it' })
  const operations = ({ text }) => JSON.parse(text).filter((message) => message.key)
  assert.equal(operations(log).filter(({ headers }) => headers.lsn === operations(log).at(-1).headers.lsn).length, 79)
  const elsewhere = await chunk(far, '0_0')
  assert.equal(elsewhere.offset, log.offset)
  assert.deepEqual(operations(elsewhere), operations(log))
})

test('a position that the standby has not replayed is not yet there: 503, never 409', async () => {
  const first = await get(near, 'offset=-1')
  const handle = first.headers.get('electric-handle')
  await first.text()
  const replaying = await standby.connect()
  await replaying.query('select pg_wal_replay_pause()')
  try {
    const client = await database.connect()
    const { rows: [{ head: before }] } = await client.query('select head from shapefeed._head()')
    await client.query("update items set v = 'ahead' where id = 8")
    const { rows: [{ head }] } = await waitFor(async () => {
      const answer = await client.query('select head from shapefeed._head()')
      return answer.rows[0].head !== before && answer
    })
    await client.end()
    const ahead = await get(far, `offset=${head}_0&handle=${handle}`)
    assert.equal(ahead.status, 503)
    assert.ok(Number(ahead.headers.get('retry-after')) >= 1)
    assert.equal(ahead.headers.get('access-control-allow-origin'), '*')
    await replaying.query('select pg_wal_replay_resume()')
    await waitFor(async () => (await get(far, `offset=${head}_0&handle=${handle}`)).status === 200)
  } finally {
    await replaying.query('select pg_wal_replay_resume()')
  }
})

test('a position that the standby shows before the primary has ended its commit is not yet there: 503, never 409', async () => {
  const first = await get(near, 'offset=-1')
  const handle = first.headers.get('electric-handle')
  await first.text()
  const [writer, reader] = [await database.connect(), await standby.connect({ database: database.name })]
  const head = async (session) => (await session.query('select head from shapefeed._head()')).rows[0].head
  const before = await head(writer)
  // A commit that waits for a standby that is not there: written and replayed, but not seen by others here.
  await primary.psql(`alter system set synchronous_standby_names = '2 (*, nobody)'`)
  await primary.psql('select pg_reload_conf()')
  try {
    await writer.query(`set synchronous_commit = local; update items set v = 'early' where id = 9`)
    const early = await waitFor(async () => {
      const now = await head(reader)
      return now !== before && now
    }, { what: 'the standby shows the position' })
    assert.equal(await head(writer), before, 'the primary does not')
    const ahead = await get(near, `offset=${early}_0&handle=${handle}`)
    assert.equal(ahead.status, 503, await ahead.text())
  } finally {
    await primary.psql('alter system reset synchronous_standby_names')
    await primary.psql('select pg_reload_conf()')
  }
  const now = await head(reader)
  await waitFor(async () => (await get(near, `offset=${now}_0&handle=${handle}`)).status === 200)
  for (const session of [writer, reader]) await session.end()
})

test('what a standby cannot do is refused clearly', async () => {
  await database.psql('create table untracked (id int primary key);')
  await waitFor(async () => (await standby.psql("select to_regclass('untracked')", { database: database.name })) === 'untracked')
  const answer = await fetch(`${far.url}/v1/shape?table=untracked&offset=-1`)
  assert.equal(answer.status, 503)
  await assert.rejects(standby.psql('call shapefeed.sequence();', { database: database.name }), /recovery/)
  await assert.rejects(standby.psql("call shapefeed.rotate('items');", { database: database.name }), /recovery/)
  await standby.psql('call shapefeed.wait(9007199254740991, 50);', { database: database.name })
})
