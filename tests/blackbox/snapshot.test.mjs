// The start of a shape: one chunk or many, as of one position, whatever happens meanwhile.
import assert from 'node:assert/strict'
import net from 'node:net'
import { test } from 'node:test'
import { ok, served, waitFor } from '../lib/index.mjs'

const chunkBytes = 3000
const site = served({
  schema: `
    create table items (id int primary key, title text, n int);
    insert into items select i, 'title ' || i, i % 10 from generate_series(1, 20) i;
    create table empty (id int primary key);
    create table many (id int primary key, title text);
    insert into many select i, 'title ' || repeat(chr(97 + i % 26), i % 40) from generate_series(1000, 1, -1) i;`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '2000', SHAPEFEED_CHUNK_BYTES: String(chunkBytes) },
})

const ids = ({ operations }) => operations.map(({ value }) => Number(value.id))
const oneTo = (n) => Array.from({ length: n }, (_, i) => i + 1)
const ascending = (list) => [...list].sort((a, b) => a - b)

/** All chunks of a snapshot, the last one has the snapshot-end. */
async function chunks(api, params, { between = async () => {} } = {}) {
  const answers = [ok(await api.get({ ...params, offset: '-1' }))]
  while (answers.at(-1).controls.length === 0) {
    await between(answers.length)
    const { handle, offset } = answers.at(-1)
    answers.push(ok(await api.get({ ...params, handle, offset })))
    assert.equal(answers.at(-1).handle, handle)
  }
  return answers
}

test('a small table', async () => {
  const answer = await site.api.start({ table: 'items' })
  assert.equal(answer.offset, '0_0')
  assert.equal(answer.upToDate, false)
  assert.equal(answer.cursor, undefined)
  assert.equal(answer.hasData, 'true')
  assert.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
  assert.equal(answer.cacheControl, 'public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746')
  assert.equal(answer.etag, `"${answer.handle}:-1:0_0"`)
  assert.deepEqual(answer.schema, { id: { type: 'int4', pk_index: 0, not_null: true }, title: { type: 'text' }, n: { type: 'int4' } })
  assert.deepEqual(ids(answer), oneTo(20), 'in physical order')
  assert.deepEqual(answer.operations[2], {
    key: '"public"."items"/"3"', value: { id: '3', title: 'title 3', n: '3' }, headers: { operation: 'insert', relation: ['public', 'items'] },
  })
  const { control, xmin, xmax, xip_list: xip, ...rest } = answer.json.at(-1).headers
  assert.equal(control, 'snapshot-end')
  assert.deepEqual(rest, {})
  for (const xid of [xmin, xmax, ...xip]) assert.match(xid, /^\d+$/)
  assert.ok(BigInt(xmin) <= BigInt(xmax))
})

test('an empty table has a snapshot-end', async () => {
  const answer = await site.api.start({ table: 'empty' })
  assert.equal(answer.offset, '0_0')
  assert.deepEqual(answer.json.map(({ headers }) => headers.control), ['snapshot-end'])
})

test('where, params and columns', async () => {
  const answer = await site.api.start({ table: 'items', where: 'n = $1 or title like $2', 'params[1]': '3', 'params[2]': '%7', columns: 'id,n' })
  assert.deepEqual(ids(answer), [3, 7, 13, 17])
  assert.deepEqual(answer.operations[0].value, { id: '3', n: '3' })
  assert.deepEqual(Object.keys(answer.schema).sort(), ['id', 'n'])
  assert.deepEqual(ids(await site.api.start({ table: 'items', where: 'false' })), [])
})

test('the start stays the same for as long as its handle lives', async () => {
  const first = await site.api.start({ table: 'items', where: 'id < 1000' })
  await site.sql("insert into items values (900, 'later', 1); update items set title = 'changed' where id = 5; delete from items where id = 6;")
  const again = await site.api.start({ table: 'items', where: 'id < 1000' })
  assert.equal(again.handle, first.handle)
  assert.equal(again.etag, first.etag)
  const sorted = ({ json }) => json.map((message) => JSON.stringify(message)).sort()
  assert.deepEqual(sorted(again), sorted(first))
  const follower = await site.api.follow({ table: 'items', where: 'id < 1000' })
  await follower.until(({ seen }) => seen.length >= 3)
  assert.deepEqual(follower.seen.map(({ headers }) => headers.operation).sort(), ['delete', 'insert', 'update'])
  const fresh = await site.another()
  const elsewhere = await fresh.api.get({ table: 'items', where: 'id < 1000', offset: '-1', handle: first.handle })
  assert.equal(elsewhere.handle, first.handle, 'a good handle that is brought is the one that is served')
  assert.deepEqual(sorted(elsewhere), sorted(first))
  await site.sql("delete from items where id = 900; insert into items values (6, 'title 6', 6);")
})

test('a large snapshot comes in chunks, in key order', async () => {
  const answers = await chunks(site.api, { table: 'many' })
  assert.ok(answers.length > 15, `${answers.length} chunks`)
  assert.deepEqual(answers.flatMap(ids), oneTo(1000))
  for (const [i, { json, offset, upToDate, schema, cacheControl, etag, handle, operations }] of answers.entries()) {
    const last = i === answers.length - 1
    assert.equal(upToDate, false)
    assert.ok(schema)
    assert.match(offset, last ? /^0_0$/ : /^0_[1-9]\d*$/)
    assert.equal(etag, `"${handle}:${i ? answers[i - 1].offset : '-1'}:${offset}"`)
    assert.match(cacheControl, i ? /^public, max-age=60, stale-while-revalidate=300$/ : /max-age=604800/)
    assert.equal(json.at(-1).headers.control, last ? 'snapshot-end' : undefined)
    const sizes = operations.map((message) => JSON.stringify(message).length)
    const bytes = sizes.reduce((sum, size) => sum + size, 0)
    if (!last) assert.ok(bytes >= chunkBytes * 0.9 && bytes - sizes.at(-1) <= chunkBytes * 1.1, `chunk ${i} has ${bytes} bytes`)
  }
  const { handle, offset } = answers.at(-1)
  const end = ok(await site.api.get({ table: 'many', handle, offset }))
  assert.equal(end.upToDate, true)
})

test('any sidecar cuts the same chunks, in any order', async () => {
  const answers = await chunks(site.api, { table: 'many', where: 'id <= 300' })
  const { api } = await site.another()
  const { handle } = answers[0]
  for (const i of [3, 1, 2]) {
    const again = ok(await api.get({ table: 'many', where: 'id <= 300', handle, offset: answers[i].offset }))
    assert.equal(again.text, answers[i + 1].text)
    assert.equal(again.offset, answers[i + 1].offset)
    assert.equal(again.etag, answers[i + 1].etag)
  }
})

test('the chunks are of one moment, whatever is written meanwhile', async () => {
  await site.sql("create table moving (id int primary key, v text); insert into moving select i, repeat('x', 50) from generate_series(1, 400) i;")
  const answers = await chunks(site.api, { table: 'moving' }, {
    between: (n) => site.sql(`
      update moving set v = 'new ${n}' where id % 7 = ${n % 7};
      delete from moving where id % 50 = ${n % 50};
      insert into moving values (${1000 + n}, 'new'), (${-n}, 'new');
      update moving set id = id + 5000 where id between ${n * 9} and ${n * 9 + 3};`),
  })
  assert.ok(answers.length > 8)
  assert.deepEqual(answers.flatMap(ids), oneTo(400))
  assert.ok(answers.flatMap(({ operations }) => operations).every(({ value }) => value.v === 'x'.repeat(50)))
  const follower = await site.api.follow({ table: 'moving' })
  const { rows } = await site.client.query('select id::text, v from moving')
  const sorted = (list) => list.map(({ id, v }) => `${id} ${v}`).sort()
  assert.deepEqual(sorted([...follower.rows.values()]), sorted(rows))
})

test('chunks of composite keys, of texts, and of no key', async () => {
  await site.sql(`
    create table composite (a text, b int, v text, primary key (b, a));
    insert into composite select chr(97 + i % 3) || '/é"', i / 3, repeat('y', 60) from generate_series(0, 299) i;
    create table texts (k text primary key, v text);
    insert into texts select repeat(md5(i::text), 1 + i % 5) || chr(200 + i), repeat('z', 30) from generate_series(1, 200) i;
    create table uuids (k uuid primary key, at timestamptz default now(), v numeric);
    insert into uuids select md5(i::text)::uuid, now(), i from generate_series(1, 200) i;
    create table keyless (a int, v text);
    insert into keyless select i, repeat('w', 60) from generate_series(1, 200) i;`)
  for (const [table, count] of [['composite', 300], ['texts', 200], ['uuids', 200], ['keyless', 200]]) {
    const answers = await chunks(site.api, { table })
    assert.ok(answers.length > 5, `${table}: ${answers.length}`)
    const keys = answers.flatMap(({ operations }) => operations.map(({ key }) => key))
    assert.equal(keys.length, count, table)
    assert.equal(new Set(keys).size, count, table)
    const { handle } = answers[0]
    const { api } = await site.another()
    assert.equal(ok(await api.get({ table, handle, offset: answers[2].offset })).text, answers[3].text, table)
  }
  const { rows } = await site.client.query('select a, b from composite order by b, a')
  const answers = await chunks(site.api, { table: 'composite' })
  assert.deepEqual(answers.flatMap(({ operations }) => operations.map(({ value }) => `${value.b} ${value.a}`)), rows.map(({ a, b }) => `${b} ${a}`))
})

test('a chunk does not end at a key that is too long for an offset', async () => {
  await site.sql(`create table longs (k text primary key);
    insert into longs select repeat(chr(97 + i), 2500) from generate_series(0, 9) i; insert into longs select 'z' || i from generate_series(1, 300) i;`)
  const answers = await chunks(site.api, { table: 'longs' })
  assert.equal(answers.reduce((sum, { operations }) => sum + operations.length, 0), 310)
  for (const { offset } of answers) assert.ok(offset.length < 6000, `${offset.length}`)
  assert.ok(answers[0].operations.length >= 10)
})

test('live inside the snapshot is answered with its next chunk', async () => {
  const first = await site.api.start({ table: 'many' })
  const next = ok(await site.api.get({ table: 'many', handle: first.handle, offset: first.offset, live: 'true' }))
  assert.ok(next.ms < 1500)
  assert.ok(next.operations.length > 0)
  assert.ok(next.cursor)
})

test('a cursor that was made for another key', async () => {
  const first = await site.api.start({ table: 'many' })
  const other = await site.api.start({ table: 'composite' })
  for (const offset of [first.offset, '0_1', '0_99999999999999999999999999']) {
    const { status, handle } = await site.api.get({ table: 'composite', handle: other.handle, offset })
    assert.equal(status, 409, offset)
    assert.ok(handle && handle !== other.handle)
  }
})

test('a row that is larger than a chunk', async () => {
  await site.sql("create table wide (id int primary key, v text); insert into wide select i, repeat('v', 20000) from generate_series(1, 5) i;")
  const answers = await chunks(site.api, { table: 'wide' })
  assert.deepEqual(answers.flatMap(ids), [1, 2, 3, 4, 5])
  assert.ok(answers.every(({ operations }) => operations.length <= 1))
})

test('a transaction that is open at the snapshot is named in it, and comes later', async () => {
  await site.api.start({ table: 'items' }) // tracked
  const writer = await site.database.connect()
  await writer.query("begin; insert into items values (500, 'open', 0)")
  const { rows: [{ xid }] } = await writer.query('select pg_current_xact_id()::text xid')
  await site.sql("insert into items values (501, 'committed', 0);")
  const params = { table: 'items', where: 'id in (500, 501)' }
  const first = await waitFor(async () => {
    const answer = await site.api.start({ ...params, columns: 'id,title', where: `${params.where} and ${Date.now()} > 0 and n = 0` })
    return answer.operations.length === 1 && answer
  })
  const { xmin, xmax, xip_list: xip } = first.json.at(-1).headers
  assert.ok(BigInt(xid) >= BigInt(xmin))
  assert.ok(xip.includes(xid) || BigInt(xid) >= BigInt(xmax), `${xid} in ${xmin}:${xmax}:${xip}`)
  const follower = await site.api.follow({ ...params })
  await writer.query('commit')
  await follower.until(({ rows }) => rows.size === 2)
  assert.deepEqual(follower.seen.map(({ value, headers }) => [value.id, headers.txids]), [['500', [Number(BigInt(xid) & 0xffffffffn)]]])
  await writer.end()
  await site.sql('delete from items where id >= 500;')
})

test('changes_only starts empty', async () => {
  const answer = await site.api.start({ table: 'items', log: 'changes_only' })
  assert.deepEqual(answer.json.map(({ headers }) => headers.control), ['snapshot-end'])
  assert.equal(answer.offset, '0_0')
  assert.equal(answer.upToDate, false)
  assert.equal(answer.cacheControl, 'public, max-age=60, stale-while-revalidate=300', 'not for a week: it would be replayed')
  const follower = await site.api.follow({ table: 'items', log: 'changes_only' })
  await site.sql("update items set n = 100 where id = 1; delete from items where id = 2; insert into items values (2, 'title 2', 2);")
  await follower.until(({ seen }) => seen.length === 3)
  assert.deepEqual(follower.seen.map(({ value, headers }) => [headers.operation, value]), [
    ['update', { id: '1', n: '100' }], ['delete', { id: '2' }], ['insert', { id: '2', title: 'title 2', n: '2' }],
  ])
  await site.sql('update items set n = 1 where id = 1;')
  // It starts at now: nothing that was before is replayed.
  const later = await waitFor(async () => {
    const it = await site.api.follow({ table: 'items', log: 'changes_only' })
    return it.seen.length === 0 && it
  })
  assert.equal(later.rows.size, 0)
})

test('offset=now skips what is there', async () => {
  const answer = ok(await site.api.get({ table: 'items', offset: 'now' }))
  assert.deepEqual(answer.json.map(({ headers }) => headers.control), ['up-to-date'])
  assert.equal(answer.upToDate, true)
  assert.equal(answer.hasData, 'false')
  assert.match(answer.offset, /^\d{16}_0$/)
  assert.ok(answer.schema)
  assert.equal(answer.cacheControl, 'public, max-age=60, stale-while-revalidate=300')
  assert.match(answer.etag, /^"[^:]+:now:\d+_0:[^:]+"$/)
  assert.equal(answer.json[0].headers.global_last_seen_lsn, answer.offset.split('_')[0])
  await site.sql("update items set n = 55 where id = 3; update items set n = 3 where id = 3;")
  const held = ok(await site.api.get({ table: 'items', offset: answer.offset, handle: answer.handle, live: 'true' }))
  assert.equal(held.operations[0].value.id, '3')
  assert.equal((await site.api.get({ table: 'items', offset: 'now', handle: '1-2-3' })).status, 200, 'a handle does not matter')
})

test('the first of several chunks is small; a slow client holds no transaction open', { timeout: 60_000 }, async () => {
  const { sidecar, api } = await site.another({ env: { SHAPEFEED_CHUNK_BYTES: '10485760', SHAPEFEED_COMPRESSION: 'false' } })
  await site.sql("create table big (id int primary key, v text); insert into big select i, repeat('v', 1000) from generate_series(1, 20000) i; call shapefeed.track('big');")
  const firsts = await Promise.all(Array.from({ length: 3 }, (_, i) => api.start({ table: 'big', where: `id>${i}` })))
  for (const { text } of firsts) assert.ok(text.length > 2 ** 20 && text.length < 1.1 * 2 ** 20, `${text.length} bytes`)
  const sockets = await Promise.all(firsts.map(({ handle, offset }, i) => new Promise((resolve, reject) => {
    const socket = net.connect({ host: '127.0.0.1', port: sidecar.port })
    socket.on('error', reject)
    socket.write(`GET /v1/shape?table=big&offset=${offset}&handle=${handle}&where=id%3E${i} HTTP/1.1\r\nhost: x\r\n\r\n`)
    socket.once('data', () => {
      socket.pause() // reads a little, and then no more
      resolve(socket)
    })
  })))
  const open = async (forMs) => (await site.client.query(`select pid, state, query from pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_backend_pid() and (xact_start is not null or backend_xmin is not null) and query not like '%wait(%'
      and state_change < clock_timestamp() - $1 * interval '1 ms'`, [forMs])).rows
  await waitFor(async () => (await open(0)).length === 0, { timeoutMs: 20_000, what: 'the snapshots are read' })
  const seen = []
  for (let i = 0; i < 20; i++) {
    seen.push(...await open(200))
    await new Promise((resolve) => { setTimeout(resolve, 50) })
  }
  assert.deepEqual(seen, [])
  // Others are served, writers and DDL are not held up.
  await site.sql("set lock_timeout = '2s'; alter table big add column extra int; drop table big;")
  for (const socket of sockets) socket.destroy()
})

test('requests that start at the same time share one snapshot', async () => {
  const answers = await Promise.all(Array.from({ length: 30 }, () => site.api.start({ table: 'many', where: 'id <= 500 and id <> 7' })))
  assert.equal(new Set(answers.map(({ text }) => text)).size, 1)
  assert.equal(new Set(answers.map(({ handle }) => handle)).size, 1)
})
