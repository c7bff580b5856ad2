// POST /v1/write line by line: docs/writing.md.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Follower, served } from '../lib/index.mjs'
import { withHeaders } from '../rls/setup.mjs'
import { Writer, as, convention, environment, insert, post, remove, update } from './setup.mjs'

const site = served({
  schema: `${convention}
    create table notes (id int primary key, owner int not null default auth.uid(), text text, done bool not null default false);
    create table closed (id int primary key);
    create table inserts (id int primary key, v text);
    create table logs (id int, region text, n int, primary key (region, id)) partition by list (region);
    create table logs_a partition of logs for values in ('a');
    alter table notes enable row level security;
    create policy own on notes using (owner = auth.uid());
    grant select, insert, update, delete on notes, closed, inserts, logs, logs_a to app;
    call shapefeed.track('notes'); call shapefeed.track('logs');
    call shapefeed.allow_writes('notes');
    call shapefeed.allow_writes('logs_a');
    call shapefeed.allow_writes('inserts', '{insert}');`,
  env: environment,
})
const writer = (sub = 1, options) => new Writer(site.sidecar.url, as(sub), options)
const rows = async (where = 'true') => (await site.client.query(`select id, owner, text, done from notes where ${where} order by id`)).rows
const texts = async (where) => (await rows(where)).map(({ text }) => text)

test('operations of a transaction are applied together, with an id and a position as changes have them', async () => {
  const follower = new Follower(withHeaders(site.api, as(1)), { table: 'notes' })
  await follower.sync()
  const client = writer()
  const { txid, lsn, ...result } = await client.apply(insert('notes', { id: 1, text: 'a' }), insert('public.notes', { id: '2', text: null }))
  assert.deepEqual(result, { seq: 1, status: 'applied' })
  assert.deepEqual(await rows(), [{ id: 1, owner: 1, text: 'a', done: false }, { id: 2, owner: 1, text: null, done: false }])
  await follower.sync()
  const changes = follower.seen.filter(({ headers }) => headers.operation === 'insert').slice(-2)
  assert.equal(changes.length, 2)
  for (const { headers } of changes) assert.deepEqual([headers.txids.map(String), headers.lsn], [[txid], lsn])
  await client.apply(update('"notes"', { id: 1 }, { done: true, text: null }), remove('notes', { id: 2 }))
  assert.deepEqual(await rows(), [{ id: 1, owner: 1, text: null, done: true }])
  await client.apply(remove('notes', { id: 1 }))
})

test('transactions of a batch are done in order, each by itself, and a rejection does not stop them', async () => {
  const client = writer()
  const results = await client.send(
    [insert('notes', { id: 10, text: 'first' })],
    [insert('notes', { id: 11, text: 'gone' }), insert('notes', { id: 10, text: 'again' })],
    [update('notes', { id: 10 }, { text: 'second' })],
  )
  assert.deepEqual(results.map(({ seq, status }) => [seq, status]), [[1, 'applied'], [2, 'rejected'], [3, 'applied']])
  const { message, ...rejected } = results[1]
  assert.deepEqual(rejected, { seq: 2, status: 'rejected', sqlstate: '23505', constraint: 'notes_pkey', operation: 1 })
  assert.match(message, /duplicate key value violates unique constraint "notes_pkey"/)
  assert.ok(BigInt(results[0].lsn) < BigInt(results[2].lsn))
  const [gone, open] = [update('notes', { id: 13 }, { text: 'x' }), insert('closed', { id: 1 })]
  for (const [sqlstate, refused] of [['P0002', gone], ['42501', open]]) await client.refuse(sqlstate, insert('notes', { id: 12, text: 'gone' }), refused)
  assert.deepEqual(await texts('id in (10, 11, 12)'), ['second'])
})

test('what is done is answered again, and not done again', async () => {
  const client = writer()
  const results = await client.send([insert('notes', { id: 20, text: 'once' })], [insert('notes', { id: 20, text: 'twice' })])
  assert.deepEqual(results.map(({ status }) => status), ['applied', 'rejected'])
  await site.sql('delete from notes where id = 20')
  const again = await client.post([[insert('notes', { id: 20, text: 'once' })], [insert('notes', { id: 20, text: 'twice' })]], 1)
  assert.deepEqual(again.json, { results, last_seq: 2 })
  assert.deepEqual(await rows('id = 20'), [])
  const { json } = await client.post([[insert('notes', { id: 20, text: 'twice' })], [insert('notes', { id: 20, text: 'new' })]], 2)
  assert.deepEqual(json.results.map(({ status }) => status), ['rejected', 'applied'])
  assert.deepEqual(await texts('id = 20'), ['new'])
})

test('a number too high is refused with the last one, and nothing is done', async () => {
  const client = writer()
  for (const [first, last] of [[2, 0], [1000, 0]]) {
    const { status, json } = await client.post([[insert('notes', { id: 30, text: 'x' })]], first)
    assert.deepEqual([status, json.last_seq], [409, last])
    assert.match(json.message, /Transactions are missing/)
  }
  await client.apply(insert('notes', { id: 30, text: 'x' }))
  const { status, json } = await client.post([[remove('notes', { id: 30 })]], 3)
  assert.deepEqual([status, json.last_seq], [409, 1])
  assert.deepEqual(await texts('id = 30'), ['x'])
})

test("a client's id belongs to who first used it", async () => {
  const client = writer(1)
  await client.apply(insert('notes', { id: 40, text: 'mine' }))
  for (const headers of [as(2), as(undefined), as(1, { role: 'app_admin' })]) {
    const { status, json } = await new Writer(site.sidecar.url, headers, client).post([[remove('notes', { id: 40 })]], 2)
    assert.equal(status, 403)
    assert.match(json.message, /client_id belongs to another caller/)
  }
  await client.apply(update('notes', { id: 40 }, { text: 'still mine' }))
  assert.deepEqual(await texts('id = 40'), ['still mine'])
})

test('callers are known as for shapes', async () => {
  const body = { client_id: writer().id, transactions: [{ seq: 1, operations: [] }] }
  assert.equal((await post(site.sidecar.url, body, { authorization: 'Bearer x' })).status, 401)
  assert.equal((await post(site.sidecar.url, body, as(1, { role: 'postgres' }))).status, 403)
  const { sidecar } = await site.another({ env: { SHAPEFEED_ANONYMOUS_ROLE: '', SHAPEFEED_INSECURE: 'false', SHAPEFEED_SECRET: 's' } })
  assert.equal((await post(sidecar.url, body, as(1))).status, 401)
  const answer = await fetch(`${sidecar.url}/v1/write?secret=s`,
    { method: 'POST', headers: { 'content-type': 'application/json', ...as(1) }, body: JSON.stringify(body) })
  assert.equal(answer.status, 200)
})

test('only what was opened can be written, and only so', async () => {
  const client = writer()
  const closed = await client.refuse('42501', insert('closed', { id: 1 }))
  assert.match(closed.message, /table public\.closed is not open for inserts by clients/)
  assert.match(closed.hint, /allow_writes/)
  await client.apply(insert('inserts', { id: 1 }))
  await client.refuse('42501', update('inserts', { id: 1 }, { id: 2 }))
  await client.refuse('42501', remove('inserts', { id: 1 }))
  await client.refuse('42P01', insert('nowhere', { id: 1 }))
  await client.refuse('42501', insert('shapefeed.write_client', { id: client.id }))
  await client.refuse('42501', insert('pg_catalog.pg_class', { oid: 1 }))
  await site.sql("call shapefeed.allow_writes('closed')")
  await client.apply(insert('closed', { id: 1 }))
  await site.sql("call shapefeed.disallow_writes('closed')")
  await client.refuse('42501', insert('closed', { id: 2 }))
})

test('an update of a row that is gone, or not to be seen, is rejected; a delete of it does nothing', async () => {
  const client = writer(1)
  await writer(2).apply(insert('notes', { id: 50, text: 'of two' }))
  for (const id of [50, 51]) {
    const { message, hint } = await client.refuse('P0002', update('notes', { id }, { text: 'x' }))
    assert.match(`${message} ${hint}`, /there is no such row in table public\.notes It is gone, or not visible/)
    await client.refuse('P0002', update('notes', { id }, {}))
    await client.apply(remove('notes', { id }))
  }
  assert.deepEqual(await texts('id = 50'), ['of two'])
})

test('policies for writing are kept', async () => {
  const client = writer(1)
  await client.refuse('42501', insert('notes', { id: 60, owner: 2 }))
  await client.apply(insert('notes', { id: 60, text: 'a' }))
  await client.refuse('42501', update('notes', { id: 60 }, { owner: 2 }))
  await site.sql('create policy done_stays on notes as restrictive for update using (not done) with check (true); create policy keep on notes as restrictive for delete using (not done)')
  await client.apply(update('notes', { id: 60 }, { done: true }))
  const refused = await client.refuse('42501', update('notes', { id: 60 }, { text: 'b' }))
  assert.match(refused.message, /a policy forbids this to the row/)
  await client.refuse('42501', remove('notes', { id: 60 }))
  await site.sql('drop policy done_stays on notes; drop policy keep on notes')
  await site.sql('revoke update on notes from app')
  await client.refuse('42501', update('notes', { id: 60 }, { text: 'b' }))
  await site.sql('grant update (text) on notes to app')
  await client.apply(update('notes', { id: 60 }, { text: 'b' }))
  await client.refuse('42501', update('notes', { id: 60 }, { done: false }))
  await site.sql('grant update on notes to app')
})

test('columns that are not named keep what others have written', async () => {
  const [a, b] = [writer(1), writer(1)]
  await a.apply(insert('notes', { id: 70, text: 'a' }))
  await a.apply(update('notes', { id: 70 }, { text: 'from a' }))
  await b.apply(update('notes', { id: 70 }, { done: true }))
  assert.deepEqual(await rows('id = 70'), [{ id: 70, owner: 1, text: 'from a', done: true }])
  await a.apply(update('notes', { id: 70 }, { text: 'last' }))
  assert.deepEqual(await texts('id = 70'), ['last'])
  await a.apply(update('notes', { id: 70 }, { id: 71 }))
  assert.deepEqual(await texts('id in (70, 71)'), ['last'])
})

test('with base, a row that has changed is left alone', async () => {
  const client = writer()
  await client.apply(insert('notes', { id: 80, text: null }))
  const changed = await client.refuse('SF412', update('notes', { id: 80 }, { text: 'x' }, { text: 'old' }))
  assert.match(changed.message, /the row has changed/)
  await client.refuse('SF412', remove('notes', { id: 80 }, { done: true }))
  await client.apply(remove('notes', { id: 81 }, { done: true }))
  await client.apply(update('notes', { id: 80 }, { text: 'x' }, { text: null, done: false }))
  await client.refuse('SF412', update('notes', { id: 80 }, {}, { text: null }))
  await client.apply(remove('notes', { id: 80 }, { text: 'x' }))
})

test('a row that is there already, with all that is said of it, is inserted as far as it can be', async () => {
  const [a, b] = [writer(1), writer(2)]
  await a.apply(insert('notes', { id: 90, text: 'a' }))
  await writer(1).apply(insert('notes', { id: 90, text: 'a' }))
  await writer(1).apply(insert('notes', { id: 90 }))
  await writer(1).refuse('23505', insert('notes', { id: 90, text: 'b' }))
  await b.refuse('23505', insert('notes', { id: 90, text: 'a' })) // he cannot know
  assert.deepEqual(await rows('id = 90'), [{ id: 90, owner: 1, text: 'a', done: false }])
  await site.sql('revoke select on inserts from app')
  const blind = writer()
  await blind.apply(insert('inserts', { id: 90, v: 'a' }))
  await blind.refuse('23505', insert('inserts', { id: 90, v: 'a' })) // nor may he look
  await site.sql('grant select on inserts to app')
})

test('a transaction that changes nothing has a position, which live clients reach at once', async () => {
  const follower = new Follower(withHeaders(site.api, as(2)), { table: 'notes', where: 'done' })
  await follower.sync()
  const client = writer(1)
  await client.apply(insert('notes', { id: 100, text: 'a' }))
  await follower.sync()
  for (const operations of [[], [insert('notes', { id: 100 })], [update('notes', { id: 100 }, { text: 'a' })]]) {
    const reached = follower.live({ wake: operations.length ? '1' : '' })
    const { lsn, txid } = await client.apply(...operations)
    const { json } = await reached
    if (operations.length === 0) continue // it touches no table: an idle client hears at the end of its hold
    const upToDate = json.at(-1).headers
    assert.equal(upToDate.control, 'up-to-date')
    assert.ok(BigInt(upToDate.global_last_seen_lsn) >= BigInt(lsn), `${upToDate.global_last_seen_lsn} is below ${lsn}`)
    assert.ok(upToDate.txids.map(String).includes(txid))
  }
})

test('who follows a partitioned table is woken by a write to a partition that changes nothing', async () => {
  const client = writer(1)
  await client.apply(insert('logs_a', { id: 1, region: 'a', n: 1 }))
  const follower = new Follower(withHeaders(site.api, as(1)), { table: 'logs' })
  await follower.sync()
  const reached = follower.live({ wake: '1' })
  const { txid } = await client.apply(update('logs_a', { id: 1, region: 'a' }, { n: 1 }))
  assert.ok((await reached).json.at(-1).headers.txids.map(String).includes(txid))
})

test('requests that are no writes are told what is wrong with them', async () => {
  const client_id = writer().id
  const one = (operation) => ({ client_id, transactions: [{ seq: 1, operations: [operation] }] })
  const bad = async (body, status, pattern, headers = as(1)) => {
    const answer = await post(site.sidecar.url, body, headers)
    assert.equal(answer.status, status, answer.text)
    assert.match(answer.text, pattern)
    assert.match(answer.headers.get('content-type'), /application\/json/)
    assert.equal(answer.headers.get('access-control-allow-origin'), '*')
    assert.equal(answer.headers.get('cache-control'), 'no-store')
  }
  await bad('{', 400, /Invalid JSON in request body/)
  await bad('[]', 400, /"body"/)
  await bad({ transactions: [] }, 400, /missing field `client_id`/)
  await bad({ client_id: 'me', transactions: [{ seq: 1, operations: [] }] }, 400, /"client_id":\["is not a UUID"\]/)
  await bad({ client_id, transactions: [] }, 400, /"transactions":\["can't be empty"\]/)
  await bad({ client_id, transactions: [{ seq: 1, operations: [] }, { seq: 3, operations: [] }] }, 400, /"seq"/)
  await bad(one({ operation: 'truncate', table: 'notes' }), 400, /unknown variant `truncate`/)
  await bad(one({ operation: 'insert', table: 'a.b.c' }), 400, /too many delimiters/)
  await bad(one({ operation: 'insert', table: 'notes; drop table notes' }), 400, /special characters/)
  await bad(one({ operation: 'insert', table: 'notes', value: { text: 'a\0b' } }), 400, /code zero/)
  await bad(one({ operation: 'insert', table: 'notes', value: { text: 'x'.repeat(1 << 20) } }), 413, /too large/)
  await bad(one({ operation: 'insert', table: 'notes' }), 415, /application\/json is expected/, { ...as(1), 'content-type': 'text/plain' })
  for (const method of ['GET', 'PUT', 'DELETE']) {
    const answer = await fetch(`${site.sidecar.url}/v1/write`, { method })
    assert.equal(answer.status, 405)
    assert.equal(answer.headers.get('allow'), 'POST, OPTIONS')
  }
  const preflight = await fetch(`${site.sidecar.url}/v1/write`, { method: 'OPTIONS', headers: { 'access-control-request-headers': 'authorization,content-type' } })
  assert.deepEqual([preflight.status, preflight.headers.get('access-control-allow-methods'), preflight.headers.get('access-control-allow-headers')],
    [204, 'POST, OPTIONS', 'authorization,content-type'])
})
