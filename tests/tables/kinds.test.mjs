// Kinds of tables: inheritance, generated and identity columns, unusual keys and none. Under a random load each copy is what
// SELECT says, and nothing is fetched again.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { freshDatabase, startCluster, startProxy, startSidecar, waitFor } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'
import { randomFrom } from '../lib/random.mjs'

const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? Date.now() % 1_000_000)
console.log(`seed ${seed}`)
const { below, pick, chance } = randomFrom(seed)

let cluster, database, sidecar, proxy, client
before(async () => {
  cluster = await startCluster()
  database = await freshDatabase(cluster)
  sidecar = await startSidecar({ databaseUrl: database.url })
  proxy = await startProxy(sidecar.url)
  client = await database.connect()
})
after(async () => {
  await proxy.stop()
  await sidecar.stop()
  await cluster.stop()
})

/**
 * Runs transactions of random statements, among them failed and rolled-back ones, while clients follow `shapes`: pairs of a
 * shape and the query whose rows it has. Now and then each copy must be what its query says.
 */
async function compare(schema, statements, shapes, { rounds = 6, transactions = 25 } = {}) {
  await client.query(schema)
  const followers = shapes.map(([params, query]) => ({ query, follower: follow(proxy.url, params) }))
  const same = () => Promise.all(followers.map(({ query, follower }) => untilSame(follower, client, query)))
  await same()
  await waitFor(() => followers.every(({ follower }) => follower.stream.isUpToDate), { what: 'all are up to date' })
  proxy.reset()
  const counts = []
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < transactions; i++) await transaction(statements)
    counts.push(await same())
  }
  assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 0 })
  for (const i of shapes.keys()) assert.ok(counts.some((sizes) => sizes[i] > 0), `${shapes[i][1]} had rows`)
  followers.forEach(({ follower }) => follower.stop())
  return counts
}

async function transaction(statements) {
  await client.query('begin')
  for (let n = 1 + below(4); n > 0; n--) {
    await client.query('savepoint s')
    try {
      await client.query(pick(statements)())
      if (chance(0.2)) await client.query('rollback to s')
    } catch (error) {
      if (!error.code?.startsWith('23')) throw error // a key that is there already, and the like
      await client.query('rollback to s')
    }
  }
  await client.query(chance(0.9) ? 'commit' : 'rollback')
}

const id = () => 1 + below(30)
const word = () => `'${pick(['a', 'b', 'c', 'd'])}${below(5)}'`

test('inheritance: a table is read with ONLY, children are tables of their own', async () => {
  const of = (name, query) => [[{ table: name }, query], [{ table: name, where: `v like 'a%'` }, `${query} where v like 'a%'`]]
  await compare(`
    create table parent (id int primary key, v text);
    create table child (id int primary key, w text) inherits (parent);
    create table grandchild (primary key (id)) inherits (child);
    create table stepchild () inherits (parent);
    create table loose (v text);
    create table loose_child (w text) inherits (loose);
    insert into parent values (1, 'a parent');
    insert into child values (1, 'a child', 'w'), (2, 'a child', 'w');
    insert into grandchild values (3, 'a grandchild', 'w');
    insert into loose values ('loose'), ('both');
    insert into loose_child values ('child'), ('both');`,
  [
    () => `insert into parent values (${id()}, ${word()})`,
    () => `insert into child values (${id()}, ${word()}, ${word()})`, // with an id that a parent may have
    () => `insert into grandchild values (${id()}, ${word()}, ${word()})`,
    () => `insert into stepchild select ${id()}, ${word()} where not exists (select from stepchild where id = ${id()})`,
    () => `update parent set v = ${word()} where id = ${id()}`, // of all of them
    () => `update only parent set id = ${id()} where id = ${id()}`,
    () => `update child set w = ${word()}, v = ${word()} where id % 3 = ${below(3)}`,
    () => `update only child set id = ${id()} where id = ${id()}`,
    () => `delete from parent where id = ${id()}`,
    () => `delete from only parent where id = ${id()}`,
    () => `delete from child where id = ${id()}`,
    () => `insert into loose_child values (${word()})`,
    () => `insert into loose values (${word()})`,
    () => `update loose set v = ${word()} where v = ${word()}`,
    () => `delete from loose where v < ${word()}`,
  ],
  [
    ...of('parent', 'select * from only parent'),
    ...of('child', 'select * from only child'),
    ...of('grandchild', 'select * from only grandchild'),
    [{ table: 'stepchild' }, 'select distinct * from stepchild'],
    [{ table: 'loose' }, 'select distinct * from only loose'],
    [{ table: 'loose_child' }, 'select distinct * from loose_child'],
  ])
})

test('what happens to children ends nothing of the parent', async () => {
  await client.query(`
    create table base (id int primary key, v text);
    create table derived (primary key (id)) inherits (base);
    insert into base values (1, 'base'); insert into derived values (2, 'derived');`)
  const [base, derived] = ['base', 'derived'].map((table) => follow(proxy.url, { table }))
  await untilSame(base, client, 'select * from only base')
  await untilSame(derived, client, 'select * from derived')
  const subset = await fetch(`${proxy.url}/v1/shape?table=base&offset=now&subset__where=true`)
  assert.deepEqual((await subset.json()).data.map(({ value }) => value.id), ['1'])
  const explained = async (key) => (await client.query(`select result from shapefeed.explain_shape('base', key => array[$1]) where step = 'row'`, [key])).rows
  assert.deepEqual([...await explained('1'), ...await explained('2')], [{ result: 'in' }, { result: 'no such row' }])
  assert.equal((await client.query(`select from shapefeed.visible_rows('base')`)).rowCount, 1)
  proxy.reset()
  await client.query('alter table derived no inherit base')
  await client.query('alter table derived inherit base')
  await client.query('create table another () inherits (base); insert into another values (1); drop table another')
  await client.query(`insert into base values (3, 'base'); insert into derived values (4, 'derived')`)
  await untilSame(base, client, 'select * from only base')
  await untilSame(derived, client, 'select * from derived')
  assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 0 })
  await client.query('truncate derived')
  await client.query(`insert into base values (5, 'base')`)
  await untilSame(base, client, 'select * from only base')
  await untilSame(derived, client, 'select * from derived')
  assert.equal(proxy.requests.filter(({ params, status }) => status === 409 && params.get('table') === 'base').length, 0)
  base.stop()
  derived.stop()
})

test('generated and identity columns', async () => {
  await compare(`
    create table computed (
      id   int generated by default as identity primary key,
      n    int not null default 0,
      v    text,
      twice int generated always as (n * 2) stored,
      joined text generated always as (v || ':' || n::text) stored,
      seq  int generated always as identity
    )`,
  [
    () => `insert into computed (v, n) values (${word()}, ${below(9)})`,
    () => `insert into computed (id, v) values (${id()}, null)`,
    () => `insert into computed (id, v, seq) overriding system value values (${id()}, ${word()}, ${below(99)})`,
    () => `insert into computed (id, n, v) values (${id()}, 1, ${word()}) on conflict (id) do update set n = computed.n + 1`,
    () => `update computed set n = ${below(9)} where id = ${id()}`,
    () => `update computed set v = ${word()}, seq = default where id % 4 = ${below(4)}`,
    () => `update computed set id = ${id()} where id = ${id()}`,
    () => `delete from computed where twice = ${2 * below(9)} and id % 2 = 0`,
  ],
  [
    [{ table: 'computed' }, 'select * from computed'],
    [{ table: 'computed', where: 'twice >= 6' }, 'select * from computed where twice >= 6'],
    [{ table: 'computed', where: `joined like 'a%'`, columns: ['id', 'v'] }, `select id, v from computed where joined like 'a%'`],
    [{ table: 'computed', replica: 'full', columns: ['id', 'joined'] }, 'select id, joined from computed'],
  ])
})

test('keys that are generated, deferrable, of several columns with others between and beside', async () => {
  await compare(`
    create table by_computed (n int, v text, k text generated always as (upper(v)) stored primary key);
    create table by_deferrable (id int primary key deferrable initially deferred, v text);
    create table by_several (b int, gone int, v text, a text, primary key (a, b) include (v));
    alter table by_several drop column gone;`,
  [
    () => `insert into by_computed values (${below(9)}, ${word()})`,
    () => `update by_computed set v = ${word()} where n = ${below(9)}`,
    () => `update by_computed set n = n + 1 where k = upper(${word()})`,
    () => `delete from by_computed where n = ${below(9)}`,
    () => `insert into by_deferrable select g, ${word()} from generate_series(1, 5) g where not exists (select from by_deferrable)`,
    () => `update by_deferrable set id = 6 - id`, // all keys change places
    () => `update by_deferrable set v = ${word()} where id = ${1 + below(5)}`,
    () => `insert into by_several values (${below(5)}, ${word()}, ${word()})`,
    () => `update by_several set b = ${below(5)} where b = ${below(5)} and v = ${word()}`,
    () => `update by_several set a = ${word()}, v = ${word()} where a = ${word()} and b = ${below(5)}`,
    () => `delete from by_several where b = ${below(5)} and a < ${word()}`,
  ],
  [
    [{ table: 'by_computed' }, 'select * from by_computed'],
    [{ table: 'by_computed', where: `k > 'B2'` }, `select * from by_computed where k > 'B2'`],
    [{ table: 'by_deferrable' }, 'select * from by_deferrable'],
    [{ table: 'by_deferrable', where: 'id < 3' }, 'select * from by_deferrable where id < 3'],
    [{ table: 'by_several' }, 'select * from by_several'],
    [{ table: 'by_several', where: `v >= 'b'`, columns: ['a', 'b'] }, `select a, b from by_several where v >= 'b'`],
  ])
})

test('without a key, also where a unique index would do: equal rows are one', async () => {
  await compare(`
    create table keyless (v text, n int, twice int generated always as (n * 2) stored);
    create table unique_only (id int not null unique, v text);
    alter table unique_only replica identity using index unique_only_id_key;`,
  [
    () => `insert into keyless (v, n) select ${word()}, ${below(4)} from generate_series(1, ${1 + below(3)})`,
    () => `insert into keyless (v, n) values (null, ${below(2)})`,
    () => `update keyless set n = n + 1 where v = ${word()} and n < 5`,
    () => `delete from keyless where ctid = (select min(ctid) from keyless)`,
    () => `delete from keyless where n = ${below(6)} and v is not null`,
    () => `insert into unique_only values (${id()}, ${word()})`,
    () => `update unique_only set id = ${id()} where v = ${word()}`,
    () => `update unique_only set v = null where id = ${id()}`,
    () => `delete from unique_only where id = ${id()}`,
  ],
  [
    [{ table: 'keyless' }, 'select distinct * from keyless'],
    [{ table: 'keyless', where: 'twice > 3' }, 'select distinct * from keyless where twice > 3'],
    [{ table: 'keyless', where: 'v is null' }, 'select distinct * from keyless where v is null'],
    [{ table: 'unique_only' }, 'select * from unique_only'],
  ])
})

test('a tracked table that becomes a partition of a tracked one: shapes of both begin anew once, and are true', async () => {
  await client.query(`create table whole (id int primary key, v int) partition by range (id);
    create table whole_low partition of whole for values from (0) to (100); insert into whole values (1, 1);
    create table piece (id int primary key, v int); insert into piece values (150, 1);
    call shapefeed.track('whole'); call shapefeed.track('piece')`)
  const [all, own] = [follow(proxy.url, { table: 'whole' }), follow(proxy.url, { table: 'piece' })]
  const same = async () => {
    await untilSame(all, client, 'select * from whole')
    await untilSame(own, client, 'select * from piece')
  }
  await same()
  await waitFor(() => [all, own].every(({ stream }) => stream.isUpToDate), { what: 'both are up to date' })
  proxy.reset()
  await client.query('alter table whole attach partition piece for values from (100) to (200)')
  await client.query('insert into whole values (2, 2), (160, 2); update whole set v = v + 1 where id in (1, 150)')
  await same()
  await client.query('update whole set id = id + 100 where id = 1') // from one partition into the other
  await client.query('insert into piece values (170, 3)')
  await same()
  assert.equal(proxy.refetches().initial, 2)
  for (const follower of [all, own]) follower.stop()
})
