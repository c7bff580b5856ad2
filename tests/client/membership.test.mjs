// What a user may see, in the stock clients from npm, unmodified: rows appear and vanish as memberships do, and nothing is
// fetched again after a kill, a crash, or on another sidecar.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { PGlite } from '@electric-sql/pglite'
import { electricSync } from '@electric-sql/pglite-sync'
import { createCollection, createLiveQueryCollection, eq } from '@tanstack/db'
import { electricCollectionOptions } from '@tanstack/electric-db-collection'
import { root, served, startProxy, startSidecar, waitFor } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'

const members = 'select company_id from company_members where user_id = $1'
const where = {
  companies: `id in (${members})`,
  workspaces: `company_id in (${members})`,
  folders: `workspace_id in (select id from workspaces where company_id in (${members}))`,
}
const tables = Object.keys(where)

const site = served({
  schema: `${readFileSync(join(root, 'sql/examples/foundation.sql'), 'utf8')}
    insert into users select i, 'user ' || i from generate_series(1, 9) i;
    insert into companies select i, 'company ' || i from generate_series(1, 6) i;
    insert into workspaces select i, 1 + i % 6, 'workspace ' || i from generate_series(1, 18) i;
    insert into folders select i, 1 + i % 18, null, 'folder ' || i from generate_series(1, 90) i;
    insert into company_members select c, u from generate_series(1, 3) c, generate_series(1, 9) u where (c + u) % 3 = 0;`,
})
const stops = []
after(async () => {
  for (const stop of stops) await stop()
})

const paramsOf = (table, user) => ({ table, where: where[table], params: { 1: String(user) } })
const visible = (table, user, more = 'true') =>
  `select id from ${table} where ${where[table].replaceAll('$1', user)} and ${more} order by id`
const truthOf = async (...of) => (await site.client.query(visible(...of))).rows.map(({ id }) => id)

/** What memberships and rows may do, a user's number in the place of $u. */
const steps = [
  'insert into company_members values (4, $u)',
  'delete from company_members where user_id = $u and company_id < 4',
  'begin; update company_members set company_id = 5 where user_id = $u; update workspaces set company_id = 5 where id = 1; commit',
  "insert into company_members values (1, $u); update folders set name = name || '!' where id < 20",
  'begin; delete from company_members where user_id = $u; insert into company_members values (1, $u), (2, $u); commit',
  'delete from workspaces where id in (2, 3)',
  'delete from company_members where user_id = $u',
  'insert into company_members values (6, $u)',
]

/** Takes each step, and waits until `idsOf(table)` gives what a query does. */
async function walk(user, idsOf, more) {
  const sizes = new Set()
  for (const step of ['select 1', ...steps]) {
    await site.sql(step.replaceAll('$u', user))
    for (const table of tables) {
      let sides
      await waitFor(async () => {
        sides = [await idsOf(table), await truthOf(table, user, more?.[table])]
        return JSON.stringify(sides[0]) === JSON.stringify(sides[1])
      }, { what: `${table} after ${step}` }).catch((error) => { throw new Error(`${error.message}: ${JSON.stringify(sides)}`) })
      sizes.add(sides[0].length)
    }
  }
  assert.ok(sizes.size > 2, `${[...sizes]}`)
}

for (const liveSse of [false, true]) {
  const how = liveSse ? 'by events' : 'by long-polling'
  test(`@electric-sql/client: what a user may see, ${how}`, async () => {
    const user = liveSse ? 2 : 1
    const clients = Object.fromEntries(tables.map((table) => [table, follow(site.sidecar.url, paramsOf(table, user), { liveSse })]))
    await walk(user, (table) => clients[table].shape.currentRows.map(({ id }) => Number(id)).sort((a, b) => a - b))
    for (const { stop, errors } of Object.values(clients)) {
      stop()
      assert.deepEqual(errors, [])
    }
  })
}

test('pglite-sync: shapes of one user in one PGlite, each transaction at once', async () => {
  const user = 3
  const pg = await PGlite.create({ extensions: { electric: electricSync() } })
  stops.push(() => pg.close())
  await pg.exec(`create table companies (id int primary key, name text); create table workspaces (id int primary key, company_id int, name text);
    create table folders (id int primary key, workspace_id int, parent_id int, name text)`)
  const shapes = tables.map((table) => [table, { shape: { url: `${site.sidecar.url}/v1/shape`, params: paramsOf(table, user) }, table, primaryKey: ['id'] }])
  const sync = await pg.electric.syncShapesToTables({ shapes: Object.fromEntries(shapes), key: 'member' })
  await walk(user, async (table) => (await pg.query(`select id from ${table} order by id`)).rows.map(({ id }) => id))
  sync.unsubscribe()
})

const collectionOf = (table, user, syncMode) => {
  const collection = createCollection(electricCollectionOptions({
    id: `${table}-${user}-${syncMode}`,
    syncMode,
    shapeOptions: { url: `${site.sidecar.url}/v1/shape`, params: paramsOf(table, user) },
    getKey: ({ id }) => id,
  }))
  stops.push(() => collection.cleanup())
  return collection
}
const ids = (collection) => collection.toArray.map(({ id }) => id).sort((a, b) => a - b)

test('a TanStack collection, eager', async () => {
  const collections = Object.fromEntries(tables.map((table) => [table, collectionOf(table, 4, 'eager')]))
  await Promise.all(Object.values(collections).map((collection) => collection.preload()))
  await walk(4, (table) => ids(collections[table]))
})

test('a TanStack collection, on demand: live queries over part of what a user may see', async () => {
  const parts = { companies: ['id', 4], workspaces: ['company_id', 1], folders: ['workspace_id', 7] }
  const queries = {}
  for (const [table, [column, value]] of Object.entries(parts)) {
    const collection = collectionOf(table, 5, 'on-demand')
    queries[table] = createLiveQueryCollection((q) => q.from({ it: collection }).where(({ it }) => eq(it[column], value)))
    stops.push(() => queries[table].cleanup())
    await queries[table].preload()
  }
  const more = Object.fromEntries(Object.entries(parts).map(([table, [column, value]]) => [table, `${column} = ${value}`]))
  await walk(5, (table) => ids(queries[table]), more)
})

test('nothing to rebuild: kill, crash, and another sidecar cost no client a refetch', async () => {
  const user = 6
  let sidecar = await startSidecar({ databaseUrl: site.database.url })
  const other = await startSidecar({ databaseUrl: site.database.url })
  const proxy = await startProxy(sidecar.url)
  const clients = tables.map((table) => [table, follow(proxy.url, paramsOf(table, user))])
  let connection = await site.database.connect()
  const all = async () => {
    for (const [table, client] of clients) {
      await untilSame(client, connection, `select * from ${table} where ${where[table].replaceAll('$1', user)}`)
    }
  }
  const change = (sql) => connection.query(sql.replaceAll('$u', user))
  await all()
  await sidecar.kill9()
  await change('insert into company_members values (4, $u), (5, $u)')
  sidecar = await startSidecar({ databaseUrl: site.database.url })
  proxy.setTarget(sidecar.url)
  await all()
  proxy.setTarget(other.url)
  await change('delete from company_members where user_id = $u and company_id < 5')
  await all()
  await connection.end()
  await site.cluster.stopImmediate()
  await site.cluster.start()
  connection = await site.database.connect()
  await change('insert into company_members values (1, $u)')
  await all()
  proxy.setTarget(sidecar.url, other.url) // in turn
  await change('delete from company_members where user_id = $u and company_id = 5')
  await all()
  assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: tables.length })
  clients.forEach(([, client]) => client.stop())
  await connection.end()
  await proxy.stop()
  await Promise.all([sidecar.stop(), other.stop()])
})
