// The feed finds shapes by the constants of their where clauses. What it says must be what each where clause alone says:
// the feed is compared with the log of each shape (which evaluates its clause by itself), and the log with SELECT.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served, waitFor } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'

const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? 20240607)
const SHAPES = 400
const TRANSACTIONS = 60

const schema = `
  create extension citext;
  create collation nobody_shouts (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
  create type mood as enum ('sad', 'ok', 'happy');
  create domain small as int;
  create table r (id int primary key, i2 smallint, i4 int, i8 bigint, f4 real, f8 float8, nu numeric, t text,
    tc text collate "en-x-icu", ci text collate nobody_shouts, vc varchar(9), bp bpchar(4), ct citext, d date, ts timestamp,
    tz timestamptz, b bool, u uuid, e mood, j jsonb, ia int[], ta text[], dom small, by bytea, iv interval, big text);
  alter table r alter big set storage external;`

const site = served({ schema, conf: ["shapefeed.allowed_functions='public.over,public.steep,public.eq_one,public.eq_two'"] })

/** Some values of each column, as SQL. Few enough that they meet, and with the ones that are equal without being the same. */
const long = "repeat('long', 1000)"
const values = {
  i2: ['0', '1', '-1', '32767'], i4: ['0', '1', '2', '-1', '70000', '2147483647'], i8: ['0', '1', '-1', '70000', '4294967297', '9223372036854775807'],
  f4: ["'0'", "'-0'", "'NaN'", '1', '0.1', "'Infinity'"], f8: ["'0'", "'-0'", "'NaN'", '1', '0.1', "'-Infinity'"],
  nu: ['0', '1', '1.0', '1.00', '-1', "'NaN'", '0.1'], t: ["'a'", "'A'", "''", "'é'", "E'a\\nb'", "'a  '", "'50%'", "'ab'", "'abc'", "'éa'"],
  tc: ["'a'", "'A'", "''", "'é'", "'ab'", "'b'", "'f'"], ci: ["'a'", "'A'", "'b'", "'É'", "'é'"], vc: ["'a'", "'A'", "'a  '", "''"], bp: ["'a'", "'a   '", "'ab'", "''"],
  ct: ["'a'", "'A'", "'b'"], d: ["'2024-01-01'", "'2024-01-02'", "'infinity'"], ts: ["'2024-01-01'", "'2024-01-01 12:00'", "'infinity'"],
  tz: ["'2024-01-01 00:00Z'", "'2024-01-01 12:00Z'", "'-infinity'"], b: ['true', 'false'],
  u: ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"], e: ["'sad'", "'ok'", "'happy'"],
  j: [`'{"k": 1}'`, `'{"k": 1.0}'`, `'[1, 2]'`, `'null'`], ia: ["'{1,2}'", "'{1,NULL}'", "'{}'", "'{{1},{2}}'"], ta: ["'{a,b}'", "'{NULL}'", "'{}'"],
  dom: ['0', '1', '2'], by: ["'\\x00'", "'\\x'", "'\\xff'"], iv: ["'1 day'", "'24 hours'", "'1 month'", "'30 days'"], big: ["'short'", long, `${long} || 'er'`],
}
const columns = Object.keys(values)
const typeOf = { i2: 'smallint', i4: 'int', i8: 'bigint', f4: 'real', f8: 'float8', nu: 'numeric', vc: 'varchar', bp: 'bpchar', ct: 'citext', d: 'date',
  ts: 'timestamp', tz: 'timestamptz', b: 'bool', u: 'uuid', e: 'mood', j: 'jsonb', ia: 'int[]', ta: 'text[]', dom: 'int', by: 'bytea', iv: 'interval' }

/** Random conditions. Some are no conditions at all: the server says so, and the test goes on without them. */
function conditions(random) {
  const { pick, chance, below } = random
  const integers = ['i2', 'i4', 'i8', 'dom']
  const texts = ['t', 'tc', 'vc', 'bp', 'ct', 'big']
  const cast = (column, value) => {
    if (integers.includes(column) && chance(0.4)) return `${value}::${pick(['smallint', 'int', 'bigint', 'numeric'])}`
    if (['f4', 'f8', 'nu'].includes(column) && chance(0.4)) return `${value}::${pick(['real', 'float8', 'numeric'])}`
    return chance(0.3) ? `${value}::${typeOf[column] ?? 'text'}` : value
  }
  const constant = (column) => (chance(0.04) ? 'null' : cast(column, pick(values[column])))
  const order = (column) => {
    const collation = texts.includes(column) ? pick(['', '', ' collate "C"', ' collate "en-x-icu"', ' collate nobody_shouts']) : ''
    const sides = [`${column}${collation}`, constant(column)]
    return (chance(0.3) ? sides.reverse() : sides).join(` ${pick(['<', '<=', '>', '>='])} `)
  }
  const prefix = () => {
    const column = pick(chance(0.1) ? ['by', 'ci'] : texts)
    const collation = column === 'ci' || chance(0.2) ? pick([' collate "C"', ' collate "en-x-icu"']) : ''
    const pattern = pick(["'a%'", "'a%%'", "'ab%'", "'a_%'", "'%'", "'a%b'", "'a'", "'A%'", "'50\\%'", "'50\\%%'", "'é%'", "E'a\n%'", "'x%' escape 'x'", "'axb%' escape 'x'"])
    return pick([`${column}${collation} like ${pattern}`, `${column}${collation} like ${pattern}`, `${column}${collation} ^@ ${pick(["'a'", "''", "'é'", "'ab'"])}`,
      `starts_with(${column}::text${collation}, ${pick(["'a'", "'A'", "'50%'"])})`, `${column}${collation} not like ${pattern}`])
  }
  const list = (column) => Array.from({ length: 1 + below(chance(0.2) ? 14 : 3) }, () => constant(column)).join(', ')
  const atoms = [
    (c) => `${c} = ${constant(c)}`, (c) => `${c} = ${constant(c)}`, (c) => `${constant(c)} = ${c}`,
    (c) => `${c} in (${list(c)})`, (c) => `${c} = any (array[${list(c)}])`, (c) => `${c} = any (array[null, ${list(c)}])`,
    (c) => `${c} not in (${list(c)})`, (c) => `${c} <> ${constant(c)}`, (c) => order(c), (c) => order(c), (c) => `${order(c)} and ${order(c)}`,
    (c) => `${c} ${pick(['', 'not ', ''])}between ${pick(['', 'symmetric '])}${constant(c)} and ${constant(c)}`, () => prefix(), () => prefix(), (c) => `${c} is null`, (c) => `${c} is not distinct from ${constant(c)}`,
    (c) => `${c} is not null`, (c) => `(${c}, i4) = (${constant(c)}, ${constant('i4')})`, (c) => `${c}::text collate "C" ilike '%a%'`,
    () => `j @> '{"k": 1}'`, () => `b`, () => `not b`, () => `t collate nobody_shouts = ${pick(values.t)}`,
    () => `i4 = i8`, () => `i4 + 0 = 1`, () => `coalesce(i4, 1) = 1`, () => 'false', () => 'true', () => 'null::bool',
  ]
  const atom = () => pick(atoms)(pick(columns))
  const tree = (depth) => {
    if (depth === 0 || chance(0.35)) return atom()
    const sides = Array.from({ length: 2 + below(2) }, () => tree(depth - 1))
    const text = `(${sides.join(pick([' and ', ' and ', ' or ']))})`
    return chance(0.08) ? `not ${text}` : text
  }
  const range = () => (chance(0.5) ? prefix() : order(pick(columns)))
  return { next: () => (chance(0.25) ? [range(), `${range()} and ${range()}`, `${range()} or ${atom()}`][below(3)] : tree(2)) }
}

function transaction({ pick, below, chance }, table = 'r') {
  const value = (column) => (chance(0.12) ? 'null' : pick(values[column]))
  const id = () => 1 + below(40)
  const insert = () => {
    const some = columns.filter(() => chance(0.8))
    return `insert into ${table} (${['id', ...some]}) values (${[id(), ...some.map(value)]}) on conflict do nothing`
  }
  const update = () => {
    const some = new Set(Array.from({ length: 1 + below(4) }, () => pick(columns)))
    return `update ${table} set ${[...some].map((column) => `${column} = ${value(column)}`)} where id = ${id()}`
  }
  const others = [() => `delete from ${table} where id = ${id()}`, () => `update ${table} set id = id + 40 where id = ${id()} and id < 41`,
    () => `delete from ${table} where id > 40`, () => `update ${table} set i4 = ${value('i4')} where id % 5 = ${below(5)}`]
  const statements = Array.from({ length: 1 + below(4) }, () => (chance(0.5) ? update() : chance(0.6) ? insert() : pick(others)()))
  return `begin; ${statements.join('; ')}; commit;`
}

const define = async (client, clause, columnList = null, table = 'r') => {
  const { rows: [{ definition }] } = await client.query(
    "select shapefeed._define(array['public', $3], $1, null, $2, 'default', 'full', null) as definition", [clause, columnList, table])
  return definition.errors || definition.denied ? undefined : definition
}
const attach = async (client, shapes) => {
  const { rows: [{ position }] } = await client.query('select shapefeed._attach($1, $2::jsonb[]) as position',
    [shapes.map(({ id }) => id), shapes.map(({ definition }) => JSON.stringify(definition))])
  return Number(position)
}
const sequenced = (client) => waitFor(
  async () => (await client.query('select pending = 0 and head is not null as done from shapefeed.status')).rows[0].done,
  { what: 'everything is sequenced' })
const head = async (client) => Number((await client.query('select head from shapefeed._head()')).rows[0].head)

/** Everything that the feed has to say up to the head. */
async function drain(client) {
  await sequenced(client)
  const until = await head(client)
  const all = []
  for (;;) {
    const { rows } = await client.query('select * from shapefeed._feed(1000000)')
    all.push(...rows.filter(({ kind }) => kind !== 'upto'))
    if (Number(rows.at(-1).position) >= until) return all
  }
}

/** What the feed said, by shape. */
function byShape(rows) {
  const shapes = new Map()
  for (const { ids, position, n, message, last } of rows.filter(({ kind }) => kind === 'op')) {
    for (const id of ids) shapes.set(id, [...(shapes.get(id) ?? []), { position, n, message, last }])
  }
  return shapes
}

test(`routed is what each where clause alone says (seed ${seed})`, async () => {
  const random = randomFrom(seed)
  const { client } = site
  await client.query('set intervalstyle = iso_8601') // as it is where clauses are evaluated
  await client.query("call shapefeed.track('r')")
  await site.sql(Array.from({ length: 40 }, () => transaction(random)).join('\n'))
  await sequenced(client)
  const shapes = []
  const more = conditions(random)
  let refused = 0
  while (shapes.length < SHAPES) {
    const clause = more.next()
    const definition = await define(client, clause, random.chance(0.3) ? ['id', 'i4', 't', 'big'] : null)
    if (definition) shapes.push({ id: shapes.length + 1, clause, definition })
    else refused++
  }
  assert.ok(refused < 8 * SHAPES, `${refused} of the conditions are refused`)
  const having = (pattern) => shapes.filter(({ definition }) => pattern.test(definition.where ?? '')).length
  assert.ok(having(/ = /) > SHAPES / 3, `only ${having(/ = /)} have an equality`)
  assert.ok(having(/ [<>]=? /) > SHAPES / 4, `only ${having(/ [<>]=? /)} have a range`)
  assert.ok(having(/ ~~ | \^@ |starts_with/) > SHAPES / 8, `only ${having(/ ~~ | \^@ |starts_with/)} have a prefix`)

  const feed = await site.database.connect()
  const from = await attach(feed, shapes)
  const rowsOf = async ({ clause }) => (await client.query(`select id from r where ${clause} order by id`)).rows.map(({ id }) => id)
  for (const shape of shapes) shape.ids = new Set(await rowsOf(shape))
  let attached = shapes
  const said = new Map(shapes.map(({ id }) => [id, []]))
  const collect = async () => {
    const rows = await drain(feed)
    assert.deepEqual(rows.filter(({ kind }) => kind === 'end'), [])
    for (const [id, operations] of byShape(rows)) said.get(id).push(...operations)
  }
  for (let done = 0; done < TRANSACTIONS; done += 10) {
    await site.sql(Array.from({ length: 10 }, () => transaction(random)).join('\n'))
    await collect()
    // Half of them go and come back under the same ids, some of them twice.
    const some = shapes.filter(() => random.chance(0.5))
    await feed.query('select shapefeed._detach($1)', [some.map(({ id }) => id)])
    assert.equal(await attach(feed, [...some, ...some.slice(0, 20)]), await head(client))
  }
  const to = await head(client)
  let operations = 0
  for (const { id, clause, definition, ids } of attached) {
    const { rows } = await client.query('select position, n, message, last from shapefeed._log($1, $2, 0, $3, 100000000) where message is not null',
      [JSON.stringify(definition), from, to])
    assert.deepEqual(said.get(id), rows, `${clause}\n${definition.where}`)
    operations += rows.length
    for (const { message } of rows) {
      const { key, headers } = JSON.parse(message)
      const row = Number(key.match(/"(\d+)"$/)[1])
      if (headers.operation === 'insert') ids.add(row)
      if (headers.operation === 'delete') ids.delete(row)
    }
    assert.deepEqual([...ids].sort((a, b) => a - b), await rowsOf({ clause }), `${clause}\n${definition.where}`)
  }
  assert.ok(operations > 10 * SHAPES, `only ${operations} operations`)
  await feed.end()
})

test(`without a key, too, routed is what each where clause alone says (seed ${seed})`, async () => {
  const random = randomFrom(seed + 2)
  const { client } = site
  await site.sql(`create table loose (like r); alter table loose alter big set storage external; alter table loose alter id drop not null;
    call shapefeed.track('loose');`)
  const change = () => (random.chance(0.2) ? 'insert into loose select * from loose where id < 9 and (select count(*) from loose) < 200' : transaction(random, 'loose'))
  await site.sql(Array.from({ length: 30 }, change).join(';\n'))
  await sequenced(client)
  const shapes = []
  const more = conditions(random)
  while (shapes.length < SHAPES / 4) {
    const clause = more.next()
    const definition = await define(client, clause, random.chance(0.3) ? ['id', 'i4', 't', 'big'] : null, 'loose')
    if (definition) shapes.push({ id: shapes.length + 1, clause, definition })
  }
  const feed = await site.database.connect()
  const from = await attach(feed, shapes)
  const rowsOf = async ({ clause }) => (await client.query(`select distinct l::text as row from loose l where ${clause}`)).rows.length
  for (const shape of shapes) shape.count = await rowsOf(shape)
  const rows = []
  for (let round = 0; round < 4; round++) {
    await site.sql(Array.from({ length: 10 }, change).join(';\n'))
    rows.push(...await drain(feed))
    // Some are counted anew, others are resolved again with all that they have counted.
    await attach(feed, shapes.filter(() => random.chance(0.2)))
    if (round % 2) await site.sql('create index on loose (id)')
  }
  assert.deepEqual(rows.filter(({ kind }) => kind === 'end'), [])
  const said = byShape(rows)
  const to = await head(client)
  let operations = 0
  for (const { id, clause, definition, count } of shapes) {
    const { rows: log } = await client.query('select position, n, message, last from shapefeed._log($1, $2, 0, $3, 100000000) where message is not null',
      [JSON.stringify(definition), from, to])
    assert.deepEqual(said.get(id) ?? [], log, `${clause}\n${definition.where}`)
    const came = log.map(({ message }) => (JSON.parse(message).headers.operation === 'insert' ? 1 : -1)).reduce((a, b) => a + b, 0)
    assert.equal(count + came, await rowsOf({ clause }), clause)
    operations += log.length
  }
  assert.ok(operations > 5 * shapes.length, `only ${operations} operations`)
  await feed.end()
})

test('10,000 shapes on a table without a key: each change is looked up, not tried on all of them', async () => {
  const rows = 2000
  await site.sql(`create table bag (company int, n int); insert into bag select i, 0 from generate_series(1, ${rows}) i; call shapefeed.track('bag');`)
  await sequenced(site.client)
  const timed = async (count) => {
    const feed = await site.database.connect()
    const { rows: defined } = await feed.query(`select shapefeed._define('{public,bag}', 'company = ' || i, null, null, 'default', 'full', null) as definition
      from generate_series($1::int, $2::int) i`, [rows + 1, rows + count])
    const one = await define(feed, 'company = 7 and n >= 0', null, 'bag')
    await attach(feed, [...defined, { definition: one }].map(({ definition }, i) => ({ id: i + 1, definition })))
    const times = []
    for (let round = 0; round < 5; round++) {
      await site.sql('update bag set n = n + 1;')
      await sequenced(site.client)
      const began = process.hrtime.bigint()
      const told = byShape(await drain(feed))
      times.push(Number(process.hrtime.bigint() - began) / 1e6)
      assert.deepEqual([...told].map(([id, operations]) => [id, operations.length]), [[count + 1, 2]])
    }
    await feed.end()
    return Math.min(...times)
  }
  const [few, many] = [await timed(100), await timed(10_000)]
  console.log(`${rows} changes: ${few.toFixed(1)} ms with 100 shapes, ${many.toFixed(1)} ms with 10,000`)
  assert.ok(many < 5 * few, `${many} ms with 100 times as many shapes, ${few} ms before`)
})

test('without a key nothing is told of rows by columns that the table has only got later', async () => {
  await site.sql(`create table grown (v text, n int); insert into grown values ('old', 1), ('old', 2); call shapefeed.track('grown');`)
  await sequenced(site.client)
  const feed = await site.database.connect()
  const defined = async (clause) => ({ definition: await define(site.client, clause, ['v'], 'grown') })
  await attach(feed, [{ id: 1, ...await defined(`v = 'old'`) }, { id: 2, ...await defined('n > 0') }])
  await site.sql(`insert into grown values ('old', 3);`)
  assert.deepEqual([...byShape(await drain(feed)).keys()], [1, 2])
  // Both are in the log before the feed looks again: by then a row has three columns.
  await site.sql(`delete from grown where n = 1; insert into grown values ('old', 9); alter table grown add column more int; insert into grown values ('old', 4, 5);`)
  // These begin after that, one of them with a where clause that is known.
  await sequenced(site.client)
  await attach(feed, [{ id: 3, ...await defined(`v = 'old'`) }, { id: 4, ...await defined('n > 1') }])
  const rows = await drain(feed)
  assert.deepEqual(rows.filter(({ kind }) => kind === 'end').flatMap(({ ids }) => ids).sort(), [1, 2])
  assert.deepEqual(byShape(rows).get(1), undefined)
  await site.sql(`delete from grown where n = 2; insert into grown values ('old', 6, 7);`)
  const told = byShape(await drain(feed))
  const keys = (id) => told.get(id).map(({ message }) => [JSON.parse(message).headers.operation, JSON.parse(message).key])
  const both = [['delete', '"public"."grown"/"old"/"2"/_'], ['insert', '"public"."grown"/"old"/"6"/"7"']]
  assert.deepEqual([...told.keys()].sort(), [3, 4])
  assert.deepEqual(keys(3), both)
  assert.deepEqual(keys(4), both)
  await feed.end()
})

test('a division by zero ends its shape and no other of its template', async () => {
  await site.sql(`create table q (id int primary key, company int, n int); call shapefeed.track('q');`)
  await sequenced(site.client)
  const shape = async (id, clause) => {
    const { rows } = await site.client.query("select shapefeed._define('{public,q}', $1, null, null, 'default', 'full', null) as definition", [clause])
    return { id, definition: rows[0].definition }
  }
  const feed = await site.database.connect()
  await attach(feed, [await shape(1, 'company = 1 and 10 / n = 2'), await shape(2, 'company = 2 and 10 / n = 2'), await shape(3, '10 / (n - 1) > 0'),
    await shape(4, '10 / (n - 2) > 0'), await shape(5, 'company in (1, 2)')])
  await site.sql('insert into q values (1, 1, 5), (2, 2, 0), (3, 3, 0);')
  const rows = await drain(feed)
  assert.deepEqual(rows.filter(({ kind }) => kind === 'clause').map(({ ids, message }) => [ids, message]),
    [[[2], 'evaluation failed with SQLSTATE 22012']])
  const told = byShape(rows)
  assert.deepEqual([1, 2, 3, 4, 5].map((id) => told.get(id)?.length ?? 0), [1, 0, 1, 1, 2])
  // Of another company, and so nobody's error; then one that the others raise.
  await site.sql('insert into q values (4, 1, 1); insert into q values (5, 9, 2);')
  const more = await drain(feed)
  assert.deepEqual(more.filter(({ kind }) => kind === 'clause').map(({ ids }) => ids), [[3], [4]])
  assert.deepEqual([...byShape(more)].map(([id, operations]) => [id, operations.length]), [[5, 1]])
  await feed.end()
})

test('what is compiled is dropped when what it is made of changes', async () => {
  await site.sql(`create table live (id int primary key, company int, n int);
    create function over(n int) returns bool language sql immutable as 'select n > 10';
    create function steep(n int) returns bool language sql immutable set search_path = pg_catalog as 'select n > 10';
    call shapefeed.track('live');`)
  await sequenced(site.client)
  const shape = async (id, clause) => {
    const { rows } = await site.client.query("select shapefeed._define('{public,live}', $1, null, '{id,n}', 'default', 'full', null) as definition", [clause])
    return { id, definition: rows[0].definition }
  }
  const feed = await site.database.connect()
  const shapes = [await shape(1, 'company = 7 and over(n)'), await shape(2, 'company = 7 and steep(n)'), await shape(3, 'company = 7'), await shape(4, 'steep(n)')]
  await attach(feed, shapes)
  const told = async (sql) => {
    await site.sql(sql)
    const rows = await drain(feed)
    assert.deepEqual(rows.filter(({ kind }) => kind === 'end'), [])
    return [...byShape(rows).keys()].sort()
  }
  assert.deepEqual(await told('insert into live values (1, 7, 5);'), [3])
  assert.deepEqual(await told('insert into live values (2, 7, 15);'), [1, 2, 3, 4])
  // A function that was inlined has become part of the definition: whoever asks now gets another shape. One that is
  // called says something else from now on, also of rows that do not change: its shapes end.
  const steep = (than) => `create or replace function steep(n int) returns bool language sql immutable set search_path = pg_catalog as 'select n > ${than}';`
  const endsBy = async (sql) => {
    await site.sql(sql)
    return (await drain(feed)).filter(({ kind }) => kind === 'end').flatMap(({ ids }) => ids).sort()
  }
  assert.deepEqual(await endsBy(`${steep(1)} create or replace function over(n int) returns bool language sql immutable as 'select n > 1';`), [2, 4])
  for (const [i, clause] of ['company = 7 and over(n)', 'company = 7 and steep(n)'].entries()) {
    assert.notEqual((await shape(i + 1, clause)).definition.hash, shapes[i].definition.hash)
  }
  const again = [await shape(2, 'company = 7 and steep(n)'), await shape(4, 'steep(n)')]
  await attach(feed, again)
  assert.deepEqual(await told('insert into live values (3, 7, 5);'), [2, 3, 4])
  assert.deepEqual(await told('alter table live add column more int default 3; insert into live values (4, 7, 15);'), [1, 2, 3, 4])
  assert.deepEqual(await told('insert into live values (5, 7, 5);'), [2, 3, 4])
  // The only shape of its template is away while its function changes; a definition of before is none any more.
  await feed.query('select shapefeed._detach(array[2, 4])')
  await site.sql(steep(10))
  await drain(feed)
  await attach(feed, again)
  assert.deepEqual(await endsBy('insert into live values (9, 7, 5);'), [2, 4])
  await attach(feed, [shapes[1], shapes[3]])
  assert.deepEqual(await told('insert into live values (14, 7, 5);'), [3])
  // An operator is replaced by another one of that name.
  await site.sql(`create function eq_one(int, int) returns bool language sql immutable set search_path = pg_catalog as 'select $1 = $2';
    create function eq_two(int, int) returns bool language sql immutable set search_path = pg_catalog as 'select $1 = $2 + 1';
    create operator === (leftarg = int, rightarg = int, function = eq_one);`)
  await attach(feed, [await shape(5, 'n === 77')])
  assert.deepEqual(await told('insert into live values (10, 0, 77); insert into live values (11, 0, 78);'), [4, 5])
  assert.deepEqual(await endsBy('drop operator === (int, int); create operator === (leftarg = int, rightarg = int, function = eq_two);'), [5])
  await attach(feed, [await shape(5, 'n === 77')])
  assert.deepEqual(await told('insert into live values (12, 0, 77);'), [4])
  assert.deepEqual(await told('insert into live values (13, 0, 78);'), [4, 5])
  await feed.query('select shapefeed._detach(array[5])')
  // A column that a clause reads gets another type: its rows cannot be compared any more. Who does not name it goes on.
  assert.deepEqual(await endsBy('alter table live alter company type bigint; insert into live values (6, 7, 15);'), [1, 2, 3])
  await attach(feed, [await shape(1, 'company = 7')])
  assert.deepEqual(await told('insert into live values (7, 7, 5); insert into live values (8, 4294967303, 5);'), [1])
  assert.deepEqual(await told('insert into live values (15, 0, 15);'), [4])
  await feed.end()
})

test('another version of the library behind a collation that a where clause sorts by ends its shape', async () => {
  // The library says another version of another locale: so it looks after an upgrade of the library.
  await site.sql(`create collation upgraded (provider = icu, locale = 'en'); create table sorted (id int primary key, t text); call shapefeed.track('sorted');`)
  await sequenced(site.client)
  const clauses = [`t collate upgraded < 'm'`, `t < 'm' collate "C"`]
  const before = await Promise.all(clauses.map((clause) => define(site.client, clause, null, 'sorted')))
  const at = await head(site.client)
  const { rows: [{ changed }] } = await site.client.query(`with before as materialized (select pg_collation_actual_version('upgraded'::regcollation) version)
    select version is distinct from pg_collation_actual_version('"sv-x-icu"'::regcollation) changed from before`)
  assert.ok(changed, 'both locales have one version: the test says nothing')
  await site.sql(`update pg_collation set colliculocale = 'sv' where collname = 'upgraded';`)
  const later = await site.database.connect() // a library is another one after a restart only
  const log = (definition) => later.query('select * from shapefeed._log($1, $2, 0, $2, 1000)', [JSON.stringify(definition), at])
  await assert.rejects(log(before[0]), { code: 'SF409' })
  await log(before[1])
  const after = await Promise.all(clauses.map((clause) => define(later, clause, null, 'sorted')))
  assert.deepEqual(after.map(({ hash }, i) => hash === before[i].hash), [false, true])
  await later.end()
})

test('explain_shape says of 1,000 random rows what SELECT says', async () => {
  const random = randomFrom(seed + 1)
  const { client } = site
  await client.query('set intervalstyle = iso_8601') // as it is where clauses are evaluated
  await client.query('delete from r')
  for (let id = 1; id <= 1000; id++) {
    const some = columns.filter(() => random.chance(0.8))
    await client.query(`insert into r (${['id', ...some]}) values (${[id, ...some.map((c) => random.pick(values[c]))]})`)
  }
  const more = conditions(random)
  const results = { in: 0, 'not in': 0 }
  for (let id = 1; id <= 1000;) {
    const clause = more.next()
    if (!(await define(client, clause))) continue
    const { rows: is } = await client.query(`select id from r where ${clause}`)
    const isIn = new Set(is.map((row) => row.id))
    for (const last = id + 9; id <= last; id++) { // ten rows each: it is the where clauses that differ
      const { rows } = await client.query("select * from shapefeed.explain_shape('r', $1, key => $2)", [clause, [String(id)]])
      const { step, result } = rows.at(-1)
      assert.equal(step, 'row')
      assert.equal(result, isIn.has(id) ? 'in' : 'not in', `${clause} of ${id}: ${JSON.stringify(rows)}`)
      const all = rows.filter((row) => row.step === 'evaluate').every((row) => row.result === 'true') && rows[0].result === 'found'
      assert.equal(all, isIn.has(id), `${clause} of ${id}: ${JSON.stringify(rows)}`)
      results[result]++
    }
  }
  assert.ok(results.in > 100 && results['not in'] > 100, JSON.stringify(results))
})

test('explain_shape names index entries and conditions, to whoever may SELECT', async () => {
  await site.sql(`create table explained (id int primary key, company int, status text, secret text);
    insert into explained values (1, 7, 'open', 's'), (2, 7, 'done', 's'), (3, 8, 'open', 's');
    create role reader login; grant select (id, company, status) on explained to reader;`)
  const reader = await site.database.connect({ user: 'reader' })
  const explain = async (clause, key) => (await reader.query(
    "select * from shapefeed.explain_shape('explained', $1, columns => '{id}', key => $2)", [clause, key])).rows
  const lines = (rows) => rows.map(({ step, condition, result }) => [step, condition, result])
  const both = "company = 7 and status like 'o%'"
  assert.deepEqual(lines(await explain(both, ['1'])), [['index', `"company" = '7'`, 'found'], ['evaluate', "(status ~~ 'o%'::text)", 'true'], ['row', '1', 'in']])
  assert.deepEqual(lines(await explain(both, ['2'])).slice(1), [['evaluate', "(status ~~ 'o%'::text)", 'not true'], ['row', '2', 'not in']])
  assert.deepEqual(lines(await explain(both, ['3']))[0], ['index', `"company" = '7'`, 'not found'])
  assert.deepEqual(lines(await explain(both, ['4'])).at(-1), ['row', '4', 'no such row'])
  const measured = await explain(both)
  assert.deepEqual(lines(measured), [['index', `"company" = '7'`, null], ['evaluate', "(status ~~ 'o%'::text)", null]])
  assert.ok(measured.every(({ cost_ns: cost }) => cost > 0 && cost < 1e6), JSON.stringify(measured))
  assert.deepEqual(lines(await explain("company in (7, 9) or status = 'x'")).map(([, condition]) => condition), [`"company" = ANY ('{7,9}')`, `"status" = 'x'`])
  assert.deepEqual(lines(await explain('company > 7')), [['index', `"company" > '7'`, null]])
  assert.deepEqual(lines(await explain("company between 7 and 9 and status like 'o%n'")),
    [['index', `"company" >= '7' AND "company" <= '9'`, null], ['evaluate', "(status ~~ 'o%n'::text)", null]])
  assert.deepEqual(lines(await explain("status like 'o%n'", ['1'])),
    [['index', `"status" LIKE 'o%n'`, 'found'], ['evaluate', "(status ~~ 'o%n'::text)", 'true'], ['row', '1', 'in']])
  assert.deepEqual(lines(await explain("starts_with(status, 'o')", ['2'])), [['index', `"status" ^@ 'o'`, 'not found'], ['row', '2', 'not in']])
  assert.deepEqual(lines(await explain('company + 0 > 7')), [['no index', null, null], ['evaluate', '((company + 0) > 7)', null]])
  assert.deepEqual(lines(await explain(null)), [['every row', null, null]])
  await assert.rejects(explain("secret = 's'", ['1']), /permission denied/)
  await reader.end()
})

test('lists of 10,000', async () => {
  const list = Array.from({ length: 10_000 }, (_, i) => 7 * i).join(',')
  await define(site.client, `i4 in (1, ${list})`) // the catalogs are in the cache
  const times = []
  for (let round = 0; round < 5; round++) {
    const { rows: [{ ms }] } = await site.client.query(`with d as materialized (select clock_timestamp() at, shapefeed._define('{public,r}', $1, null, null, 'default', 'full', null) d)
      select extract(epoch from clock_timestamp() - at) * 1000 ms from d where d ->> 'hash' <> ''`, [`i4 in (${round}, ${list})`])
    times.push(Number(ms))
  }
  console.log(`10,000 elements defined in ${times.map((ms) => ms.toFixed(1))} ms`)
  assert.ok(Math.min(...times) <= 50, `${times} ms`)
  const some = Array.from({ length: 1_500 }, (_, i) => i * 3)
  const answer = await site.api.get({ table: 'r', where: `i4 in (${some})`, columns: 'id,i4', offset: '-1' })
  assert.equal(answer.status, 200, answer.text)
})
