// Subsets: rows of a shape as of now, chosen, ordered and cut by the client; changes_only and now.
import assert from 'node:assert/strict'
import net from 'node:net'
import { after, test } from 'node:test'
import { Shape, ShapeStream } from '@electric-sql/client'
import { ok, send, served, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `create type mood as enum ('sad', 'ok', 'happy');
    create table items (id int primary key, name text, n numeric, kind mood, secret text, big int8, tags text[]);
    insert into items select i, 'n' || i % 10, case when i % 7 = 0 then null else i % 13 end,
      (array['sad', 'ok', 'happy']::mood[])[1 + i % 3], 's' || i, 9007199254740993 + i, array['t' || i % 2] from generate_series(1, 100) i;
    create table bag (v text, n int); insert into bag select 'v' || i % 5, i % 3 from generate_series(1, 60) i;
    create table parts (id int, region text, v int, primary key (region, id)) partition by list (region);
    create table parts_a partition of parts for values in ('a');
    create table parts_b (v int, id int not null, region text not null);
    alter table parts attach partition parts_b for values in ('b');
    insert into parts select i, case when i % 2 = 0 then 'a' else 'b' end, i % 5 from generate_series(1, 20) i;
    create table "Odd "" name" ("The Key" int primary key, "key" text, "gone.key" text, base text);
    insert into "Odd "" name" select i, 'k' || i, 'g', 'b' from generate_series(1, 5) i;
    create table demand (id int primary key, secret text); insert into demand select i, 's' from generate_series(1, 20) i;`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '1000' },
})

const streams = []
after(() => streams.forEach((abort) => abort.abort()))

/** GET of a subset: parameters of it without their prefix. */
async function subset(params, of = {}) {
  const own = Object.entries(of).map(([name, value]) => [`subset__${name}`, typeof value === 'object' ? JSON.stringify(value) : value])
  return site.api.get({ table: 'items', offset: '-1', ...params, ...Object.fromEntries(own), ...(own.length ? {} : { subset__x: '' }) })
}

const values = (answer) => ok(answer).json.data.map((message) => message.value)
const ids = (answer) => values(answer).map((value) => Number(value.id))
const selected = async (query) => (await site.client.query(query)).rows.map((row) => row.id)

test('an answer has rows, what is visible in them, and where to go on', async () => {
  const answer = ok(await subset({ log: 'changes_only' }, { where: "name = 'n3'", order_by: 'id', limit: 2 }))
  const { metadata, data } = answer.json
  assert.deepEqual(Object.keys(metadata).sort(), ['database_lsn', 'snapshot_mark', 'xip_list', 'xmax', 'xmin'])
  for (const name of ['xmin', 'xmax', 'database_lsn']) assert.match(metadata[name], /^\d+$/)
  assert.ok(Number.isInteger(metadata.snapshot_mark) && metadata.snapshot_mark >= 0 && metadata.snapshot_mark < 2 ** 31)
  assert.deepEqual(data[0], {
    key: '"public"."items"/"3"',
    value: { id: '3', name: 'n3', n: '3', kind: 'sad', secret: 's3', big: '9007199254740996', tags: '{t1}' },
    headers: { operation: 'insert', relation: ['public', 'items'], snapshot_mark: metadata.snapshot_mark },
  })
  assert.deepEqual(ids(answer), [3, 13])
  assert.equal(answer.cacheControl, 'no-cache')
  assert.equal(answer.headers['electric-snapshot'], 'true')
  assert.ok(answer.upToDate && answer.schema.id && answer.handle)
  for (const name of ['etag', 'electric-has-data', 'electric-cursor']) assert.equal(answer.headers[name], undefined)
  assert.match(answer.offset, /^\d+_0$/)
  const [position] = answer.offset.split('_')
  assert.ok(BigInt(position) < BigInt(metadata.database_lsn))
})

test('a client that has an offset keeps it', async () => {
  const follower = await site.api.follow({ table: 'items' })
  await site.sql("update items set secret = 'x' where id = 50")
  const answer = ok(await subset({ offset: follower.offset, handle: follower.handle }, { where: 'id = 1' }))
  assert.deepEqual([answer.offset, answer.handle], [follower.offset, follower.handle])
  const refused = await subset({ offset: follower.offset, handle: '1-2-0' }, { where: 'id = 1' })
  assert.equal(refused.status, 409)
  await follower.sync()
  assert.equal(follower.seen.length, 1, 'the subset has not moved the client past a change')
})

test('conditions, parameters and orders mean what Postgres means', async () => {
  const cases = [
    [{}, 'true', 'id', ''],
    [{ where: 'n > $1 and name <> $2', params: { 1: '5', 2: 'n4' } }, "n > 5 and name <> 'n4'", 'id', ''],
    [{ where: 'big = $1', params: { 1: '9007199254741000' } }, 'big = 9007199254741000', 'id', ''],
    [{ where: "kind = 'happy'" }, "kind = 'happy'", 'id', ''],
    [{ where: "kind in ('sad', 'ok')" }, "kind <> 'happy'", 'id', ''],
    [{ where: 'name = any($1)', params: { 1: '{"n1","n2"}' } }, "name in ('n1', 'n2')", 'id', ''],
    [{ where: 'true = true' }, 'true', 'id', ''],
    [{ where: "lower(name) like '%3' or tags @> '{t0}'" }, "name like '%3' or tags @> '{t0}'", 'id', ''],
    [{ order_by: 'n desc, id' }, 'true', 'n desc, id', ''],
    [{ order_by: 'n desc nulls last, "name" asc', limit: 15, offset: 5 }, 'true', 'n desc nulls last, name, id', 'limit 15 offset 5'],
    [{ order_by: 'kind, n nulls first', limit: 40 }, 'true', 'kind, n nulls first, id', 'limit 40'],
    [{ order_by: '2 desc, 1', limit: 30 }, 'true', 'name desc, id', 'limit 30'],
    [{ order_by: 'n * 2 + id % 3, id', limit: 30 }, 'true', 'n * 2 + id % 3, id', 'limit 30'],
    [{ order_by: 'name collate "C" desc, id', offset: 95 }, 'true', 'name desc, id', 'offset 95'],
    [{ order_by: '1 + 1', limit: 3 }, 'true', 'id', 'limit 3'],
    [{ order_by: 'id', limit: 9223372036854775807n, offset: 9223372036854775807n }, 'false', 'id', ''],
  ]
  for (const [of, where, order, cut] of cases) {
    const asked = Object.fromEntries(Object.entries(of).map(([name, value]) => [name, typeof value === 'bigint' ? String(value) : value]))
    const truth = await selected(`select id from items where ${where} order by ${order} ${cut}`)
    const found = ids(await subset({}, asked))
    if (!of.order_by) found.sort((a, b) => a - b)
    assert.deepEqual(found, truth, JSON.stringify(asked))
  }
  const within = ids(await subset({ where: 'id <= $1', 'params[1]': '20', columns: 'id' }, { where: 'id > $1', params: { 1: '15' }, order_by: 'name desc' }))
  assert.deepEqual(within, [19, 18, 17, 16, 20])
})

test('the nested form and POST say the same', async () => {
  const nested = await site.api.get({ table: 'items', offset: 'now', 'subset[where]': 'id < $1', 'subset[params][1]': '4', 'subset[order_by]': 'id' })
  assert.deepEqual(ids(nested), [1, 2, 3])
  const flat = { where: 'id < $1', params: { 1: 4 }, order_by: 'id desc', limit: 2, offset: 1, where_expr: { type: 'x' } }
  for (const body of [flat, { subset: flat }]) {
    const answer = await post('table=items&offset=-1&log=changes_only&where=id+%3C+$1&params[1]=3', JSON.stringify(body))
    assert.deepEqual(ids(answer), [1])
    assert.equal(answer.headers['cache-control'], 'no-cache')
    for (const name of ['handle', 'offset', 'schema']) assert.ok(answer.headers[`electric-${name}`])
  }
  for (const body of ['', '{}']) {
    const log = await post('table=items&offset=-1', body)
    assert.equal(log.json.length, 101)
    assert.equal(log.headers['cache-control'], 'no-cache')
  }
  const other = await post('table=items&offset=-1', '{"table": "bag", "log": "changes_only"}')
  assert.equal(other.json.length, 1)
})

function post(query, body, headers = {}) {
  return send(site.sidecar.url, `/v1/shape?${query}`, { method: 'POST', body, headers: { 'content-type': 'application/json', ...headers } })
}

test('bodies that cannot be read', async () => {
  const bad = await post('table=items&offset=-1', '{')
  assert.deepEqual([bad.status, bad.json.error, typeof bad.json.details], [400, 'Invalid JSON in request body', 'string'])
  for (const body of ['[]', '1', 'null', '"x"']) {
    const { status, json, headers } = await post('table=items&offset=-1', body)
    assert.deepEqual([status, json], [400, { error: 'Request body must be a JSON object' }])
    assert.equal(headers['cache-control'], 'no-cache')
    assert.equal(headers['access-control-allow-origin'], '*')
  }
  const long = await post('table=items&offset=-1', JSON.stringify({ where: `name = '${'x'.repeat(66_000)}'` }))
  assert.equal(long.status, 400)
  assert.match(long.json.errors.subset.where[0], /bigger than maximum size/)
  const large = await post('table=items&offset=-1', `{"where":"${'x'.repeat(8_000_000)}"}`)
  assert.deepEqual([large.status, large.json], [413, { error: 'Request body too large' }])
})

test('a body that is no body', async () => {
  const socket = net.connect(site.sidecar.each[0].port, '127.0.0.1')
  let answer = ''
  socket.setEncoding('utf8').on('data', (text) => { answer += text })
  socket.write('POST /v1/shape?table=items&offset=-1 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"whe\r\nzz\r\n')
  await waitFor(() => answer.endsWith('{"error":"Failed to read request body"}'), { what: answer })
  assert.match(answer, /^HTTP\/1\.1 400 /)
  assert.match(answer, /access-control-allow-origin: \*/)
  socket.destroy()
})

test('errors by field', async () => {
  const refused = async (of, errors, params = {}) => {
    const { status, json, text } = await subset(params, of)
    assert.equal(status, 400, `${JSON.stringify(of)}: ${text}`)
    const { subset: found } = json.errors
    for (const [field, texts] of Object.entries(errors)) {
      if (texts instanceof RegExp) assert.match(String(found[field]), texts)
      else assert.deepEqual(found[field], texts, JSON.stringify(of))
    }
    assert.deepEqual(Object.keys(found), Object.keys(errors))
  }
  const order = { order_by: ['order_by is required when limit or offset is present'] }
  await refused({ limit: 1 }, order)
  await refused({ offset: 1 }, order)
  await refused({ limit: 0, order_by: 'id' }, { limit: ['must be greater than 0'] })
  await refused({ offset: -1, order_by: 'id' }, { offset: ['must be greater than or equal to 0'] })
  await refused({ limit: 'x', order_by: 'id' }, { limit: ['is invalid'] })
  await refused({ params: '{x' }, { params: ['params must be valid JSON'] })
  await refused({ params: '[1]' }, { params: ['params must be a JSON object'] })
  await refused({ params: { a: 1 } }, { params: ['Parameters can only use numbers as keys'] })
  await refused({ params: { 2: 1 } }, { params: ['Parameters must be numbered sequentially, starting from 1'] })
  await refused({ where: 'id in (select 1)' }, { where: ['Subqueries are not allowed in subsets'] })
  await refused({ where: 'exists (select 1)' }, { where: ['Subqueries are not allowed in subsets'] })
  await refused({ where: 'id = 1 and foo = 2' }, { where: ['At location 11: unknown reference foo'] })
  await refused({ where: '1 x 1' }, { where: ['At location 17: syntax error at or near "x"'] })
  await refused({ where: 'id = $1' }, { where: ['parameter $1 was not provided'] })
  await refused({ where: "kind = 'blue'" }, { where: 'invalid input value for enum mood: "blue"' })
  await refused({ where: 'kind = $1', params: { 1: 'blue' } }, { where: 'invalid input value for enum mood: "blue"' })
  await refused({ where: '1 / (id - id) = 1' }, { where: ['evaluation failed with SQLSTATE 22012'] })
  await refused({ order_by: 'foo' }, { order_by: ['At location 0: unknown reference foo'] })
  await refused({ order_by: 'id, $1' }, { order_by: ['At location 4: parameter $1 is not supported in ORDER BY clauses'] })
  await refused({ order_by: 'id; select 1' }, { order_by: ['Unexpected `;` in order by'] })
  await refused({ order_by: 'id limit 1' }, { order_by: ['malformed query ending with SQL clauses'] })
  await refused({ order_by: 'random()' }, { order_by: /^At location 0: .*random/ })
  await refused({ order_by: 'id, (select 1)' }, { order_by: /^At location 4: cannot use subquery in ORDER BY clauses$/ })
  await refused({ order_by: '9' }, { order_by: ['At location 0: ORDER BY position 9 is not in select list'] })
  await refused({ order_by: "'x'" }, { order_by: /^At location 0: non-integer/ })
  await refused({ order_by: 'id using <' }, { order_by: /USING/ })
  const known = { queryable_columns: 'id,name' }
  await refused({ where: "id = 1 or secret like 's%'" }, { where: ['At location 10: unknown reference secret'] }, known)
  await refused({ order_by: 'name, secret' }, { order_by: ['At location 6: unknown reference secret'] }, known)
  assert.deepEqual(Object.keys(values(await subset(known, { where: 'id = 1' }))[0]), ['id', 'name'])
  const fields = async (params) => (await subset(params, { where: 'id = 1' })).json.errors
  assert.deepEqual(await fields({ queryable_columns: 'name' }), {
    queryable_columns: ['The list of queryable columns must include all primary key columns, missing: id'],
  })
  assert.deepEqual(await fields({ queryable_columns: 'id,foo,bar', columns: 'id' }), {
    queryable_columns: ['The following queryable columns are not found on the table: foo, bar'],
  })
})

test('nothing can be injected', async () => {
  const marks = ["'; drop table items; --", '"; drop table items; --', 'id) ; drop table items; --', 'id desc; truncate items', "') or true --",
    '1); delete from items; select (1', 'id/**/;/**/drop/**/table/**/items', "\\'; drop table items; --", '$$; drop table items; $$', 'id union select null']
  for (const mark of marks) {
    for (const of of [{ order_by: mark }, { where: mark }, { where: 'name = $1', params: { 1: mark } }, { order_by: `"${mark}"` }, { where: `"${mark}" = 1` }, { limit: mark, order_by: 'id' }, { params: mark }]) {
      const { status, json } = await subset({}, of)
      assert.ok(status === 400 || (status === 200 && json.data.length === 0), `${JSON.stringify(of)}: ${status}`)
    }
    for (const params of [{ table: mark }, { columns: mark }, { columns: `id,"${mark.replaceAll('"', '""')}"` }, { queryable_columns: mark }, { where: mark }, { 'params[1]': mark, where: 'name = $1' }]) {
      const { status, json } = await subset({ offset: '-1', ...params }, { where: 'true' })
      assert.ok(status === 400 || (status === 200 && json.data.length === 0), `${JSON.stringify(params)}: ${status}`)
    }
  }
  assert.equal(ids(await subset({}, { where: 'true' })).length, 100)
  const odd = await site.api.get({ table: '"Odd "" name"', offset: '-1', subset__where: '"key" <> $1', subset__params: '{"1":"k2"}', subset__order_by: '"The Key" desc' })
  assert.deepEqual(values(odd).map((value) => value['The Key']), ['5', '4', '3', '1'])
})

// What was committed and has no position yet is not in a subset: it is taken off the rows as they are now.
test('rows are those of the newest batch end, whatever was committed after it', async () => {
  for (const table of ['items', 'bag', 'parts']) await subset({ table }, { where: 'false' }) // captured from now on
  const worker = async () => (await site.client.query("select pid from pg_stat_activity where backend_type like 'shapefeed%' and datname = current_database()")).rows[0]?.pid
  const pid = await worker()
  assert.ok(pid, 'there is a sequencer')
  process.kill(pid, 'SIGSTOP')
  try {
    const truth = async (query) => (await site.client.query(query)).rows
    const before = {
      items: await truth('select id from items order by n desc nulls last, id limit 20 offset 3'),
      names: await truth("select id from items where name = 'n5' order by id"),
      bag: await truth('select distinct v, n from bag order by v desc, n'),
      parts: await truth('select id, region, v from parts where v > 1 order by v, region, id'),
    }
    await site.sql(`update items set n = 100 where id in (1, 2, 3); update items set id = id + 1000 where id in (12, 25); delete from items where n = 12;
      insert into items values (500, 'n5', 50, 'ok', 'new', 1, '{}'), (501, 'n5', null, 'ok', 'new', 1, '{}'); update items set name = 'n5' where id = 11; update items set name = 'n6' where id = 15;
      delete from items where id = 501; insert into items values (501, 'n5', 99, 'sad', 'again', 1, '{}');
      delete from bag where v = 'v1'; insert into bag values ('v9', 9), ('v2', 2); delete from bag where ctid = (select ctid from bag where v = 'v3' limit 1);
      update bag set n = 7 where v = 'v4';
      update parts set region = 'b' where id = 4; update parts set v = 4 where id in (1, 2); delete from parts where id = 9; insert into parts values (100, 'a', 3)`)
    const number = (rows) => rows.map((row) => row.id)
    assert.deepEqual(ids(await subset({}, { order_by: 'n desc nulls last', limit: 20, offset: 3 })), number(before.items))
    assert.deepEqual(ids(await subset({}, { where: "name = 'n5'", order_by: 'id' })), number(before.names))
    assert.deepEqual(ids(await subset({ columns: 'id' }, { where: "name = 'n5'", order_by: 'id' })), number(before.names))
    const text = (rows) => rows.map((row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, String(value)])))
    assert.deepEqual(values(await subset({ table: 'bag' }, { order_by: 'v desc, n' })), text(before.bag))
    assert.deepEqual(values(await subset({ table: 'bag' }, { order_by: 'v desc, n', limit: 3, offset: 2 })), text(before.bag).slice(2, 5))
    assert.deepEqual(values(await subset({ table: 'parts' }, { where: 'v > 1', order_by: 'v, region, id' })), text(before.parts))
  } finally {
    process.kill(pid, 'SIGCONT')
  }
  const now = await selected("select id from items where name = 'n5' order by id")
  await waitFor(async () => JSON.stringify(ids(await subset({}, { where: "name = 'n5'", order_by: 'id' }))) === JSON.stringify(now))
})

test('an open transaction is in xip_list, and its change is still to come', async () => {
  const other = await site.database.connect()
  await other.query('begin')
  await other.query("update items set secret = 'open' where id = 20")
  const { rows: [{ xid }] } = await other.query('select pg_current_xact_id()::text as xid')
  await site.sql("update items set secret = 'done' where id = 21")
  await waitFor(async () => values(await subset({}, { where: 'id = 21' }))[0].secret === 'done')
  const answer = ok(await subset({ offset: 'now', log: 'changes_only' }, { where: 'id in (20, 21)' }))
  assert.ok(answer.json.metadata.xip_list.includes(xid), JSON.stringify(answer.json.metadata))
  await other.query('commit')
  await other.end()
  const params = { table: 'items', log: 'changes_only', handle: answer.handle, offset: answer.offset }
  await waitFor(async () => ok(await site.api.get(params)).operations.some((message) => message.value.secret === 'open'))
})

test('changes_only starts without rows, and now at the end', async () => {
  const start = ok(await site.api.get({ table: 'items', offset: '-1', log: 'changes_only' }))
  assert.deepEqual([start.json.length, start.controls[0].headers.control, start.offset], [1, 'snapshot-end', '0_0'])
  assert.match(start.cacheControl, /^public, max-age=60,/)
  const now = ok(await site.api.get({ table: 'items', offset: 'now' }))
  assert.deepEqual([now.json.length, now.controls[0].headers.control, now.hasData, now.upToDate], [1, 'up-to-date', 'false', true])
  await site.sql("update items set secret = 'later' where id = 30; delete from items where id = 31")
  for (const from of [{ handle: start.handle, offset: start.offset, log: 'changes_only' }, { handle: now.handle, offset: now.offset }]) {
    const seen = await waitFor(async () => {
      const { operations } = ok(await site.api.get({ table: 'items', ...from }))
      return operations.length === 2 && operations
    })
    assert.deepEqual(seen.map((message) => message.headers.operation), ['update', 'delete'])
  }
})

test('the stock client: an on-demand shape that loads subsets', async () => {
  for (const subsetMethod of ['GET', 'POST']) {
    await site.sql("update demand set secret = 's' where id <= 10")
    const abort = new AbortController()
    streams.push(abort)
    const stream = new ShapeStream({ url: `${site.sidecar.url}/v1/shape`, params: { table: 'demand' }, log: 'changes_only', offset: 'now', signal: abort.signal, subsetMethod, liveSse: subsetMethod === 'POST' })
    const shape = new Shape(stream)
    const wanted = [{ where: 'id <= $1', params: { 1: '5' }, orderBy: 'id', limit: 3 }, { where: 'id = any($1)', params: { 1: '{7,8}' }, orderBy: 'id desc', limit: 10 }]
    const fetched = await Promise.all(wanted.map((one) => stream.fetchSnapshot(one)))
    assert.deepEqual(fetched.map(({ data }) => data.map((message) => message.value.id)), [[1, 2, 3], [8, 7]])
    await Promise.all(wanted.map((one) => shape.requestSnapshot(one)))
    const held = () => new Map(shape.currentRows.map((row) => [row.id, row.secret]))
    await waitFor(() => held().size === 5)
    await site.sql(`update demand set secret = '${subsetMethod}' where id in (1, 8, 9)`)
    await waitFor(() => held().get(1) === subsetMethod && held().get(8) === subsetMethod)
    assert.deepEqual([...held().keys()].sort(), [1, 2, 3, 7, 8])
    // A rotation: the stream starts again, and what was loaded is loaded again.
    await site.sql(`call shapefeed.rotate('demand')`)
    await site.sql(`update demand set secret = 'after' where id = 2`)
    await waitFor(() => held().get(2) === 'after' && held().size === 5)
    abort.abort()
  }
})
