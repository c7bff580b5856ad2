// Random tables, shapes, writers and clients, while parts are killed: at each up-to-date, each client holds what a SELECT
// at that position gives (I3), and no client is made to begin again but where it is legal.
import assert from 'node:assert/strict'
import { setMaxListeners } from 'node:events'
import { test } from 'node:test'
import { freshDatabase, scale, startCluster, startSidecar, waitFor } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'
import { Books, Client } from './clients.mjs'
import { randomTables, schemaSql } from './schema.mjs'
import { assertSelect, compare, describe, randomShapes } from './shapes.mjs'
import { Truth, auditSql } from './truth.mjs'
import { Writer, newCounts } from './workload.mjs'

const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? Date.now() % 1e6)
const shapeCount = Number(process.env.ORACLE_SHAPES ?? 200)
const rounds = Number(process.env.ORACLE_ROUNDS ?? 10 * scale)
const perRound = 50

test('clients hold what SELECT gives, whatever happens', async (t) => {
  console.log(`SHAPEFEED_TEST_SEED=${seed}`)
  const random = randomFrom(seed)
  const cluster = await startCluster()
  t.after(() => cluster.stop())
  const database = await freshDatabase(cluster)
  const tables = randomTables(random)
  await database.psql(schemaSql(random, tables))
  await database.psql(auditSql(tables))
  let client = await database.connect()
  for (const table of tables) await client.query(`call shapefeed.track('${table.sqlName.replaceAll("'", "''")}')`)
  await waitFor(async () => (await client.query('select bool_and(ready) ok from shapefeed.tracked_tables')).rows[0].ok)
  const truth = new Truth(client, tables)
  await truth.read()
  const shapes = await randomShapes(random, tables, shapeCount, client)
  const env = { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '3000', SHAPEFEED_CHUNK_BYTES: '4000', SHAPEFEED_AUTO_TRACK: 'false' }
  const sidecars = [await startSidecar({ databaseUrl: database.url, env }), await startSidecar({ databaseUrl: database.url, env })]
  t.after(() => Promise.all(sidecars.map((sidecar) => sidecar.stop())))
  const books = new Books()
  const clients = shapes.map((shape, i) => new Client({ shape, sidecars, books, random: randomFrom(seed * 7919 + i) }))
  t.after(() => clients.forEach((one) => one.stop()))
  for (const shape of shapes) await truth.judge(shape)
  const counts = newCounts()
  const writers = [0, 1, 2, 3].map((number) => new Writer({ number, seed, database, tables, counts }))
  for (let round = 0; round < rounds; round++) {
    const started = Date.now()
    const abort = new AbortController()
    setMaxListeners(0, abort.signal)
    const goal = { position: undefined, abort: abort.signal }
    const following = Promise.all(clients.map((one) => one.follow(goal).catch((error) => {
      throw new Error(`${describe(one.shape)} (${one.manner}; ${one.trail.join('; ')}): ${error.message}`, { cause: error })
    })))
    following.catch(() => {})
    const end = counts.committed + perRound
    await Promise.race([Promise.all(writers.map((writer) => writer.run(() => counts.committed < end))), following])
    const quiet = Date.now()
    await client.query('update plain set grp = grp where false')
    goal.position = await settled(client)
    abort.abort()
    await following
    const followed = Date.now()
    await truth.read()
    for (const shape of shapes) {
      if (round > 0 || true) await truth.judge(shape)
      books.checked += compare(truth, shape, clients.filter((one) => one.shape === shape))
      await assertSelect(client, shape)
    }
    console.log(`round ${round}: ${quiet - started} writing, ${followed - quiet} settling, ${Date.now() - followed} checking`)
  }
  console.log({ ...books, chunks: books.chunks.size, conflicts: books.conflicts.length, counts })
  const fair = shapes.filter(({ share }) => share >= 0.01 && share <= 0.99).length
  console.log({ fair, shapes: shapes.length })
  assert.equal(books.conflicts.length, 0)
})

/** Waits until all that was committed has a position; returns the newest one. */
async function settled(client) {
  for (const { gid } of (await client.query('select gid from pg_prepared_xacts')).rows) await client.query(`rollback prepared '${gid}'`)
  await waitFor(async () => (await client.query('select pending = 0 done from shapefeed.status')).rows[0].done, { what: 'all is sequenced' })
  return BigInt((await client.query('select head from shapefeed._head()')).rows[0].head)
}
