// What is wrong with a request is said in the protocol's words, in its order, with status 400.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served } from '../lib/index.mjs'

const site = served({
  schema: `
    create table items (id int primary key, title text, done bool, doubled int generated always as (id * 2) stored);
    create table keyed (b int, a int, c text, primary key (a, b));
    create table empty ();
    create view a_view as select 1 as id;
    create unlogged table an_unlogged (id int primary key);
    insert into items values (1, 'a', true);`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '1000' },
})

const invalid = (errors) => ({ message: 'Invalid request', errors })

async function refused(query, errors) {
  const answer = await site.api.get(query)
  assert.equal(answer.status, 400, `${query}: ${answer.text}`)
  assert.deepEqual(answer.json, invalid(errors), query)
  assert.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
  assert.equal(answer.cacheControl, 'no-store')
  assert.equal(answer.headers['surrogate-control'], 'no-store')
  assert.equal(answer.headers['access-control-allow-origin'], '*')
  for (const name of ['handle', 'offset', 'schema', 'cursor']) assert.equal(answer[name], undefined)
}

const some = '1-2-0' // a handle in the right form

test('casts and the presence of an offset are checked together, before everything else', async () => {
  await refused('', { offset: ["can't be blank"] })
  await refused('offset=', { offset: ["can't be blank"] })
  await refused('offset=%20', { offset: ["can't be blank"] })
  await refused('replica=some&log=some&params=%7B%7D&live', {
    replica: ['is invalid'], log: ['is invalid'], params: ['is invalid'], offset: ["can't be blank"],
  })
  await refused('offset=bad&replica=Full&table=nothing', { replica: ['is invalid'] })
  await refused('offset=bad&params[1][2]=x', { params: ['is invalid'] })
  await refused('offset=bad&experimental_live_sse=banana', { live_sse: ['is invalid'] })
})

test('then the form of the offset', async () => {
  for (const offset of ['10', '1_2_3', '10_32.1', '-2_0', '-1_1', '1_-2', 'inf', '0_', '_0', 'NOW', '1 _2', '0x1_0', '١_0']) {
    await refused({ offset, table: 'a-b', live: '' }, { offset: ['has invalid format'] })
  }
})

test('then the handle', async () => {
  await refused('offset=0_0&table=a-b', { handle: ["can't be blank when offset != -1"] })
  await refused('offset=0_0&handle=&live', { handle: ["can't be blank when offset != -1"] })
})

test('then live, which is on unless it is exactly false', async () => {
  for (const live of ['live', 'live=', 'live=true', 'live=0', 'live=FALSE']) {
    await refused(`offset=-1&table=a-b&${live}`, { live: ["can't be true when offset == -1"] })
    await refused(`offset=now&table=a-b&${live}`, { live: ["can't be true when offset is 'now'"] })
  }
  assert.equal((await site.api.get('offset=-1&table=items&live=false')).status, 200)
})

test('then live_sse', async () => {
  await refused(`offset=0_0&handle=${some}&live_sse&table=a-b`, { live_sse: ["can't be true unless live is also true"] })
  await refused(`offset=-1&experimental_live_sse=1&table=a-b`, { live_sse: ["can't be true unless live is also true"] })
  assert.equal((await site.api.get('offset=-1&table=items&live_sse=false&experimental_live_sse=banana')).status, 200)
})

test('then the name of the table', async () => {
  await refused('offset=-1', { table: ["can't be blank"] })
  await refused('offset=-1&table=', { table: ["can't be blank"] })
  await refused('offset=-1&table=%20%20', { table: ["can't be blank"] })
  await refused({ offset: '-1', table: 'a.' }, { table: ['Invalid zero-length delimited identifier'] })
  await refused({ offset: '-1', table: '.a' }, { table: ['Invalid zero-length delimited identifier'] })
  await refused({ offset: '-1', table: '""' }, { table: ['Invalid zero-length delimited identifier'] })
  await refused({ offset: '-1', table: 'a-b' }, { table: ['Invalid unquoted identifier contains special characters: a-b'] })
  await refused({ offset: '-1', table: '1a' }, { table: ['Invalid unquoted identifier contains special characters: 1a'] })
  await refused({ offset: '-1', table: '"a"b"' }, { table: ['Invalid identifier with unescaped quote: a"b'] })
  await refused({ offset: '-1', table: 'a'.repeat(64) }, { table: ['Identifier is too long (max length is 63)'] })
  await refused({ offset: '-1', table: 'a.b.c' }, { table: ['Invalid relation identifier, too many delimiters: a.b.c'] })
})

const missing = (schema, table) => ({
  table: [`Table "${schema}"."${table}" does not exist. If the table name contains capitals or special characters you must quote it.`],
})

test('then the table itself', async () => {
  await refused('offset=-1&table=nonexistent', missing('public', 'nonexistent'))
  await refused('offset=-1&table=Nowhere.ITEMS', missing('nowhere', 'items'))
  await refused('offset=-1&table=%22Items%22', missing('public', 'Items'))
  await refused('offset=-1&table=a_view', missing('public', 'a_view'))
  await refused('offset=-1&table=empty', missing('public', 'empty'))
  await refused(`offset=5_0&handle=${some}&table=nonexistent`, missing('public', 'nonexistent'))
  for (const table of ['an_unlogged', 'pg_catalog.pg_class', 'shapefeed.tracked', 'information_schema.sql_features']) {
    const { status, json } = await site.api.get({ offset: '-1', table })
    assert.equal(status, 400)
    assert.match(json.errors.table[0], /no shape can be made of it/)
  }
})

test('columns: the key, then unknown ones', async () => {
  await refused({ offset: '-1', table: 'keyed', columns: 'c,x' }, {
    columns: ['The list of columns must include all primary key columns, missing: a, b'],
  })
  await refused({ offset: '-1', table: 'keyed', columns: 'b,a,y,x' }, {
    columns: ['The following columns are not found on the table: y, x'],
  })
  await refused({ offset: '-1', table: 'items', columns: 'id,' }, { columns: ['Invalid zero-length delimited identifier'] })
  await refused({ offset: '-1', table: 'items', columns: 'id,a b' }, {
    columns: ['Invalid unquoted identifier contains special characters: a b'],
  })
  await refused('offset=-1&table=items&columns[1]=id', { columns: ['is invalid'] })
  for (const field of ['columns', 'queryable_columns']) {
    await refused({ offset: '-1', table: 'items', [field]: '"id' }, { [field]: ['Invalid unquoted identifier contains special characters: "id'] })
    await refused({ offset: '-1', table: 'items', [field]: '"i"d"' }, { [field]: ['Invalid identifier with unescaped quote: i"d'] })
    await refused({ offset: '-1', table: 'items', [field]: `id,${'x'.repeat(64)}` }, { [field]: ['Identifier is too long (max length is 63)'] })
    await refused({ offset: '-1', table: 'items', [field]: 'id,""' }, { [field]: ['Invalid zero-length delimited identifier'] })
  }
  await refused({ offset: '-1', table: 'items', columns: 'id,title', queryable_columns: 'id' }, {
    columns: ['The following columns are not found on the table: title'],
  })
})

test('params', async () => {
  const shape = { offset: '-1', table: 'items', where: 'id = $1' }
  await refused({ ...shape, 'params[a]': '1' }, { params: ['Parameters can only use numbers as keys'] })
  await refused({ ...shape, 'params[0]': '1' }, { params: ['Parameters must be numbered sequentially, starting from 1'] })
  await refused({ ...shape, 'params[1]': '1', 'params[3]': '1' }, { params: ['Parameters must be numbered sequentially, starting from 1'] })
  await refused({ ...shape, 'params[99999999999999999999]': '1' }, { params: ['Parameters must be numbered sequentially, starting from 1'] })
  await refused({ ...shape, params: '["1"]' }, { params: ['is invalid'] })
  await refused(shape, { where: ['parameter $1 was not provided'] })
  await refused({ ...shape, where: 'id = $2', 'params[1]': '1' }, { where: ['parameter $2 was not provided'] })
  // None of these makes the server take room for as many; the last would be $1 to Postgres' scanner.
  for (const number of ['65536', '400000000', '4294967297']) {
    const where = [`parameter $${number} was not provided`]
    await refused({ ...shape, where: `id = $${number}`, 'params[1]': '1' }, { where })
    await refused({ ...shape, where: `id in (select id from items where title = $${number} or id = 2)`, 'params[1]': '1' }, { where })
  }
})

test('where', async () => {
  const wrong = {
    '1 x 1': 'At location 17: syntax error at or near "x"',
    'id =': /^At location 19: syntax error at end of input$/,
    'true; drop table items': 'unescaped ";" causing statement split',
    'true limit 1': 'malformed query ending with SQL clauses',
    'true) or (true': /^At location 19: syntax error/,
    id: 'WHERE clause must return a boolean',
    'id = 1 and foo = 2': 'At location 11: unknown reference foo',
    "id = 'x'": /^At location 5: invalid/,
    'title = 1': /^At location 6: /,
    'nofunction(id) = 1': /^At location 0: .*nofunction/,
    'count(*) > 1': /aggregation is not supported in this context/,
    'sum(id) over () > 1': /^At location 0: window functions are not allowed/,
    "id = 'a' || 'b'": /^At location 3: operator does not exist: integer = text/,
    'id ### 1': /^At location 3: operator does not exist/,
    'title::nothing = 1': /^At location 7: type "nothing" does not exist/,
    'true order by 1': 'malformed query ending with SQL clauses',
    'now() > now()': /now\(\)/,
    'random() < 0.5': /random\(\)/,
    "pg_read_file('/etc/passwd') = ''": /pg_read_file/,
    'id in (select 1)': /subquery without a table/,
    '1 / 0 = id': /division by zero/,
    ['x'.repeat(66_000)]: undefined, // the URL is too long
    ['('.repeat(30_000)]: /./,
    [`${'not '.repeat(10_000)}true`]: /./,
    'true group by id': 'malformed query ending with SQL clauses',
    'true union select true': /./,
    'id = (select 1) or items.id = 1': /./,
    'not_a_table.id = 1': /^At location 0: missing FROM-clause entry for table "not_a_table"$/,
    'id = 1::nothing': /^At location 8: type "nothing" does not exist/,
    'id = null::text': /^At location 3: operator does not exist: integer = text/,
    'id in (1, 2': /^At location 26: syntax error at end of input$/,
    "title = 'open": /^At location \d+: unterminated quoted string/,
    'array_agg(id) = array[1]': /aggregation is not supported in this context/,
    'id = $0': /\$0/,
    'id = $99999999999': /./,
  }
  for (const [where, expected] of Object.entries(wrong)) {
    const query = `offset=-1&table=items&where=${encodeURIComponent(where)}`
    if (query.length > 65_000) {
      assert.equal((await site.api.get(query)).status, 414)
    } else if (typeof expected === 'string') {
      await refused(query, { where: [expected] })
    } else {
      const { status, json, text } = await site.api.get(query)
      assert.equal(status, 400, `${where.slice(0, 80)}: ${text}`)
      assert.match(json.errors.where[0], expected)
    }
  }
})

test('a where that fails on a row is a 400 that tells nothing of the row', async () => {
  await site.sql("create table secrets (id int primary key, word text); insert into secrets values (1, 'hush');")
  const { status, json, text } = await site.api.get({ offset: '-1', table: 'secrets', where: 'word::int > 1' })
  assert.equal(status, 400, text)
  assert.ok(json.errors.where)
  assert.doesNotMatch(text, /hush/)
})

test('unknown and empty parameters do not matter', async () => {
  const plain = await site.api.start({ table: 'items' })
  const padded = await site.api.start({
    table: 'items', foo: 'bar', source_id: 'x', where: '', columns: '', replica: '', log: '', handle: '', cursor: 'x', database_id: '',
  })
  assert.equal(padded.handle, plain.handle)
  assert.equal(padded.text, plain.text)
})

test('offsets in other spellings', async () => {
  const { handle } = await site.api.start({ table: 'items' })
  for (const offset of ['0_0', '00_00', '0_inf']) {
    assert.equal((await site.api.get({ table: 'items', offset, handle })).status, 200, offset)
  }
  assert.equal((await site.api.get({ table: 'items', offset: '-1_0' })).handle, handle)
})

test('the same shape in other words has the same handle', async () => {
  const handle = async (params) => (await site.api.start({ table: 'items', ...params })).handle.split('-')[0]
  const first = await handle({ where: "id = 1 and title = 'a'", columns: 'id,title' })
  assert.equal(await handle({ where: "(ID=$1) AND (title = $2)", 'params[1]': '1', 'params[2]': 'a', columns: '"title",id' }), first)
  assert.equal(await handle({ table: 'public."items"', where: "id = 1  and  title = 'a'", 'columns': 'id,title', replica: 'default', log: 'full' }), first)
  const others = [{}, { where: "id = 2 and title = 'a'" }, { columns: 'id' }, { replica: 'full' }, { log: 'changes_only' }]
  const hashes = await Promise.all(others.map((params) => handle({ where: "id = 1 and title = 'a'", columns: 'id,title', ...params })))
  assert.equal(new Set([...hashes.slice(1), first]).size, 5)
})

test('a malformed delete', async () => {
  const refusedDelete = async (query, errors) => {
    const { status, json, cacheControl } = await site.api.delete(query)
    assert.equal(status, 400)
    assert.deepEqual(json, invalid(errors))
    assert.equal(cacheControl, 'no-cache')
  }
  await refusedDelete('', { handle: ["can't be blank when shape definition is missing"] })
  await refusedDelete('handle=x&live=banana', { live: ['is invalid'] })
  await refusedDelete('table=a-b', { table: ['Invalid unquoted identifier contains special characters: a-b'] })
  await refusedDelete('table=nonexistent', missing('public', 'nonexistent'))
  await refusedDelete('table=items&where=foo', { where: ['At location 0: unknown reference foo'] })
})
