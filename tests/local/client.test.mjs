// What an application gets of a client: handles, writes that are captured and kept, and ends. Answers are the test's.
import assert from 'node:assert/strict'
import { after, afterEach, before, beforeEach, test } from 'node:test'
import { createSync } from '../../client/dist/index.js'
import { waitFor } from '../lib/index.mjs'
import { newDatabase } from './lib/client.mjs'
import { refusal } from './lib/line.mjs'

const never = (signal) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
const turns = async () => { for (let i = 0; i < 20; i++) await new Promise(setImmediate) }

let db
const opened = []
before(async () => { db = await newDatabase() })
after(() => db.close())
beforeEach(() => db.exec('drop table if exists t, t0, t1, t2 cascade; truncate sync.stream, sync.shape_table, sync.shadow, sync.outbox, sync.rejection cascade; update sync.meta set last_seq = 0, sent_seq = 0'))
afterEach(() => Promise.all(opened.splice(0).map((sync) => sync.close())))

/** Two rows of the table that is asked for, and nothing after them. */
function shapeAnswer({ searchParams }, signal) {
  if (searchParams.has('live')) return never(signal)
  const rows = [1, 2].map((id) => ({ key: `"${id}"`, value: { id: `${id}`, v: 'a' }, headers: { operation: 'insert', lsn: '5', op_position: 0, relation: ['public', searchParams.get('table')] } }))
  return new Response(JSON.stringify([...rows, { headers: { control: 'up-to-date', global_last_seen_lsn: '9' } }]), {
    headers: { 'electric-handle': 'x-5-x', 'electric-offset': '8_0', 'electric-schema': '{"id":{"type":"int4","pk_index":0},"v":{"type":"text"}}', 'electric-cursor': `${++cursor}`, 'electric-up-to-date': '' },
  })
}

/** Applies what it gets, once `applied` is done; or answers with the results, or the response, that this has. */
async function writeAnswer(body, signal, applied) {
  const { transactions } = JSON.parse(body)
  if (transactions[0].seq === Number.MAX_SAFE_INTEGER) return Response.json({ results: [], last_seq: 0 }, { status: 409 })
  const results = applied && await Promise.race([applied(transactions), never(signal)])
  if (results instanceof Response) return results
  if (results) return Response.json({ results, last_seq: 0 })
  return Response.json({ results: transactions.map(({ seq }) => ({ seq, status: 'applied', lsn: '100' })), last_seq: transactions.at(-1).seq })
}

let sites = 0, cursor = 0 // the protocol client remembers both
async function open({ pglite = db, applied, ...options } = {}) {
  const asked = []
  const sync = await createSync({
    url: `http://x/${sites++}`, userId: '1', pglite, onError: (error) => { throw error }, ...options,
    fetch: async (to, { body, signal }) => {
      const url = new URL(to)
      asked.push(url)
      return url.pathname.endsWith('/v1/write') ? writeAnswer(body, signal, applied) : shapeAnswer(url, signal)
    },
  })
  opened.push(sync)
  return { sync, asked }
}

/** The database with other methods. */
const watched = (methods) => new Proxy(db, {
  get: (_, name) => methods[name] ?? (typeof db[name] === 'function' ? db[name].bind(db) : db[name]),
})

/** The database, whose next transaction waits, once `hold()` is called, until `go()` is. */
function holding() {
  let held, go, waits = false
  const pglite = watched({
    transaction: async (work) => {
      const first = held
      held = undefined
      if (first) { waits = true; await first }
      return db.transaction(work)
    },
  })
  return { pglite, hold: () => { held = new Promise((resolve) => { go = resolve }) }, go: () => go(), waits: () => waits }
}

const outbox = async () => (await db.query('select count(*)::int as n from sync.outbox')).rows[0].n

test('definitions that say the same are one shape, which is followed until its last handle is released', async () => {
  const { sync, asked } = await open()
  const [first, second] = [sync.shape({ table: 't', where: 'true' }), sync.shape({ where: 'true', table: 't' })]
  await first.upToDate()
  assert.deepEqual([second.status, second.table, second.isUpToDate], ['live', 't', true])
  assert.equal(asked.filter(({ searchParams }) => searchParams.get('offset') === '-1').length, 1)
  first.release()
  first.release()
  await turns()
  assert.equal(second.status, 'live')
  await assert.rejects(sync.forget(second.definition), /release its handles/)
  assert.equal((await db.query('select * from t')).rows.length, 2)
  second.release()
  await sync.forget(second.definition)
  assert.equal((await db.query('select * from t')).rows.length, 0)
  const again = sync.shape(second.definition)
  await again.upToDate()
  assert.equal((await db.query('select * from t')).rows.length, 2)
})

test('nothing is written, in any way, before the table is captured', async () => {
  const ways = [
    (database, sql) => database.query(sql),
    (database, sql) => database.exec(sql),
    (database, sql) => database.transaction((tx) => tx.query(sql)),
  ]
  const sql = ways.map((_, i) => `create table t${i} (id int primary key, v text)`).join(';')
  const gate = holding()
  const { sync } = await open({ pglite: gate.pglite, schema: { version: sites + 1, sql }, applied: () => new Promise(() => {}) })
  for (const [i, write] of ways.entries()) {
    gate.hold()
    sync.shape({ table: `t${i}` })
    const written = write(sync.db, `insert into t${i} values (${i + 10}, 'mine')`)
    await turns()
    gate.go()
    await written
    assert.equal(await outbox(), i + 1)
  }
})

test('a transaction is over when it is written to where the database is', async () => {
  const done = []
  const { sync } = await open({ pglite: watched({ syncToFs: async () => { await turns(); done.push('flush') } }) })
  const result = await sync.db.transaction(async (tx) => {
    done.push('work')
    return (await tx.query('select 7 as n')).rows[0].n
  })
  assert.deepEqual([result, done], [7, ['work', 'flush']])
})

test('what is written is sent, whoever waits for that hears of it, and its shape is asked for it', async () => {
  let answer
  const { sync, asked } = await open({ applied: () => new Promise((resolve) => { answer = resolve }) })
  await sync.shape({ table: 't' }).upToDate()
  await sync.db.query(`update t set v = 'mine' where id = 1`)
  await waitFor(() => answer)
  assert.equal(sync.status().pending, 1)
  let told = false
  const sent = sync.sent().then(() => { told = true })
  await turns()
  assert.equal(told, false)
  answer()
  const before = asked.length
  await sent
  assert.equal(sync.status().pending, 0)
  await waitFor(() => asked.slice(before).some(({ pathname, searchParams }) => pathname.endsWith('/v1/shape') && !searchParams.has('live')), { what: 'the shape is asked how far it is' })
})

test('of an answer, what is final before the first result that is not counts; the next request begins with that one', async () => {
  const done = (seq) => ({ seq, status: 'applied', lsn: '100' })
  const busy = (seq) => ({ seq, status: 'retry', message: `busy with ${seq}` })
  const answers = [
    [busy(1)],
    [done(1), busy(2), done(3)],
    [{ seq: 2, status: 'applied' }, done(3)],
    [{ seq: 2, status: 'rejected', sqlstate: '23514', message: 'no' }, done(3)],
  ]
  const sent = [], errors = []
  let written
  const areWritten = new Promise((resolve) => { written = resolve })
  const { sync } = await open({ applied: async (transactions) => {
    await areWritten
    sent.push(transactions.map(({ seq, operations }) => `${seq} ${operations[0].value.v}`).join())
    return answers.shift()
  } })
  await sync.shape({ table: 't' }).upToDate()
  sync.subscribe(({ error }) => error && errors.push(error.message))
  for (const v of ['x', 'y', 'z']) await sync.db.query('update t set v = $1 where id = 2', [v])
  written()
  await waitFor(() => {
    sync.wake()
    return answers.length === 0 && sync.status().pending === 0
  })
  assert.deepEqual(sent.slice(1), ['1 x,2 y,3 z', '2 y,3 z', '2 y,3 z'])
  assert.deepEqual([...new Set(errors)], ['busy with 1', 'busy with 2', 'the server does not know yet where a transaction is'])
  assert.deepEqual((await db.query('select ack::int from sync.outbox order by id')).rows, [{ ack: 100 }, { ack: 100 }])
  assert.deepEqual((await sync.rejections()).map(({ operations }) => operations[0].value), [{ v: 'y' }])
})

test('of transactions that are too large together, only the one that is so alone is rejected', async () => {
  const sent = []
  let written
  const areWritten = new Promise((resolve) => { written = resolve })
  const { sync } = await open({ applied: async (transactions) => {
    await areWritten
    const values = transactions.map(({ operations }) => operations[0].value.v).join()
    sent.push(values)
    return values.length > 1 || values === 'y' ? refusal(413, 'too large') : undefined
  } })
  await sync.shape({ table: 't' }).upToDate()
  for (const v of ['x', 'y', 'z']) await sync.db.query('update t set v = $1 where id = 2', [v])
  written()
  await waitFor(() => sent.at(-1) === 'z' && sync.status().pending === 0)
  assert.deepEqual((await sync.rejections()).map(({ sqlstate, operations }) => [sqlstate, operations[0].value]), [['54000', { v: 'y' }]])
  assert.deepEqual((await db.query('select value from sync.outbox order by id')).rows, [{ value: { v: 'x' } }, { value: { v: 'z' } }])
})

test('a client is closed when nothing of it is under way any more', async () => {
  for (const step of ['applies', 'sends']) {
    const gate = holding()
    let answer
    const { sync } = await open({ pglite: gate.pglite, applied: () => new Promise((resolve) => { answer = resolve }) })
    const handle = sync.shape({ table: 't' })
    if (step === 'applies') {
      await waitFor(() => handle.status === 'live')
      handle.release()
      await sync.forget({ table: 't' })
      gate.hold()
      sync.shape({ table: 't' })
    } else {
      await handle.upToDate()
      await sync.db.query(`update t set v = 'mine' where id = 1`)
      await waitFor(() => answer)
      gate.hold()
      answer()
    }
    await waitFor(() => gate.waits())
    let closed = false
    const close = sync.close().then(() => { closed = true })
    await turns()
    assert.equal(closed, false, step)
    gate.go()
    await close
  }
})
