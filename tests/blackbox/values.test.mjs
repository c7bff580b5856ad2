// Values and keys: the same text in the snapshot, in the log, and in what Postgres prints.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served } from '../lib/index.mjs'
import { asPrinted, columnOf, ownTypes, printedRows, rowCount, schemaOf, types, typesRows, typesTable } from '../lib/types.mjs'

const site = served({
  schema: `${ownTypes} ${typesTable('every')} ${typesRows('every', 1)} ${typesTable('copies')}`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '2000' },
})

/** Compares rows of the wire with what Postgres prints, column by column. */
function assertPrinted(rows, printed, what) {
  assert.equal(rows.length, printed.length)
  for (const [number, row] of rows.entries()) {
    for (const [i, type] of types.entries()) {
      const text = row[columnOf(i)]
      assert.ok(text === null || typeof text === 'string', `${what}: ${type[0]} is text`)
      assert.equal(asPrinted(type, text), printed[number][i], `${what}: ${type[0]}`)
    }
  }
}

const byId = (rows) => [...rows].sort((a, b) => a.id - b.id)

test('every built-in type: snapshot, insert, update, full old row', async () => {
  const printed = await printedRows(site.client, 'every', 1, 1 + rowCount)
  for (const replica of ['default', 'full']) {
    const follower = await site.api.follow({ table: 'every', replica })
    assertPrinted(byId(follower.rows.values()).filter(({ id }) => id <= rowCount), printed, 'snapshot')
    const from = replica === 'full' ? 1001 : 2001
    await site.sql(typesRows('every', from))
    await follower.until(({ rows }) => [...rows.values()].some(({ id }) => Number(id) === from + rowCount - 1))
    const rows = byId(follower.rows.values()).filter(({ id }) => id >= from && id < from + rowCount)
    assertPrinted(rows, printed, 'insert')
    // Nulls everywhere, then the values again: each column is in an update.
    const nulls = types.map((_, i) => `${columnOf(i)} = null`).join(', ')
    await site.sql(`update every set ${nulls} where id = ${from + 1};`)
    await follower.until(({ seen }) => seen.some(({ headers }) => headers.operation === 'update'))
    const update = follower.seen.at(-1)
    assert.equal(Object.keys(update.value).length, types.length + 1)
    if (replica === 'full') assertPrinted([update.old_value ?? follower.answers.at(-1).operations.at(-1).old_value], [printed[1]], 'old_value')
    const values = types.map((_, i) => `${columnOf(i)} = other.${columnOf(i)}`).join(', ')
    await site.sql(`update every set ${values} from every other where every.id = ${from + 1} and other.id = 2;`)
    await follower.until(({ seen }) => seen.filter(({ headers }) => headers.operation === 'update').length === 2)
    assertPrinted([follower.seen.at(-1).value], [printed[1]], 'update')
  }
})

test('no type that comes with Postgres and takes input is left out of the others', async () => {
  const { rows } = await site.client.query(`select typname from pg_type where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r', 'm') and typcategory <> 'A'
    and oid not in (select atttypid from pg_attribute where attrelid = 'every'::regclass) order by 1`)
  const refuseInput = ['gtsvector', 'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary', 'pg_dependencies', 'pg_mcv_list', 'pg_ndistinct', 'pg_node_tree']
  assert.deepEqual(rows.map(({ typname }) => typname), refuseInput)
})

test('every type, whatever the settings of who wrote', async () => {
  await site.sql("set timezone = 'Asia/Tokyo'; set datestyle = 'German'; set intervalstyle = 'postgres_verbose'; set bytea_output = 'escape'; set extra_float_digits = -3; " +
    'insert into copies select * from every where id <= 10;')
  const printed = await printedRows(site.client, 'copies', 0, 100)
  const follower = await site.api.follow({ table: 'copies' })
  assertPrinted(byId(follower.rows.values()), printed, 'snapshot')
  await site.sql("set timezone = 'Asia/Tokyo'; set datestyle = 'German'; set lc_monetary = 'C'; insert into copies select id + 100, " +
    `${types.map((_, i) => columnOf(i)).join(', ')} from copies;`)
  await follower.until(({ rows }) => rows.size === 2 * printed.length)
  assertPrinted(byId(follower.rows.values()).slice(printed.length), printed, 'insert')
})

test('electric-schema names each type', async () => {
  const { schema } = await site.api.start({ table: 'every' })
  assert.deepEqual(schema.id, { type: 'int4', pk_index: 0, not_null: true })
  for (const [i, type] of types.entries()) assert.deepEqual(schema[columnOf(i)], schemaOf(type), type[0])
  const some = await site.api.start({ table: 'every', columns: 'id,c1' })
  assert.deepEqual(Object.keys(some.schema).sort(), ['c1', 'id'])
})

test('electric-schema of what has no declared dimensions, and of what is not null', async () => {
  await site.sql(`create table derived as select 1 as id, array[1, 2] as ints; alter table derived add primary key (id), add v varchar(7) not null default '';
    create table composed (id pair, v pair, primary key (id))`)
  assert.deepEqual((await site.api.start({ table: 'derived' })).schema, {
    id: { type: 'int4', pk_index: 0, not_null: true }, ints: { type: '_int4' }, v: { type: 'varchar', max_length: 7, not_null: true },
  })
  assert.deepEqual((await site.api.start({ table: 'composed' })).schema, { id: { type: 'pair', pk_index: 0, not_null: true }, v: { type: 'pair' } })
})

test('a generated column that is stored is one like the others', async () => {
  await site.sql('create table generated (id int primary key, n int, twice int generated always as (n * 2) stored); insert into generated values (1, 4)')
  const follower = await site.api.follow({ table: 'generated', where: 'twice > 5' })
  await site.sql('update generated set n = 5; insert into generated values (2, 1), (3, 3)')
  await follower.until(({ rows }) => rows.size === 2 && [...rows.values()][0].twice === '10')
  assert.deepEqual(follower.seen.map(({ value }) => value), [{ id: '1', n: '5', twice: '10' }, { id: '3', n: '3', twice: '6' }])
  assert.deepEqual(follower.answers[0].schema.twice, { type: 'int4' })
})

test('where on the columns of many types', async () => {
  const wheres = {
    [columnOf(types.findIndex(([type]) => type === 'uuid'))]: 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
    [columnOf(types.findIndex(([type]) => type === 'date'))]: '2024-02-29',
    [columnOf(types.findIndex(([type]) => type === 'timestamptz'))]: '2024-01-01T00:00:00.000Z',
    [columnOf(types.findIndex(([type]) => type === 'numeric'))]: '0.1',
    [columnOf(types.findIndex(([type]) => type === 'mood'))]: "it's",
    [columnOf(types.findIndex(([type]) => type === 'bool'))]: 'true',
    [columnOf(types.findIndex(([type]) => type === 'int8'))]: '9007199254740993',
    [columnOf(types.findIndex(([type]) => type === 'bytea'))]: '\\x0001feff',
    [columnOf(types.findIndex(([type]) => type === 'int4[]'))]: '{}',
    [columnOf(types.findIndex(([type]) => type === 'inet'))]: '192.168.0.1/24',
    [columnOf(types.findIndex(([type]) => type === 'jsonb'))]: '1.10',
    [columnOf(types.findIndex(([type]) => type === 'interval'))]: '-1 day',
  }
  for (const [column, value] of Object.entries(wheres)) {
    const { rows } = await site.client.query({ text: `select id from every where ${column} = $1 and id < 100 order by id`, values: [value] })
    const { operations } = await site.api.start({ table: 'every', where: `${column} = $1 and id < 100`, 'params[1]': value, columns: `id,${column}` })
    assert.ok(rows.length > 0, column)
    assert.deepEqual(operations.map((it) => Number(it.value.id)).sort((a, b) => a - b), rows.map(({ id }) => id), column)
  }
})

const keyTexts = ['plain', 'a/b', '//', '"', '""', "'", '\\', '', ' ', 'ünï/cödé "🎉"', '\n\t', '\u0001', '_', '/_', 'x'.repeat(1000)]

test('keys with quotes, slashes and unicode are the same in snapshot and log', async () => {
  const literals = keyTexts.map((text) => `(${`U&'${[...text].map((c) => `\\+${c.codePointAt(0).toString(16).padStart(6, '0')}`).join('')}'`})`)
  await site.sql(`create schema "Odd ""schema"" / x"; create table "Odd ""schema"" / x"."T.a/b ""c""" ("k/1 ""é""" text primary key, v int);
    insert into "Odd ""schema"" / x"."T.a/b ""c""" select x, 0 from (values ${literals.join(',')}) it (x);`)
  const table = '"Odd ""schema"" / x"."T.a/b ""c"""'
  const follower = await site.api.follow({ table })
  const first = follower.answers[0].operations
  assert.deepEqual(first[0].headers.relation, ['Odd "schema" / x', 'T.a/b "c"'])
  const keyOf = new Map(first.map(({ key, value }) => [value['k/1 "é"'], key]))
  assert.deepEqual([...keyOf.keys()].sort(), [...keyTexts].sort())
  for (const [text, key] of keyOf) assert.ok(key.endsWith(`/"${text.replaceAll('/', '//')}"`), key)
  assert.equal(new Set(keyOf.values()).size, keyTexts.length)
  await site.sql(`update ${table} set v = 1; delete from ${table}; insert into ${table} select x, 2 from (values ${literals.join(',')}) it (x);`)
  await follower.until(({ seen }) => seen.filter(({ headers }) => headers.operation === 'insert').length === keyTexts.length)
  for (const { key, headers, value } of follower.seen) {
    assert.deepEqual(headers.relation, ['Odd "schema" / x', 'T.a/b "c"'])
    assert.equal(key, keyOf.get(value['k/1 "é"']))
  }
  assert.deepEqual(JSON.parse(JSON.stringify(follower.answers[0].schema)), { 'k/1 "é"': { type: 'text', pk_index: 0, not_null: true }, v: { type: 'int4' } })
  // The columns of such names, and a where on them.
  const some = await site.api.start({ table, columns: '"k/1 ""é"""', where: '"k/1 ""é""" = $1', 'params[1]': 'a/b' })
  assert.deepEqual(some.operations.map(({ value }) => value), [{ 'k/1 "é"': 'a/b' }])
})

test('names of plain tables are not escaped', async () => {
  await site.sql('create table "issues for testing" (id uuid primary key); insert into "issues for testing" values (\'00000000-0000-0000-0000-000000000001\');')
  const { operations } = await site.api.start({ table: '"issues for testing"' })
  assert.equal(operations[0].key, '"public"."issues for testing"/"00000000-0000-0000-0000-000000000001"')
})

test('a composite key, in the order of the key', async () => {
  await site.sql(`create table composite (c text, b int, a text, v int, primary key (a, b)); insert into composite values ('x', 1, 'a/', 0), ('x', 1, 'b', 0);`)
  const follower = await site.api.follow({ table: 'composite' })
  assert.deepEqual([...follower.rows.keys()].sort(), ['"public"."composite"/"a//"/"1"', '"public"."composite"/"b"/"1"'])
  assert.deepEqual([follower.answers[0].schema.a.pk_index, follower.answers[0].schema.b.pk_index], [0, 1])
  await site.sql("update composite set v = 7 where a = 'b'; delete from composite where a = 'a/'; insert into composite values (null, 2, '', null);")
  await follower.until(({ seen }) => seen.length === 3)
  assert.deepEqual(follower.seen.map(({ key, value, headers }) => [headers.operation, key, value]), [
    ['update', '"public"."composite"/"b"/"1"', { a: 'b', b: '1', v: '7' }],
    ['delete', '"public"."composite"/"a//"/"1"', { a: 'a/', b: '1' }],
    ['insert', '"public"."composite"/""/"2"', { a: '', b: '2', c: null, v: null }],
  ])
  await site.sql("update composite set b = 3 where a = 'b';")
  await follower.until(({ seen }) => seen.length === 5)
  assert.deepEqual(follower.values.map(({ a, b }) => [a, b]), [['', '2'], ['b', '3']])
})

test('no key: the whole row is one', async () => {
  await site.sql(`create table keyless (a int, b text); insert into keyless values (1, 'x'), (null, ''), (2, null);`)
  const follower = await site.api.follow({ table: 'keyless' })
  assert.deepEqual([...follower.rows.keys()].sort(), ['"public"."keyless"/"1"/"x"', '"public"."keyless"/"2"/_', '"public"."keyless"/_/""'])
  await site.sql("update keyless set b = 'y' where a = 1; delete from keyless where a = 2; insert into keyless values (9, 'z');")
  await follower.until(({ seen }) => seen.length === 4)
  assert.deepEqual(follower.values.map(({ a, b }) => [a, b]), [['1', 'y'], ['9', 'z'], [null, '']])
  const deletes = follower.seen.filter(({ headers }) => headers.operation === 'delete')
  assert.deepEqual(deletes.map(({ value }) => value), [{ a: '1', b: 'x' }, { a: '2', b: null }], 'with the whole row')
  await site.sql("insert into keyless values (9, 'z');") // twins are one row to a client
  await site.sql("delete from keyless where ctid = (select min(ctid) from keyless where a = 9); insert into keyless values (10, 'end');")
  await follower.until(({ rows }) => rows.has('"public"."keyless"/"10"/"end"'))
  assert.ok(follower.rows.has('"public"."keyless"/"9"/"z"'), 'one of the twins is left')
  await site.sql('delete from keyless where a = 9;')
  await follower.until(({ rows }) => !rows.has('"public"."keyless"/"9"/"z"'))
  const again = await site.api.follow({ table: 'keyless' })
  assert.deepEqual([...again.rows.keys()].sort(), [...follower.rows.keys()].sort())
})

test('a partitioned table is one table', async () => {
  await site.sql(`create table parted (id int, at date, v text, primary key (id, at)) partition by range (at);
    create table parted_1 partition of parted for values from ('2024-01-01') to ('2024-02-01');
    create table parted_2 (v text, at date not null, extra int, id int not null);
    alter table parted_2 drop column extra;
    alter table parted attach partition parted_2 for values from ('2024-02-01') to ('2024-03-01');
    insert into parted values (1, '2024-01-10', 'a'), (2, '2024-02-10', 'b');`)
  const part = await site.api.follow({ table: 'parted_2' })
  const whole = await site.api.follow({ table: 'parted' })
  assert.deepEqual(whole.values.map(({ id, v }) => [id, v]), [['1', 'a'], ['2', 'b']])
  assert.deepEqual([...whole.rows.keys()].sort(), ['"public"."parted"/"1"/"2024-01-10"', '"public"."parted"/"2"/"2024-02-10"'])
  assert.deepEqual([...part.rows.keys()], ['"public"."parted_2"/"2"/"2024-02-10"'])
  await site.sql("update parted set v = 'c' where id = 2; insert into parted values (3, '2024-02-11', 'd');")
  await whole.until(({ seen }) => seen.length === 2)
  await part.until(({ seen }) => seen.length === 2)
  for (const { headers } of whole.seen) assert.deepEqual(headers.relation, ['public', 'parted'])
  for (const { headers } of part.seen) assert.deepEqual(headers.relation, ['public', 'parted_2'])
  // A row that moves to another partition: to Postgres, a delete in one and an insert in the other.
  await site.sql("update parted set at = '2024-02-20' where id = 1;")
  await whole.until(({ seen }) => seen.length === 4)
  await part.until(({ seen }) => seen.length === 3)
  assert.deepEqual(whole.seen.slice(2).map(({ key, headers: { operation, key_change_to: to } }) => [operation, key, to]), [
    ['delete', '"public"."parted"/"1"/"2024-01-10"', undefined], ['insert', '"public"."parted"/"1"/"2024-02-20"', undefined],
  ])
  assert.equal(part.seen[2].headers.operation, 'insert')
  // A partition that comes later.
  await site.sql(`create table parted_3 partition of parted for values from ('2024-03-01') to ('2024-04-01'); insert into parted values (4, '2024-03-05', 'e');`)
  const late = await site.api.follow({ table: 'parted' })
  await site.sql("insert into parted values (5, '2024-03-06', 'f');")
  await late.until(({ rows }) => rows.size === 5)
})

test('large values, compressed and out of line', async () => {
  await site.sql(`create table large (id int primary key, n int, big text, wide text, bytes bytea);
    alter table large alter big set storage external;
    insert into large select 1, 0, string_agg(md5(i::text), ''), repeat('x', 300000), decode(string_agg(md5(i::text), ''), 'hex') from generate_series(1, 9000) i;`)
  const { rows: [{ big, bytes }] } = await site.client.query("select big, '\\x' || encode(bytes, 'hex') bytes from large")
  for (const replica of ['default', 'full']) {
    const follower = await site.api.follow({ table: 'large', replica })
    assert.deepEqual(follower.values, [{ id: '1', n: follower.values[0].n, big, wide: 'x'.repeat(300_000), bytes }])
    await site.sql('update large set n = n + 1;')
    await follower.until(({ seen }) => seen.length === 1)
    const columns = Object.keys(follower.seen[0].value)
    if (replica === 'default') assert.deepEqual(columns, ['id', 'n'], 'what is out of line did not change')
    else assert.equal(follower.seen[0].value.big, big, 'what the update left alone is there')
    await site.sql("update large set wide = wide || 'y';")
    await follower.until(({ seen }) => seen.length === 2)
    assert.equal(follower.seen[1].value.wide, `${'x'.repeat(300_000)}y`)
    await site.sql("update large set wide = repeat('x', 300000);")
  }
})
