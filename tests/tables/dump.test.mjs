// What pg_dump takes along: tracked tables and named shapes, whatever part is restored; no change data, and no handles.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { ShapeApi, freshDatabase, pgBin, scratchDir, startCluster, startSidecar, waitFor } from '../lib/index.mjs'

const run = promisify(execFile)

const schema = `
  create table plain (id int generated always as identity primary key, v text, twice text generated always as (v || v) stored);
  create table parts (id int, area text, v text, primary key (area, id)) partition by list (area);
  create table parts_n partition of parts for values in ('n') partition by range (id);
  create table parts_n_1 partition of parts_n for values from (1) to (1000);
  create table parts_s partition of parts for values in ('s');
  create table keyless (v text);
  create table parent (id int primary key, v text);
  create table child (w text) inherits (parent);
  create table alone (id int primary key);
  create schema other;
  create table other."Ünï" (id int primary key, parent int references parent);`
const tracked = ['keyless', 'other."Ünï"', 'parent', 'parts', 'plain']
const rows = `
  insert into plain (v) values ('a'), ('b');
  insert into parts values (1, 'n', 'a'), (2, 's', 'b');
  insert into keyless values ('a'), ('b');
  insert into parent values (1, 'a');
  insert into child values (2, 'child', 'c');
  insert into other."Ünï" values (1, 1);`
const shapes = `
  select shapefeed.create_shape('first', 'plain', 'id = 1');
  select shapefeed.create_shape('it''s Ünï', 'other."Ünï"', columns => '{id}', replica => 'full');`

let here, there, source, api, sidecar, followers
before(async () => {
  [here, there] = [await startCluster(), await startCluster()]
  source = await freshDatabase(here)
  await source.psql(schema)
  for (const table of tracked) await source.psql(`call shapefeed.track('${table}')`)
  await source.psql(rows)
  await source.psql(shapes)
  sidecar = await startSidecar({ databaseUrl: source.url, env: { SHAPEFEED_AUTO_TRACK: 'false' } })
  api = new ShapeApi(sidecar.url)
  followers = await Promise.all(tracked.map((table) => api.follow({ table })))
  await source.psql(`insert into plain (v) values ('c')`)
  await followers.at(-1).until((follower) => follower.rows.size === 3)
})
after(async () => {
  api.close()
  await sidecar.stop()
  await Promise.all([here.stop(), there.stop()])
})

/** A dump of the source as a file. */
async function dump(...args) {
  const file = join(scratchDir('dump'), 'dump')
  await run(join(pgBin, 'pg_dump'), ['-f', file, ...args, source.url])
  return file
}

const restore = (file, database, ...args) => run(join(pgBin, 'pg_restore'), ['--exit-on-error', ...args, '-d', database.url, file])
const play = (file, database) => database.psql('', { args: ['-f', file] })

const listOf = (database) => database.psql(`select "table", partitions from shapefeed.tracked_tables order by "table"::text collate "C"`)
const shapesOf = (database) => database.psql(`select name, "table", "where", columns, replica, tracked from shapefeed.shapes order by name collate "C"`)

/** The database is as the source: tables tracked, shapes named (unless `named` is false), nothing else in the log; old handles are refused. */
async function assertCarried(database, { named = true } = {}) {
  await waitFor(async () => await database.psql('select count(*) from shapefeed.tracked_tables where not ready') === '0', { what: 'tables are ready' })
  assert.equal(await listOf(database), await listOf(source))
  assert.equal(await shapesOf(database), named ? await shapesOf(source) : '')
  assert.notEqual(await database.psql('select id from shapefeed.feed'), await source.psql('select id from shapefeed.feed'))
  await assertServed(database)
}

async function assertServed(database) {
  const before = await database.psql('select head from shapefeed._head()')
  const restored = await startSidecar({ databaseUrl: database.url, env: { SHAPEFEED_AUTO_TRACK: 'false' } })
  const own = new ShapeApi(restored.url)
  try {
    for (const { params, handle, offset } of followers) {
      for (const [at, live] of [['0_0'], [offset], [offset, 'true']]) {
        const answer = await own.get({ ...params, handle, offset: at, live })
        assert.equal(answer.status, 409, `${params.table} ${at}: ${answer.text}`)
        assert.ok(answer.handle !== handle)
      }
    }
    const copies = await Promise.all(tracked.map((table) => own.follow({ table })))
    for (const [i, copy] of copies.entries()) {
      assert.equal(copy.rows.size, followers[i].rows.size, tracked[i])
    }
    // Every leaf is captured, TRUNCATE of it as well.
    await database.psql(`
      insert into plain (v) values ('new');
      insert into parts values (3, 'n', 'new'), (3, 's', 'new');
      update parts set area = 's', id = 4 where area = 'n' and id = 1;
      insert into keyless values ('new');
      insert into parent values (3, 'new');
      insert into child values (4, 'new', 'c');
      delete from other."Ünï";`)
    const [keyless, quoted, parent, parts, plain] = copies
    await Promise.all([
      keyless.until(({ rows }) => rows.size === 3),
      quoted.until(({ rows }) => rows.size === 0),
      parent.until(({ rows }) => rows.size === 2),
      parts.until(({ values }) => values.map(({ area, id }) => area + id).sort().join() === 'n3,s2,s3,s4'),
      plain.until(({ values }) => values.map(({ v }) => v).sort().join() === 'a,b,c,new'),
    ])
    assert.deepEqual(parent.values.map(({ id }) => id).sort(), ['1', '3'], 'children are tables of their own')
    const changed = await database.psql(`select count(*) from shapefeed.changes_decoded where position > ${before}`)
    assert.equal(await database.psql('select count(*) from shapefeed.changes_decoded'), changed, 'the log begins here')
    await database.psql('truncate parts_n_1')
    await waitFor(async () => {
      const { handle, offset } = parts
      return (await own.get({ table: 'parts', handle, offset })).status === 409
    }, { what: 'TRUNCATE of a leaf ends the handle' })
  } finally {
    own.close()
    await restored.stop()
  }
}

const empty = (cluster) => freshDatabase(cluster, { extension: false })

test('a plain dump, into another cluster', async () => {
  const database = await empty(there)
  await play(await dump(), database)
  await assertCarried(database)
})

test('a custom-format dump restored by two processes, into another database of the same cluster', async () => {
  const database = await empty(here)
  await restore(await dump('-Fc'), database, '-j2')
  await assertCarried(database)
})

test('--clean, over a database that is in use', async () => {
  const database = await empty(there)
  // Its DROP CONSTRAINT does not work on partitions, with us or without.
  const file = await dump('--clean', '--if-exists', '-T', 'parts*')
  await play(file, database)
  await waitFor(async () => await database.psql('select count(*) from shapefeed.tracked_tables where ready') === '4', { what: 'tables are ready' })
  const used = await startSidecar({ databaseUrl: database.url, env: { SHAPEFEED_AUTO_TRACK: 'false' } })
  const own = new ShapeApi(used.url)
  const follower = await own.follow({ table: 'plain' })
  await database.psql(`insert into plain (v) values ('lost by the restore')`)
  await follower.until(({ rows }) => rows.size === 4)
  await play(file, database)
  const { handle, offset } = follower
  const refused = await waitFor(async () => {
    const answer = await own.get({ table: 'plain', handle, offset })
    return answer.status !== 503 && answer
  }, { what: 'the sidecar has come back' })
  assert.equal(refused.status, 409, refused.text)
  const again = await own.follow({ table: 'plain' })
  assert.deepEqual(again.values.map(({ v }) => v).sort(), ['a', 'b', 'c'])
  await database.psql(`insert into plain (v) values ('new')`)
  await again.until(({ rows }) => rows.size === 4)
  own.close()
  await used.stop()
})

test('the schema first, then the data with --disable-triggers', async () => {
  const database = await empty(there)
  await play(await dump('--schema-only'), database)
  await play(await dump('--data-only', '--disable-triggers'), database)
  await assertCarried(database)
})

test('a dump by a role that may read the tables and is nobody else', async () => {
  await source.psql('create role dumper login; grant usage on schema other to dumper; grant select on all tables in schema public, other to dumper; grant select on all sequences in schema public to dumper')
  const file = join(scratchDir('dump'), 'dump')
  await run(join(pgBin, 'pg_dump'), ['-f', file, source.urlAs('dumper')])
  await source.psql('drop owned by dumper')
  const database = await empty(here)
  await play(file, database)
  await assertCarried(database)
})

test('some schemas only, into a database with the extension: shapes have a schema of their own', async () => {
  const database = await freshDatabase(there)
  await database.psql('drop schema public')
  await play(await dump('-n', 'public', '-n', 'other'), database)
  await assertCarried(database, { named: false })
})

test('without the table of a named shape: the others come', async () => {
  const database = await empty(there)
  await play(await dump('-T', 'plain'), database)
  assert.equal(await database.psql(`select name from shapefeed.shapes where tracked`), "it's Ünï")
  assert.equal(await database.psql(`select name from shapefeed.shapes where not tracked`), 'first')
})

test('a copy by TEMPLATE is another feed', async () => {
  const name = `${source.name}_copy`
  const copy = { name, url: here.urlOf(name), psql: (sql, options) => here.psql(sql, { database: name, ...options }) }
  await sidecar.stop()
  await here.psql(`create database ${name} template ${source.name}`)
  sidecar = await startSidecar({ databaseUrl: source.url, port: sidecar.port })
  const feed = (database) => database.psql('select f.id from shapefeed.feed f join shapefeed.era e on e.feed = f.id and e.database = f.database order by e.first_position desc limit 1')
  await copy.psql(`insert into keyless values ('copy')`) // wakes a sequencer
  await waitFor(async () => ![await feed(source), ''].includes(await feed(copy)), { what: 'the copy has an era of its own' })
  // What the two issue from now on is no position of the other one.
  await source.psql(`insert into plain (v) values ('source')`)
  const follower = await api.follow({ table: 'plain' })
  await follower.until(({ values }) => values.some(({ v }) => v === 'source'))
  const own = await startSidecar({ databaseUrl: copy.url })
  const other = new ShapeApi(own.url)
  for (let i = 0; i < 5; i++) await copy.psql(`insert into plain (v) values ('copy')`)
  const { handle, offset } = follower
  assert.equal((await other.get({ table: 'plain', handle, offset })).status, 409)
  const shared = await other.get({ table: 'plain', handle: followers.at(-1).handle, offset: '0_0' })
  assert.equal(shared.status, 200, 'what was before the copy is the same in both')
  assert.deepEqual(shared.operations.map(({ value }) => value.v), ['c', ...Array(5).fill('copy')])
  other.close()
  await own.stop()
  await source.psql(`delete from plain where v = 'source'`)
})

test('DROP EXTENSION needs no CASCADE and leaves the tables as they were, also after a restore', async () => {
  const untouched = await empty(there)
  await untouched.psql(schema)
  await untouched.psql(rows)
  const restored = await empty(there)
  await play(await dump(), restored)
  const made = await freshDatabase(there)
  await made.psql(schema)
  for (const table of tracked) await made.psql(`call shapefeed.track('${table}')`)
  await made.psql(rows)
  const described = async ({ url }) => (await run(join(pgBin, 'pg_dump'), ['--schema-only', '-n', 'public', '-n', 'other', url])).stdout
    .replace(/^\\(un)?restrict .*$/gm, '') // a random word
  const truth = await described(untouched)
  for (const database of [made, restored]) {
    assert.notEqual(await described(database), truth)
    await database.psql('drop extension shapefeed')
    assert.equal(await described(database), truth)
    await database.psql(`insert into plain (v) values ('x'); insert into parts values (9, 'n', 'x'); update parts set v = 'y'; truncate parts_s`)
    assert.equal(await database.psql(`select count(*) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where nspname = 'shapefeed'`), '0')
  }
})
