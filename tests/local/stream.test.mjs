// One shape's stream by itself, against answers as a server would give them, each when the test says so.
import assert from 'node:assert/strict'
import { after, afterEach, before, beforeEach, test } from 'node:test'
import { Network } from '../../client/dist/network.js'
import { ShapeFollower } from '../../client/dist/stream.js'
import { waitFor } from '../lib/index.mjs'
import { newDatabase } from './lib/client.mjs'
import { refusal } from './lib/line.mjs'

const columns = { id: { type: 'int4', pk_index: 0 }, v: { type: 'text' } }
const change = (operation, id, v) => ({ key: `"${id}"`, value: { id: String(id), v }, headers: { operation, relation: ['public', 't'], ...(operation === 'insert' ? {} : { lsn: '7', op_position: 0 }) } })
const insert = (id, v) => change('insert', id, v)
const upToDate = { headers: { control: 'up-to-date', global_last_seen_lsn: '9' } }

/** An answer with these messages; one that ends with upToDate says so in its headers as well. */
function answer(offset, messages, { handle = 'x-5-x', schema = columns, status = 200 } = {}) {
  const end = messages.at(-1) === upToDate ? { 'electric-up-to-date': '' } : {}
  return new Response(`[${messages.map((message) => JSON.stringify(message)).join(',\n')}]`,
    { status, headers: { 'electric-handle': handle, 'electric-offset': offset, 'electric-schema': JSON.stringify(schema), 'electric-cursor': `${++cursor}`, ...end } })
}
const whole = (...messages) => answer('8_0', [...messages, upToDate])

let db, follower
const followers = [], gates = []
// The protocol client remembers what it knows of a URL, and what cursor it had there.
let clients = 0, cursor = 0
before(async () => { db = await newDatabase() })
after(() => db.close())
beforeEach(() => db.exec('drop table if exists t cascade; truncate sync.stream, sync.shape_table, sync.shadow, sync.outbox cascade'))
afterEach(async () => {
  for (const open of gates.splice(0)) open()
  await Promise.all(followers.splice(0).map((one) => soon(one.stop())))
})

/** Another client of the table's shape. `answers`: what is asked, in order, gets; a function is called with the request's signal; nothing more: no answer until it is cut off. */
function client(answers, { definition = { table: 't' }, pglite = db } = {}) {
  const asked = [], told = []
  const network = new Network({
    fetch: async (url, { signal }) => {
      asked.push(new URL(url).searchParams)
      const next = answers.shift()
      return typeof next === 'function' ? next(signal) : next ?? never(signal)
    },
  })
  follower = new ShapeFollower({ pglite, network, url: `http://x/${clients++}`, params: {}, applied: () => told.push('applied'), left: () => told.push('left') }, definition)
  followers.push(follower)
  return { asked, told, network }
}
const never = (signal) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
/** What is to end without being asked again. */
const soon = (promise) => Promise.race([promise, new Promise((_, reject) => setTimeout(reject, 10_000, new Error('it does not end')).unref())])
const turns = async (count = 20) => { for (let i = 0; i < count; i++) await new Promise(setImmediate) }
const is = (status) => waitFor(() => follower.status.status === status, { what: `it is ${status}` }).catch((error) => {
  throw new Error(`it is ${JSON.stringify(follower.status)}`, { cause: error })
})
const rows = async () => (await db.query(`select id || ' ' || v as t from t order by id`)).rows.map(({ t }) => t)
const stored = async () => (await db.query('select "offset", active from sync.stream')).rows

/** The database with other transactions. */
const watched = (transaction) => ({ query: (...args) => db.query(...args), transaction })

/** The database, where transactions wait for `open()`, from the n-th on, in their order. */
function gated(from) {
  let begun = 0, open
  const opened = new Promise((resolve) => { open = resolve })
  gates.push(open)
  const pglite = watched(async (work) => {
    if (++begun >= from) await opened
    return db.transaction(work)
  })
  return { pglite, open, begun: () => begun }
}

test('nothing is applied, and no table made, before the shape has started over', async () => {
  for (const definition of [{ shape: 'named' }, { table: 't' }]) {
    const gate = gated(1)
    const { asked } = client([whole()], { definition, pglite: gate.pglite })
    const start = definition.table ? 2 : 1 // its table is captured, and it starts over
    follower.start()
    await waitFor(() => asked.length === 1)
    await turns()
    assert.ok(gate.begun() <= start, `${gate.begun()} transactions`)
    gate.open()
    await is('live')
    await follower.stop()
  }
})

test('a stop ends when nothing is applied and no table made any more', async () => {
  const hangs = answer('8_0', [upToDate])
  hangs.text = () => new Promise(() => {})
  // The third transaction makes the table, after it is captured and the shape starts over; where there is one, it applies rows.
  for (const [what, first] of Object.entries({ 'the table is made': hangs, 'rows are applied': whole(insert(1, 'a')) })) {
    const gate = gated(3)
    client([first], { pglite: gate.pglite, definition: { table: 't', where: what } })
    follower.start()
    await waitFor(() => gate.begun() === 3)
    let stopped = false
    const stop = follower.stop().then(() => { stopped = true })
    await turns()
    assert.equal(stopped, false, what)
    gate.open()
    await stop
  }
})

test('parts are asked for before they are applied, and each is applied where it belongs; one that fails where nobody waits for it fails alone', async () => {
  const broken = answer('0_2', [insert(2, 'b')])
  broken.text = async () => { throw new TypeError('cut') }
  const { network, asked } = client([answer('0_1', [insert('no number', 'a')]), broken, never, answer('0_1', [insert(1, 'a')]), answer('0_2', [insert(2, 'b')]), answer('0_3', [insert(3, 'c')]), whole(insert(4, 'd'))])
  follower.start()
  await is('waiting')
  assert.equal(follower.status.error.sqlstate, '22P02')
  await waitFor(() => asked.length === 3)
  await turns()
  network.wake()
  await is('live')
  assert.deepEqual(await rows(), ['1 a', '2 b', '3 c', '4 d'])
})

test('rows of a part that was not whole are not taken for the shape', async () => {
  const { network } = client([answer('0_1', [insert(1, 'a')]), refusal(400), whole(insert(2, 'b'))])
  follower.start()
  await is('waiting')
  assert.deepEqual(await rows(), ['1 a'])
  await db.query('update sync.stream set "offset" = null')
  network.wake()
  await is('live')
  assert.deepEqual(await rows(), ['2 b'])
})

test('what is known of a shape is told before there is an answer; a new one has nothing', async () => {
  const { asked } = client([never, whole(insert(1, 'a'))])
  follower.start()
  await waitFor(() => asked.length === 1)
  assert.deepEqual([follower.status.status, follower.status.isUpToDate], ['loading', false])
  await follower.stop()
  follower.start()
  await is('live')
  await follower.stop()
  client([])
  follower.start()
  await waitFor(() => follower.status.isUpToDate)
  assert.equal(follower.status.status, 'loading')
  assert.ok(Math.abs(follower.status.lastSynced - Date.now()) < 60_000)
})

test('another snapshot may have other columns, and is not there before it is whole', async () => {
  const seen = []
  let more
  const schema = { ...columns, n: { type: 'int4' } }
  const late = answer('8_0', [upToDate], { handle: 'y-9-y', schema })
  late.text = () => new Promise((resolve) => { more = () => resolve(JSON.stringify([{ key: '"1"', value: { id: '1', v: 'a', n: '3' }, headers: { operation: 'insert', relation: ['public', 't'] } }, upToDate])) })
  const { told } = client([whole(insert(1, 'a'), insert(2, 'b')), new Response(JSON.stringify([{ headers: { control: 'must-refetch' } }]), { status: 409, headers: { 'electric-handle': 'y-9-y' } }), late])
  follower.changed.on(() => seen.push([follower.status.status, follower.status.isUpToDate]))
  follower.start()
  await waitFor(() => more)
  await waitFor(() => follower.status.isUpToDate === false)
  assert.deepEqual([follower.status.status, await rows()], ['loading', ['1 a', '2 b']])
  more()
  await is('live')
  assert.deepEqual((await db.query('select * from t')).rows, [{ id: 1, v: 'a', n: 3 }])
  assert.deepEqual(seen.slice(-2), [['loading', false], ['live', true]])
  assert.deepEqual(told, ['applied', 'applied'])
})

test('that rows left is told of a shape that is followed', async () => {
  const { told } = client([whole(insert(1, 'a'), insert(2, 'b')), answer('9_0', [change('delete', 1)]), answer('9_0', [upToDate])])
  follower.start()
  await waitFor(() => told.length === 4)
  assert.deepEqual([told, await rows()], [['applied', 'applied', 'left', 'applied'], ['2 b']])
  await follower.stop()
  const kept = client([answer('10_0', [change('delete', 2), upToDate])])
  await soon(follower.catchUp())
  assert.deepEqual([kept.told, await rows()], [['applied'], []])
})

test('a failure is shown until there is an answer, and followed by a pause', async () => {
  const last = whole(insert(1, 'a'))
  let more
  const text = last.text.bind(last)
  last.text = async () => { await new Promise((resolve) => { more = resolve }); return text() }
  const { asked, network } = client([refusal(400, 'not yet'), refusal(503, 'away'), last])
  follower.start()
  await is('waiting')
  assert.deepEqual(follower.status.error, { message: 'not yet', httpStatus: 400 })
  await turns()
  assert.equal(asked.length, 1)
  network.wake()
  await waitFor(() => follower.status.error.httpStatus === 503)
  network.wake()
  await waitFor(() => follower.status.error === undefined)
  assert.equal(follower.status.status, 'loading')
  more()
  await is('live')
})

test('a shape that cannot start over says so, though no answer comes', async () => {
  let failing = true
  const pglite = watched(async (work) => {
    if (failing) throw Object.assign(new Error('disk full'), { code: '53100' })
    return db.transaction(work)
  })
  const { network } = client([never, whole(insert(1, 'a'))], { pglite })
  follower.start()
  await is('waiting')
  assert.deepEqual(follower.status.error, { message: 'disk full', sqlstate: '53100' })
  failing = false
  network.wake()
  await is('live')
})

/** A shape that was followed, and is brought up to date by a request that has no answer. */
async function catching(...answers) {
  client([whole(insert(1, 'a'))])
  follower.start()
  await is('live')
  await follower.stop()
  assert.deepEqual((await stored())[0].active, false)
  const { asked } = client([never, ...answers])
  const caught = follower.catchUp()
  await waitFor(() => asked.length === 1)
  return { caught, asked }
}

test('who follows, stops or forgets a shape does not wait until it has been brought up to date', async () => {
  let { caught } = await catching(answer('9_0', [upToDate]))
  follower.start()
  await is('live')
  await soon(caught)
  assert.equal((await stored())[0].offset, '9_0')
  await follower.stop()

  ;({ caught } = await catching())
  await soon(follower.stop())
  await soon(caught)

  ;({ caught } = await catching())
  await soon(follower.forget())
  await soon(caught)
  assert.deepEqual([await stored(), await rows()], [[], []])
})

test('a shape that is followed is neither brought up to date beside that, nor forgotten', async () => {
  client([whole(insert(1, 'a'))])
  follower.start()
  await is('live')
  await soon(follower.catchUp())
  await follower.stop()
  const forgotten = follower.forget()
  follower.start()
  await forgotten
  assert.deepEqual(await rows(), ['1 a'])
})

test('what happens to a shape that nobody follows is not shown', async () => {
  client([whole(insert(1, 'a'))])
  follower.start()
  await is('live')
  await follower.stop()
  const { network } = client([refusal(503), answer('9_0', [insert(2, 'b'), upToDate])])
  const waking = setInterval(() => network.wake(), 5)
  const seen = []
  follower.changed.on(() => seen.push({ ...follower.status }))
  await soon(follower.catchUp())
  clearInterval(waking)
  assert.deepEqual(await rows(), ['1 a', '2 b'])
  assert.deepEqual(seen.filter(({ status, error, isUpToDate }) => status !== 'stopped' || error || isUpToDate), [])
})
