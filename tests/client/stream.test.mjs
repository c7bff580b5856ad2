// What the stock client's own suite asserts of a server, each by long-polling and by events: how many requests there are, what
// a subscriber is told and when, and that nothing comes twice.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { isChangeMessage, isControlMessage, Shape, ShapeStream } from '@electric-sql/client'
import { served, sleep, startProxy, waitFor } from '../lib/index.mjs'

const site = served({ env: { SHAPEFEED_CHUNK_BYTES: '10000' } })
const aborts = []
after(() => aborts.forEach((abort) => abort.abort()))

let tables = 0

/** A table of its own with rows from 1 to `count`. */
async function tableOf(count) {
  const table = `items_${++tables}`
  await site.sql(`create table ${table} (id int primary key, v text, big int8); insert into ${table} select i, 'v' || i, 9007199254740993 + i from generate_series(1, ${count}) i`)
  return table
}

const head = async () => BigInt((await site.client.query('select head::text from shapefeed._head()')).rows[0].head)

/** A stream, the batches that its subscriber got, and its errors. */
function streaming(table, options = {}) {
  const abort = new AbortController()
  aborts.push(abort)
  const { params, url = site.sidecar.url, ...more } = options
  const stream = new ShapeStream({ url: `${url}/v1/shape`, params: { table, ...params }, signal: abort.signal, ...more })
  const batches = [], errors = []
  stream.subscribe((batch) => { batches.push(batch) }, (error) => errors.push(error))
  const messages = () => batches.flat()
  return { stream, batches, errors, abort, messages, changes: () => messages().filter(isChangeMessage), controls: (name) => messages().filter((message) => isControlMessage(message) && message.headers.control === name) }
}

for (const liveSse of [false, true]) {
  const how = liveSse ? 'by events' : 'by long-polling'

  test(`an empty table: three requests and one up-to-date, ${how}`, async () => {
    const proxy = await startProxy(site.sidecar.url)
    const { stream, errors, controls } = streaming(await tableOf(0), { url: proxy.url, liveSse })
    await waitFor(() => proxy.requests.length === 3)
    await sleep(1000) // and no more than that
    assert.deepEqual(proxy.requests.map(({ params }) => [params.get('offset'), params.get('live')]), [['-1', null], ['0_0', null], [stream.lastOffset, 'true']])
    assert.equal(controls('up-to-date').length, 1)
    assert.deepEqual(errors, [])
    await proxy.stop()
  })

  test(`a subscriber is told rows, then up-to-date, then changes, each once, ${how}`, async () => {
    const table = await tableOf(3)
    const { stream, batches, changes, controls } = streaming(table, { liveSse })
    assert.equal(stream.isLoading(), true)
    await waitFor(() => stream.isUpToDate)
    assert.ok(batches[0].length > 0 && batches[0].at(-1).headers.control === 'snapshot-end', 'the first batch is not empty')
    assert.deepEqual([stream.isLoading(), stream.isConnected(), stream.lastOffset.startsWith('-')], [false, true, false])
    assert.equal(controls('snapshot-end').length, 1)
    for (let i = 4; i <= 20; i++) await site.sql(`insert into ${table} values (${i}, 'v${i}')`)
    await waitFor(() => changes().length === 20)
    await waitFor(() => !stream.lastOffset.startsWith('0_'), { what: 'the offset has left the snapshot' })
    assert.deepEqual(changes().map(({ value }) => value.id), Array.from({ length: 20 }, (_, i) => i + 1))
    assert.equal(new Set(changes().map(({ key }) => key)).size, 20)
    const [, ...rest] = batches
    assert.ok(rest.every((batch) => batch.at(-1).headers.control === 'up-to-date'), 'each batch is closed')
  })

  test(`a refresh says at once how far it is, and repeats nothing, ${how}`, async () => {
    const table = await tableOf(2)
    const { stream, changes, controls } = streaming(table, { liveSse })
    await waitFor(() => stream.isUpToDate)
    await site.sql(`insert into ${table} values (3, 'x'), (4, 'y')`)
    await waitFor(() => changes().length === 4)
    for (let i = 0; i < 3; i++) {
      const [before, began] = [controls('up-to-date').length, performance.now()]
      await stream.forceDisconnectAndRefresh()
      assert.ok(controls('up-to-date').length > before)
      assert.ok(performance.now() - began < 3000)
    }
    await site.sql(`update ${table} set v = 'z' where id = 3`)
    await waitFor(() => changes().length === 5)
    assert.deepEqual(changes().map(({ headers }) => headers.operation), ['insert', 'insert', 'insert', 'insert', 'update'])
  })

  test(`a shape that is deleted or truncated is told by must-refetch, and read again, ${how}`, async () => {
    const table = await tableOf(3)
    const { stream, changes, controls, errors } = streaming(table, { liveSse })
    await waitFor(() => stream.isUpToDate)
    const handle = stream.shapeHandle
    assert.equal((await fetch(`${site.sidecar.url}/v1/shape?table=${table}&handle=${handle}`, { method: 'DELETE' })).status, 202)
    await waitFor(() => controls('must-refetch').length === 1 && changes().length === 6)
    assert.notEqual(stream.shapeHandle, handle)
    await site.sql(`truncate ${table}; insert into ${table} values (9, 'new')`)
    await waitFor(() => controls('must-refetch').length === 2 && changes().length === 7)
    assert.equal(changes().at(-1).value.id, 9)
    assert.deepEqual(errors, [])
  })

  test(`after an error that onError mends, the stream goes on where it was, ${how}`, async () => {
    const table = await tableOf(4)
    const proxy = await startProxy(site.sidecar.url)
    const secret = await site.another({ env: { SHAPEFEED_INSECURE: undefined, SHAPEFEED_SECRET: 'open' } })
    let mended = 0
    const { stream, changes } = streaming(table, { url: proxy.url, liveSse, onError: () => { mended++; return { params: { table, secret: 'open' } } } })
    await waitFor(() => stream.isUpToDate)
    proxy.setTarget(secret.sidecar.url)
    await stream.forceDisconnectAndRefresh().catch(() => {})
    await site.sql(`insert into ${table} values (5, 'after')`)
    await waitFor(() => changes().length === 5, { timeoutMs: 20_000 })
    assert.deepEqual([mended, changes().map(({ value }) => value.id)], [1, [1, 2, 3, 4, 5]])
    assert.equal(proxy.refetches().initial, 1)
    await proxy.stop()
  })

  test(`offset=now skips what was, changes_only starts empty, replica=full brings whole rows, ${how}`, async () => {
    const table = await tableOf(5)
    // There is something between the snapshot that the shape has by now and the end of its log.
    await site.api.start({ table })
    await site.api.start({ table, replica: 'full' })
    await site.sql(`update ${table} set v = 'old' where id = 4`)
    const late = streaming(table, { liveSse, offset: 'now' })
    const only = streaming(table, { liveSse, log: 'changes_only' })
    const full = streaming(table, { liveSse, params: { replica: 'full' } })
    const shape = new Shape(only.stream)
    await waitFor(() => [late, only, full].every(({ stream }) => stream.isUpToDate))
    assert.deepEqual([late.changes().length, only.changes().length, shape.currentRows], [0, 0, []])
    const known = full.changes().length // with the update, if this sidecar's snapshot is from before it
    assert.ok(known === 5 || known === 6)
    await site.sql(`update ${table} set v = 'new' where id = 2; insert into ${table} values (6, 'w'); delete from ${table} where id = 1; update ${table} set v = 'x' where id = 6`)
    await waitFor(() => late.changes().length === 4 && only.changes().length === 4 && full.changes().length === known + 4)
    assert.deepEqual(late.changes()[0].value, { id: 2, v: 'new' })
    const [update] = full.changes().slice(known)
    assert.deepEqual([update.value, update.old_value], [{ id: 2, v: 'new', big: 9007199254740995n }, { v: 'v2' }])
    assert.deepEqual(shape.currentRows.map(({ id, v }) => [id, v]), [[6, 'x']], 'what it has not seen inserted it does not show')
  })

  test(`where, odd columns and the parsers of types, in snapshot and stream, ${how}`, async () => {
    const table = `typed_${++tables}`
    await site.sql(`create table ${table} (id int primary key, "has,comma" int2[], "has""quote" jsonb, "has space" int8, "Upper" float8, b bool, at timestamptz, hidden text);
      insert into ${table} values (1, '{1,NULL}', '{"a": [1]}', 9007199254740993, 'NaN', true, '2024-01-01Z', 'h'), (2, '{}', '1', 2, 0.5, false, null, 'h'), (3, null, null, null, null, null, null, 'h')`)
    const columns = ['id', 'has,comma', 'has"quote', 'has space', 'Upper', 'b', 'at']
    const { changes, errors } = streaming(table, { liveSse, params: { where: 'id <> $1', params: ['2'], columns } })
    const row = { 'has,comma': [1, null], 'has"quote': { a: [1] }, 'has space': 9007199254740993n, Upper: NaN, b: true, at: '2024-01-01 00:00:00+00' }
    await waitFor(() => changes().length === 2)
    assert.deepEqual(changes().map(({ key, value }) => [key, value]).sort(), [
      [`"public"."${table}"/"1"`, { id: 1, ...row }],
      [`"public"."${table}"/"3"`, { id: 3, 'has,comma': null, 'has"quote': null, 'has space': null, Upper: null, b: null, at: null }],
    ])
    await site.sql(`insert into ${table} select 4, "has,comma", "has""quote", "has space", "Upper", b, at from ${table} where id = 1;
      update ${table} set hidden = 'silent'; update ${table} set "has space" = 7 where id = 3; update ${table} set id = 2 + 10 where id = 2; delete from ${table} where id = 1`)
    await waitFor(() => changes().length === 6)
    assert.deepEqual(changes().slice(2).map(({ value, headers }) => [headers.operation, value]), [
      ['insert', { id: 4, ...row }],
      ['update', { id: 3, 'has space': 7n }],
      ['insert', { id: 12, 'has,comma': [], 'has"quote': 1, 'has space': 2n, Upper: 0.5, b: false, at: null }],
      ['delete', { id: 1 }],
    ])
    assert.deepEqual(errors, [])
  })

  test(`one snapshot-end of the log and one of a subset, ${how}`, async () => {
    const table = await tableOf(5)
    const { stream, controls, changes } = streaming(table, { liveSse, log: 'changes_only' })
    await waitFor(() => stream.isUpToDate) // before, the client may have two requests for one place under way
    assert.equal(controls('snapshot-end').length, 1)
    const { data } = await stream.requestSnapshot({ orderBy: 'id', limit: 2 })
    assert.equal(data.length, 2)
    await waitFor(() => controls('snapshot-end').length === 2)
    assert.deepEqual(controls('snapshot-end').map(({ headers }) => headers.snapshot_mark === undefined).sort(), [false, true])
    await site.sql(`update ${table} set v = 'z' where id = 1`)
    await waitFor(() => changes().length === 3)
    assert.equal(controls('snapshot-end').length, 2)
  })

  test(`subsets beside a stream lose and repeat nothing, ${how}`, async () => {
    const table = await tableOf(30)
    // While the client is about to ask for row 20, which stops its stream, a row that it has changes.
    const fetchClient = async (url, options) => {
      if (String(url).includes('id+%3D+20')) {
        const before = await head()
        await site.sql(`update ${table} set v = 'meanwhile' where id = 1`)
        await waitFor(async () => await head() > before)
      }
      return fetch(url, options)
    }
    const { stream, changes, controls } = streaming(table, { liveSse, log: 'changes_only', offset: 'now', fetchClient })
    const shape = new Shape(stream)
    const { data } = await stream.requestSnapshot({ where: 'id <= 3', orderBy: 'id', limit: 10 })
    assert.equal(data.length, 3)
    await waitFor(() => shape.currentRows.length === 3)
    const big = await stream.requestSnapshot({ where: 'big = $1', params: { 1: '9007199254741000' } })
    assert.deepEqual(big.data.map(({ value }) => value.id), [7])
    await stream.requestSnapshot({ where: 'id = 20' })
    await waitFor(() => shape.currentRows.find(({ id }) => id === 1).v === 'meanwhile')
    // One that is open while the subset is read, and one that ends between.
    const writer = await site.database.connect()
    await writer.query(`begin; update ${table} set v = 'open' where id = 8`)
    await site.sql(`update ${table} set v = 'before' where id = 9`)
    await waitFor(async () => (await stream.fetchSnapshot({ where: 'id = 9' })).data[0].value.v === 'before')
    await stream.requestSnapshot({ where: 'id in (8, 9)' })
    await writer.query('commit')
    await writer.end()
    const held = (id) => shape.currentRows.find((row) => row.id === id)?.v
    await waitFor(() => held(8) === 'open' && held(9) === 'before')
    await site.sql(`update ${table} set v = v || '!' where id <= 9`)
    await waitFor(() => [1, 2, 3, 7, 8, 9].every((id) => held(id)?.endsWith('!')))
    assert.equal(held(9), 'before!')
    assert.ok(controls('snapshot-end').length >= 3)
    const inserts = changes().filter(({ headers }) => headers.operation === 'insert').map(({ key }) => key)
    assert.equal(new Set(inserts).size, inserts.length, 'no row comes twice')
  })
}

test('a batch of events that is cut off comes once', async () => {
  const table = await tableOf(1)
  let cut = 0
  // The first streams that bring the change break after some chunks, as when a network goes away.
  const fetchClient = async (url, options) => {
    const response = await fetch(url, options)
    if (!String(url).includes('live=true') || cut >= 2) return response
    const reader = response.body.getReader()
    let bytes = 0
    const body = new ReadableStream({
      async pull(controller) {
        const { done, value } = await reader.read()
        if (done) return controller.close()
        bytes += value.length
        if (bytes < 15_000) return controller.enqueue(value)
        controller.enqueue(value.subarray(0, Math.max(0, value.length - 300)))
        cut++
        await reader.cancel()
        controller.error(new TypeError('network error'))
      },
    })
    return new Response(body, { status: response.status, headers: response.headers })
  }
  const { stream, changes, controls } = streaming(table, { liveSse: true, fetchClient, backoffOptions: { initialDelay: 20, maxDelay: 100, multiplier: 1.5 } })
  await waitFor(() => stream.isUpToDate)
  await site.sql(`insert into ${table} select i, repeat('x', 50) from generate_series(2, 500) i`)
  await waitFor(() => changes().length === 500, { timeoutMs: 20_000 })
  await site.sql(`insert into ${table} values (501, 'end')`)
  await waitFor(() => changes().length === 501)
  assert.ok(cut > 0, 'something was cut off')
  assert.deepEqual(changes().map(({ value }) => value.id), Array.from({ length: 501 }, (_, i) => i + 1))
  assert.equal(controls('must-refetch').length, 0)
})
