// Limits of size, rate and concurrency; what is remembered for how long; dumps; and bodies of any kind.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { join } from 'node:path'
import { test } from 'node:test'
import { freshDatabase, served, waitFor } from '../lib/index.mjs'
import { pgBin } from '../lib/paths.mjs'
import { randomFrom } from '../lib/random.mjs'
import { Writer, as, convention, environment, insert, post, remove, update } from './setup.mjs'

const run = promisify(execFile)
const site = served({
  schema: `${convention}
    create table notes (id int primary key, text text);
    grant select, insert, update, delete on notes to app;
    call shapefeed.allow_writes('notes', '{insert,delete}');`,
  env: environment,
})

test('a caller that sends too many transactions is told when to come again, others are not', async () => {
  const { sidecar } = await site.another({ env: { SHAPEFEED_WRITE_RATE: '1', SHAPEFEED_WRITE_MAX_BYTES: '10000' } })
  const client = new Writer(sidecar.url, as(1))
  const batch = (count) => Array.from({ length: count }, () => [])
  assert.equal((await client.post(batch(8), 1)).status, 200)
  const refused = await new Writer(sidecar.url, as(1)).post(batch(5), 1) // another client of the same user
  assert.equal(refused.status, 429)
  assert.ok(['2', '3'].includes(refused.headers.get('retry-after')), refused.headers.get('retry-after'))
  assert.match(refused.json.message, /Too many transactions/)
  assert.equal((await new Writer(sidecar.url, as(2)).post(batch(8), 1)).status, 200)
  assert.equal((await client.post([[insert('notes', { id: 1, text: 'x'.repeat(10_000) })]], 9)).status, 413)
})

test('more than may be answered at the same time are put off', async () => {
  const { sidecar } = await site.another({ env: { SHAPEFEED_MAX_CONCURRENT_WRITES: '1', SHAPEFEED_WRITE_POOL_SIZE: '1' } })
  const holder = await site.database.connect()
  await holder.query('begin; lock table notes')
  const held = new Writer(sidecar.url, as(1)).apply(insert('notes', { id: 20 }))
  const refused = await waitFor(async () => {
    const answer = await new Writer(sidecar.url, as(1)).post([[]], 1)
    return answer.status === 503 && answer
  })
  assert.match(refused.json.message, /Concurrent write request limit exceeded/)
  assert.ok(Number(refused.headers.get('retry-after')) >= 6)
  await holder.query('commit')
  await holder.end()
  await held
})

test('what was applied is forgotten with the log, what was rejected with the client', async () => {
  const early = new Writer(site.sidecar.url, as(1))
  const { txid } = await early.apply(insert('notes', { id: 31 }))
  await site.sql('select shapefeed._prune_writes()')
  assert.equal((await early.post([[]], 1)).json.results[0].txid, txid, 'not before its time')
  await site.sql("alter system set shapefeed.retention = '10s'; select pg_reload_conf()")
  const client = new Writer(site.sidecar.url, as(1))
  await client.apply(insert('notes', { id: 30, text: 'a' }))
  const rejected = await client.refuse('23505', insert('notes', { id: 30, text: 'b' }))
  await client.apply(remove('notes', { id: 30 }))
  const kept = async () => Number(await site.sql(`select count(*) from shapefeed.write_result where client = '${client.id}'`))
  await waitFor(async () => (await kept()) === 1, { timeoutMs: 30_000 })
  const { json } = await client.post([[insert('notes', { id: 30 })], [], []], 1)
  const [first, second, third] = json.results
  assert.deepEqual([first.status, first.txid, second, third.status], ['applied', undefined, rejected, 'applied'])
  assert.match(first.lsn, /^\d+$/)
  assert.equal(await site.sql('select count(*) from notes where id = 30'), '0')
  await site.sql("alter system set shapefeed.write_client_retention = '10s'; select pg_reload_conf()")
  await waitFor(async () => (await site.sql(`select count(*) from shapefeed.write_client where id = '${client.id}'`)) === '0', { timeoutMs: 30_000 })
  assert.equal(await kept(), 0)
  const { status, json: gap } = await client.post([[insert('notes', { id: 30 })]], 4)
  assert.deepEqual([status, gap.last_seq], [409, 0])
  await site.sql('alter system reset shapefeed.retention; alter system reset shapefeed.write_client_retention; select pg_reload_conf()')
})

test('a position of a transaction that has left the log is one that clients have', async () => {
  const client = new Writer(site.sidecar.url, as(1))
  const { lsn } = await client.apply(insert('notes', { id: 40 }))
  await site.sql(`truncate ${Array.from({ length: 8 }, (_, i) => `shapefeed.commit_${i}`).join(', ')}`)
  const { json } = await client.post([[]], 1)
  assert.ok(BigInt(json.results[0].lsn) >= BigInt(lsn), json.results[0].lsn)
})

test('which tables are open goes along with a dump; records of clients do not', async () => {
  const other = await freshDatabase(site.cluster, { extension: false })
  const { stdout } = await run(join(pgBin, 'pg_dump'), [site.database.url], { maxBuffer: 1 << 26 })
  await other.psql(stdout)
  assert.equal(await other.psql('select "table", operations from shapefeed.writable_tables'), 'notes|{delete,insert}')
  assert.equal(await other.psql('select count(*) from shapefeed.write_client'), '0')
  await other.drop()
})

test('only its owner opens a table, and only a table', async () => {
  const denied = (text, pattern) => assert.rejects(site.sql(text), pattern)
  await denied("set role app; call shapefeed.allow_writes('notes')", /must be owner of table public.notes/)
  await denied("set role app; call shapefeed.disallow_writes('notes')", /must be owner of table public.notes/)
  await denied("call shapefeed.allow_writes('pg_class')", /cannot be opened for writing/)
  await denied("call shapefeed.allow_writes('shapefeed.shape')", /cannot be opened for writing/)
  await denied("call shapefeed.allow_writes('shapefeed.status')", /cannot be opened for writing/)
  await denied("call shapefeed.allow_writes(null)", /the table is null/)
  for (const operations of ["'{}'", "'{truncate}'", 'null']) await denied(`call shapefeed.allow_writes('notes', ${operations})`, /operations are some of/)
  for (const text of ['select * from shapefeed.write_client', 'delete from shapefeed.write_result', 'update shapefeed.writable set operations = null',
    "select shapefeed._write(gen_random_uuid(), 1, '[]')", "select shapefeed._reject(gen_random_uuid(), 1, '{}')", "select shapefeed._positions('{}')"]) {
    await denied(`set role app; ${text}`, /permission denied/)
  }
  await denied("select shapefeed._write(gen_random_uuid(), 1, '[{}]')", /invalid operations/)
  await denied("select shapefeed._write(gen_random_uuid(), 1, '[]', 'nobody')", /role "nobody" does not exist/)
})

test('a sidecar that may not act as the role is at fault, not the transaction', async () => {
  await site.sql("create role stranger login; select shapefeed.grant_sidecar('stranger')")
  const { sidecar } = await site.another({ databaseUrl: site.database.urlAs('stranger') })
  const client = new Writer(sidecar.url, as(1))
  assert.equal((await client.post([[insert('notes', { id: 60 })]], 1)).status, 500)
  assert.equal(await site.sql(`select count(*) from shapefeed.write_client where id = '${client.id}'`), '0')
  await site.sql('grant app to stranger')
  await client.apply(insert('notes', { id: 60 }))
})

test('whatever a body is, there is an answer, and it is no 5xx', async () => {
  const random = randomFrom(Number(process.env.SHAPEFEED_TEST_SEED ?? 20_261_127))
  const strange = [null, true, -1, 1.5, 1e300, '', 'x', '\u0001', '\ud83d', 'ü'.repeat(300), [], {}, [[]], { a: { b: [1] } }, '9'.repeat(400), 'notes', 'insert', 2 ** 53]
  const change = (value) => {
    if (random.below(4) === 0) return random.pick(strange)
    if (Array.isArray(value)) return value.map((it) => (random.below(3) ? it : change(it)))
    if (value && typeof value === 'object') return Object.fromEntries(Object.entries(value).map(([name, it]) => [random.below(12) ? name : random.pick(['', 'x', name.toUpperCase(), '__proto__']), random.below(3) ? it : change(it)]))
    return random.pick(strange)
  }
  const statuses = {}
  for (let i = 0; i < 400; i++) {
    const { id } = new Writer()
    const whole = { client_id: id, transactions: [{ seq: 1, operations: [insert('notes', { id: 1000 + i, text: 'a' }), update('notes', { id: 1000 + i }, { text: 'b' }, { text: 'a' }), remove('notes', { id: 1000 + i })] }] }
    let body = JSON.stringify(change(whole))
    if (random.below(5) === 0) body = body.slice(0, random.below(body.length))
    const { status, text } = await post(site.sidecar.url, body, as(i % 7))
    assert.ok(status < 500, `${status} ${text} for ${body}`)
    statuses[status] = (statuses[status] ?? 0) + 1
  }
  assert.ok(statuses[200] > 20 && statuses[400] > 20, JSON.stringify(statuses))
  assert.doesNotMatch(site.sidecar.log(), /panicked|ERROR/)
})
