// Parts of the client by themselves: what a batch comes to, what goes into a request, waiting, and trying again.
import assert from 'node:assert/strict'
import { mock, test } from 'node:test'
import { batchOf, requestBody } from '../../client/dist/batch.js'
import { fold, group, hasControl, positionAfter, snapshotPosition } from '../../client/dist/fold.js'
import { HttpError, Network, troubleOf } from '../../client/dist/network.js'
import { copyRowsOf, messagesOf, slicesOf } from '../../client/dist/snapshot.js'
import { parseTableName, tableNames } from '../../client/dist/sql/table.js'
import { Notifier, delayFor } from '../../client/dist/wait.js'

const table = { name: 't', relation: '"public"."t"', key: ['b', 'a'], generated: true, columns: ['a', 'b', 'c', 'd'].map((name) => ({ name, type: 'text' })) }
const change = (operation, value, lsn) => ({ key: 'k', value, headers: { operation, ...(lsn === undefined ? {} : { lsn: String(lsn) }) } })
const control = (name, more = {}) => ({ headers: { control: name, ...more } })
const folded = (...messages) => [...fold(table, messages, 5n).values()].map(({ operation, value, position }) => [operation, value, position])

test('operations of one row become one, of its newest position', () => {
  const key = { a: '1', b: '2' }
  const cases = [
    [[['insert', { ...key, c: 'x', d: 'y' }], ['update', { ...key, c: 'z' }]], ['insert', { ...key, c: 'z', d: 'y' }]],
    [[['update', { ...key, c: 'x' }], ['update', { ...key, d: null }]], ['update', { ...key, c: 'x', d: null }]],
    [[['update', { ...key, c: 'x' }], ['delete', key]], ['delete', key]],
    [[['insert', { ...key, c: 'x' }], ['delete', key]], ['delete', key]],
    [[['delete', key], ['insert', { ...key, c: 'x', d: null }]], ['insert', { ...key, c: 'x', d: null }]],
    [[['insert', { ...key, c: 'x' }], ['insert', { ...key, c: 'y' }]], ['insert', { ...key, c: 'y' }]],
    [[['delete', key], ['update', { ...key, c: 'x' }]], ['update', { ...key, c: 'x' }]],
  ]
  for (const [operations, [operation, value]] of cases) {
    assert.deepEqual(folded(...operations.map(([op, of], i) => change(op, of, 10 + i))), [[operation, value, BigInt(9 + operations.length)]], JSON.stringify(operations))
  }
})

test('rows are told apart by their whole keys; what is no column here, and no change, is left out', () => {
  const rows = folded(change('insert', { a: '1', b: '23' }, 7), control('snapshot-end'), change('insert', { a: '31', b: '2', unknown: 'x' }), change('insert', { a: '1', b: null }), control('up-to-date'))
  assert.deepEqual(rows, [['insert', { a: '1', b: '23' }, 7n], ['insert', { a: '31', b: '2' }, 5n], ['insert', { a: '1', b: null }, 5n]])
  assert.deepEqual(folded(change('insert', { a: '1', b: '2' }, '9007199254740993'))[0][2], 9_007_199_254_740_993n)
})

test('rows of the same columns are one group', () => {
  const of = (value, position) => ({ operation: 'update', value, position })
  assert.deepEqual(group([of({ a: '1', c: null }, 1n), of({ a: '2' }, 2n), of({ a: '3', c: 'x' }, 3n), of({ a: '4', d: 'x' }, 4n)]), [
    { columns: ['a', 'c'], rows: [{ a: '1', c: null, ' position': '1' }, { a: '3', c: 'x', ' position': '3' }] },
    { columns: ['a'], rows: [{ a: '2', ' position': '2' }] },
    { columns: ['a', 'd'], rows: [{ a: '4', d: 'x', ' position': '4' }] },
  ])
  assert.deepEqual(group([]), [])
})

test('how far a batch reaches: no further than what is complete', () => {
  const rows = [change('insert', {}, 8)]
  assert.equal(positionAfter(rows, '7_3'), 6n, 'there may be more of 7')
  assert.equal(positionAfter(rows, '7_0'), 7n)
  assert.equal(positionAfter(rows, '0_4'), null)
  for (const offset of ['-1', 'now', '7', '', '0_inf']) assert.equal(positionAfter(rows, offset), null, offset)
  assert.equal(positionAfter([...rows, control('up-to-date', { global_last_seen_lsn: '12' })], '7_3'), 12n)
  assert.equal(positionAfter([control('up-to-date', { global_last_seen_lsn: '12' }), ...rows], '7_3'), 6n, 'only as the last one')
  assert.equal(positionAfter([control('up-to-date')], '7_0'), 7n)
  assert.equal(positionAfter([], '7_0'), 7n)
  assert.equal(snapshotPosition('abc-1795798997389876-x'), 1_795_798_997_389_876n)
  for (const handle of [undefined, '', 'abc', 'abc-x-1']) assert.equal(snapshotPosition(handle), 0n)
  assert.ok(hasControl([...rows, control('must-refetch')], 'must-refetch') && !hasControl(rows, 'up-to-date'))
})

test('names of tables, as shapes and SQL write them', () => {
  assert.deepEqual(['t', 'T', 's.t', '"S"."a.b"', '"a ""b"""'].map(parseTableName), [['public', 't'], ['public', 't'], ['s', 't'], ['S', 'a.b'], ['public', 'a "b"']])
  assert.deepEqual(tableNames('public', 'T'), { name: '"T"', relation: '"public"."T"' })
  assert.deepEqual(tableNames('s', 'a"b'), { name: 's."a""b"', relation: '"s"."a""b"' })
})

test('a request has whole transactions, the first ones, as many as fit, and at least one', () => {
  const queue = [10, 2000, 10, 10].map((size, i) => ({ tx: 100 + i, operations: [{ operation: 'insert', table: 't', value: { v: 'ä'.repeat(size / 2) } }] }))
  const numbers = (...args) => batchOf(...args).map(({ tx, seq }) => [tx, seq])
  assert.deepEqual(numbers(queue, 7), [[100, 8], [101, 9], [102, 10], [103, 11]])
  assert.deepEqual(numbers(queue, 7, 2000), [[100, 8]])
  assert.deepEqual(numbers(queue.slice(1), 0, 2000), [[101, 1]], 'alone, though it does not fit')
  assert.deepEqual(numbers(queue, 0, Buffer.byteLength(JSON.stringify(queue[0].operations)) + Buffer.byteLength(JSON.stringify(queue[1].operations))), [[100, 1], [101, 2]], 'bytes are counted, not characters')
  assert.deepEqual(numbers([], 7), [])
  assert.deepEqual(JSON.parse(requestBody('id', batchOf(queue.slice(0, 1), 1))), { client_id: 'id', transactions: [{ seq: 2, operations: queue[0].operations }] })
})

test('delays are doubled up to the longest one, and differ', () => {
  for (const [attempt, full] of [[1, 200], [2, 400], [5, 3200], [8, 15_000], [10_000, 15_000]]) {
    const delays = Array.from({ length: 100 }, () => delayFor(attempt, 200, 15_000))
    assert.ok(delays.every((delay) => delay >= full / 2 && delay <= full), `${attempt}: ${delays}`)
    assert.ok(new Set(delays).size > 50)
  }
})

test('a wait ends when it is fired, when its time is over, or with its signal', async () => {
  const notifier = new Notifier()
  const heard = []
  const off = notifier.on(() => heard.push('a'))
  notifier.on(() => heard.push('b'))
  const fired = notifier.wait(1e6)
  notifier.fire()
  await fired
  off()
  notifier.fire()
  assert.deepEqual(heard, ['a', 'b', 'b'])
  await notifier.wait(1)
  const stop = new AbortController()
  const stopped = notifier.wait(1e6, stop.signal)
  stop.abort(new Error('enough'))
  await assert.rejects(stopped, /enough/)
  await assert.rejects(notifier.wait(1e6, stop.signal), /enough/, 'at once')
  const late = []
  const once = notifier.on(() => {
    once()
    notifier.on(() => late.push(1))
  })
  notifier.fire()
  assert.deepEqual(late, [], 'who comes while it is fired hears of the next time')
})

/** A network whose answers are given, in order; `sent`: tokens of its requests. */
function networkOf(answers, getToken) {
  const sent = []
  const network = new Network({
    getToken,
    fetch: async (_, { headers }) => {
      sent.push(new Headers(headers).get('authorization'))
      const answer = answers.shift()
      if (answer instanceof Error) throw answer
      return typeof answer === 'number' ? Response.json({ message: `is ${answer}` }, { status: answer }) : answer
    },
  })
  return { network, sent }
}

test('what says nothing for good is tried again, the rest is an answer', async () => {
  const { network, sent } = networkOf([new TypeError('cut'), 500, 503, 429, 409])
  const troubles = [], states = []
  network.changed.on(() => states.push(network.state.online))
  const waking = setInterval(() => network.wake(), 5)
  const answer = await network.request('http://x', {}, (trouble) => troubles.push(trouble?.message))
  clearInterval(waking)
  assert.deepEqual([answer.status, sent], [409, [null, null, null, null, null]])
  assert.deepEqual(troubles, ['cut', '500 is 500', '503 is 503', '429 is 429', undefined])
  assert.deepEqual(states, [false, true])
  for (const status of [200, 204, 400, 403, 404, 413]) {
    const given = networkOf([new Response(null, { status })])
    assert.equal((await given.network.request('http://x')).status, status)
  }
})

test('retry-after is the least that is waited for', async () => {
  mock.timers.enable({ apis: ['setTimeout'] })
  try {
    const { network, sent } = networkOf([new Response('{}', { status: 429, headers: { 'retry-after': '7' } }), 200])
    let told
    const isTold = new Promise((resolve) => { told = resolve })
    const answer = network.request('http://x', {}, (trouble) => trouble && told())
    await isTold
    await new Promise(setImmediate)
    mock.timers.tick(6999)
    await new Promise(setImmediate)
    assert.equal(sent.length, 1)
    mock.timers.tick(1)
    assert.equal((await answer).status, 200)
  } finally {
    mock.timers.reset()
  }
})

test('a token that is refused is asked for anew, once for all who were refused it, and until there is another', async () => {
  const asked = []
  const tokens = ['old', 'old', 'new']
  const { network, sent } = networkOf([401, 401, 200, 200], async (refused) => {
    asked.push(refused)
    return tokens[Math.min(asked.length - 1, 2)]
  })
  const waking = setInterval(() => network.wake(), 5)
  const states = []
  network.changed.on(() => states.push(network.state.unauthorized))
  const first = await network.request('http://x')
  clearInterval(waking)
  assert.equal(first.status, 200)
  assert.deepEqual(asked, [undefined, 'old', 'old'])
  assert.deepEqual(sent, ['Bearer old', 'Bearer old', 'Bearer new'])
  assert.deepEqual(states, [true, false])
  const calls = []
  const both = networkOf([401, 401, 200, 200], async (refused) => {
    calls.push(refused)
    return refused ? 'new' : 'old'
  })
  const statuses = await Promise.all([both.network.request('http://x'), both.network.request('http://x')])
  assert.deepEqual([statuses.map(({ status }) => status), calls], [[200, 200], [undefined, 'old']])
  assert.deepEqual(both.sent, ['Bearer old', 'Bearer old', 'Bearer new', 'Bearer new'])
})

test('a request ends with its signal, also between tries, and its reason', async () => {
  mock.timers.enable({ apis: ['setTimeout'] })
  try {
    const stop = new AbortController()
    const { network, sent } = networkOf(Array.from({ length: 3 }, () => 503))
    await assert.rejects(network.request('http://x', { signal: stop.signal }, () => setImmediate(() => stop.abort(new Error('closed')))), /closed/)
    assert.equal(sent.length, 1)
  } finally {
    mock.timers.reset()
  }
  const inside = new AbortController()
  const troubles = []
  const cut = new Network({ fetch: async () => {
    inside.abort(new Error('closed meanwhile'))
    throw new TypeError('aborted')
  } })
  await assert.rejects(cut.request('http://x', { signal: inside.signal }, (trouble) => troubles.push(trouble)), /closed meanwhile/)
  assert.deepEqual([troubles, cut.state.online], [[], true], 'that is no trouble with the network')
})

test('an answer that is no success says what it was', async () => {
  const told = async (body, status = 400) => troubleOf(new Response(body, { status, statusText: 'Bad' }))
  const error = await told('{"message": "no such thing"}')
  assert.ok(error instanceof HttpError)
  assert.deepEqual([error.httpStatus, error.message], [400, '400 no such thing'])
  assert.equal((await told('{"error": "too large"}', 413)).message, '413 too large')
  for (const odd of ['{"message": {}}', 'null', '[]', '{}']) assert.match((await told(odd)).message, /^400 (Bad|null)$/)
  assert.equal((await told('<html>')).message, '400 <html>')
  assert.equal((await told('')).message, '400 Bad')
  assert.equal((await told('x'.repeat(5000))).message.length, 504)
})

test('a body in slices has the messages that it has at once', () => {
  const messages = Array.from({ length: 40 }, (_, i) => change('insert', { a: `${i},\n{`, b: '},{"key":', c: '\\', d: i % 3 ? null : '"\n' }))
  messages.push(control('snapshot-end'))
  const body = `[${messages.map((message) => JSON.stringify(message)).join(',\n')}]`
  for (const length of [0, 1, 50, 97, 1000, body.length - 1, body.length, 10 * body.length]) {
    const slices = slicesOf(body, length).map(messagesOf)
    assert.deepEqual(slices.flat(), messages)
    assert.ok(slices.every((slice) => slice.length > 0), `slices of ${length}`)
    assert.ok(slicesOf(body, length).every((slice) => /^\[\{"/.test(slice)), 'each in the form of the whole')
    assert.equal(slices.length > 1, length < body.length - 100, `${slices.length} slices of ${length}`)
  }
  assert.deepEqual(slicesOf('[]').map(messagesOf), [[]])
  assert.deepEqual(slicesOf(JSON.stringify(messages, null, 1), 10).map(messagesOf), [messages], 'another form is read whole')
  for (const broken of ['', '[', body.slice(0, -1), `${body}x`]) assert.throws(() => slicesOf(broken, 200).map(messagesOf), SyntaxError, broken)
})

test('rows of a slice are what COPY reads as the same values, or none', () => {
  const rowsIn = (...messages) => copyRowsOf(`[${messages.map((message) => JSON.stringify(message)).join(',\n')}]`, (name) => name !== 'new')
  const end = control('snapshot-end', { xmin: '1' })
  assert.deepEqual(rowsIn(change('insert', { a: '1', b: null, 'c"(.': '' }), change('insert', { a: 'null', b: '\\N', 'c"(.': 'x' })),
    { columns: ['a', 'b', 'c"(.'], text: '1\t\\N\t\nnull\t\\\\N\tx\n' })
  assert.deepEqual(rowsIn(change('insert', { new: 'no', a: '\t\n\r\b\f/"\\', b: ',\n{"},' }), end), { columns: ['a', 'b'], text: '\\t\\n\\r\\b\\f/\\"\\\\\t,\\n{\\"},\n' })
  assert.deepEqual(rowsIn(change('insert', { a: null, b: null })), { columns: ['a', 'b'], text: '\\N\t\\N\n' })
  assert.deepEqual(rowsIn(end), { columns: [], text: '' })
  const row = change('insert', { a: '1', b: '2' })
  for (const other of [change('update', { a: '1', b: '2' }), change('insert', { a: '1' }), change('insert', { b: '2', a: '1' }), change('insert', { a: '1', b: '\u0001' }),
    { ...row, extra: 1 }, { ...row, old_value: { a: '0' } }, { value: row.value, key: 'k', headers: row.headers }]) {
    assert.equal(rowsIn(row, other), undefined, JSON.stringify(other))
    assert.equal(rowsIn(other, row), undefined, JSON.stringify(other))
    assert.equal(rowsIn(row, other, end), undefined, JSON.stringify(other))
  }
  for (const order of [[row, end, row], [end, row]]) assert.equal(rowsIn(...order), undefined)
  const readable = (slice) => {
    try {
      return copyRowsOf(slice, () => true)
    } catch (error) {
      assert.ok(error instanceof SyntaxError, error)
    }
  }
  const whole = `[${[row, row, control('snapshot-end', { xip_list: ['1', '2'] })].map((message) => JSON.stringify(message)).join(',\n')}]`
  assert.equal(readable(whole).text, '1\t2\n1\t2\n')
  for (let length = 0; length < whole.length; length++) assert.equal(readable(whole.slice(0, length)), undefined, `cut off after ${length} characters`)
  for (const other of ['[]', `${whole}x`, 'nonsense', 'null]']) assert.equal(readable(other), undefined, other)
})
