// Clauses by the thousand on rows that stand still: what a shape selects is what SELECT selects, by a query as long as the rows
// are there, and by the log once they are gone.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { freshDatabase, scale, startCluster, waitFor } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'
import { printing } from '../lib/types.mjs'
import { randomClause } from './predicates.mjs'
import { randomTables, schemaSql } from './schema.mjs'
import { lineOf } from './truth.mjs'

const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? Date.now() % 1e6)
const count = Math.ceil(Number(process.env.SHAPEFEED_TEST_CLAUSES ?? 1500) * scale)

test('a COLLATE in a clause is kept, however plain the type', async (t) => {
  const cluster = await startCluster()
  t.after(() => cluster.stop())
  const database = await freshDatabase(cluster)
  await database.psql(`create table words (id int primary key, t text collate "und-x-icu", v varchar(9) collate "und-x-icu");
    insert into words select i, w, w from unnest('{a,A,b,B,ä,Z}'::text[]) with ordinality u (w, i);
    call shapefeed.track('words')`)
  const client = await database.connect()
  await waitFor(async () => (await client.query('select bool_and(ready) ok from shapefeed.tracked_tables')).rows[0].ok)
  const idsOf = async (query, values) => (await client.query(query, values)).rows.map(({ id }) => Number(id)).sort()
  for (const clause of ['t collate "C" < \'a\'', 'v collate "C" < \'a\'', '(v collate "C")::text < \'a\'', 't < \'a\' collate "C"', 't < \'b\'']) {
    const shape = await idsOf("select row ->> 'id' as id from shapefeed.visible_rows('words', $1) row", [clause])
    const truth = await idsOf(`select id from words where ${clause}`)
    assert.deepEqual(shape, truth, clause)
    assert.ok(truth.length > 0 && truth.length < 6, clause)
  }
})

test('clauses select what SELECT selects', async (t) => {
  console.log(`SHAPEFEED_TEST_SEED=${seed}`)
  const random = randomFrom(seed)
  const cluster = await startCluster()
  t.after(() => cluster.stop())
  const database = await freshDatabase(cluster)
  const client = await database.connect()
  const tables = randomTables(random)
  await database.psql(schemaSql(random, tables))
  for (const { sqlName } of tables) await client.query(`call shapefeed.track('${sqlName}')`)
  await waitFor(async () => (await client.query('select bool_and(ready) ok from shapefeed.tracked_tables')).rows[0].ok)
  const { head } = (await client.query('select head from shapefeed._head()')).rows[0]
  await client.query(printing)

  const wrong = []
  const compare = async (how, { table, clause, truth }) => {
    const shape = await asShape(client, table, clause, head)
    if (shape.error || truth.join('\n') !== shape.rows.join('\n')) wrong.push({ how, table: table.table, ...clause, error: shape.error, truth: truth.length, shape: shape.rows?.length })
  }
  const clauses = []
  for (let i = 0; i < count; i++) {
    const table = tables[i % tables.length]
    const clause = randomClause(random, table)
    clauses.push({ table, clause, truth: await selected(client, table, clause) })
    await compare('query', clauses.at(-1))
  }
  for (const { sqlName } of tables.toReversed()) await client.query(`delete from ${sqlName}`) // those that refer to others first
  for (const one of clauses) await compare('log', one)
  const some = clauses.filter(({ table, truth }) => truth.length > 0 && truth.length < table.rowCount).length
  console.log({ clauses: count, some, wrong: wrong.length })
  for (const each of wrong.slice(0, 40)) console.log(JSON.stringify(each))
  assert.equal(wrong.length, 0)
  assert.ok(some > 0.3 * count, `${some} of ${count} clauses select some rows and not all`)
})

async function selected(client, table, { where, params }) {
  table.rowCount ??= Number((await client.query(`select count(*) from ${table.sqlName}`)).rows[0].count)
  const { rows } = await client.query({ text: `select ${table.columns.map(({ sql }) => sql).join(', ')} from ${table.sqlName} where ${where}`,
    values: params, rowMode: 'array', types: { getTypeParser: () => (value) => value } })
  const lines = rows.map((values) => lineOf(table.columns, Object.fromEntries(table.columns.map(({ name }, i) => [name, values[i]])))).sort()
  return table.keyless ? [...new Set(lines)] : lines
}

async function asShape(client, table, { where, params }, head) {
  try {
    const { rows } = await client.query('select row::text as value from shapefeed.visible_rows($1, $2, $3, null, $4) row', [table.sqlName, where, params, head])
    return { rows: rows.map(({ value }) => lineOf(table.columns, JSON.parse(value))).sort() }
  } catch (error) {
    return { error: error.message }
  }
}
