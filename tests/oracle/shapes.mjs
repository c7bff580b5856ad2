// Random shapes, and the comparison of what their clients held with what is true.
import assert from 'node:assert/strict'
import { randomClause } from './predicates.mjs'
import { shuffled } from './schema.mjs'
import { lineOf } from './truth.mjs'

/** Shapes of the tables: what is asked for, and how the truth is found. */
export async function randomShapes(random, tables, count, client) {
  const shapes = []
  while (shapes.length < count) {
    const table = tables[shapes.length % tables.length]
    const { where, params } = random.chance(0.04) ? { params: [] } : randomClause(random, table)
    const shape = shapeOf(random, table, where, params)
    const { rows: [{ share }] } = await client.query({ text: `select avg((${where ?? 'true'})::int)::float8 share, 1 from ${table.sqlName}`.replace('avg((', 'avg(((').replace(')::int)', ') is true)::int)'), values: params })
    shape.share = share
    if ((share < 0.01 || share > 0.99) && random.chance(0.7)) continue
    shapes.push(shape)
  }
  return shapes
}

function shapeOf(random, table, where, params) {
  const columns = random.chance(0.3) ? someColumns(random, table) : table.columns
  const full = random.chance(0.3)
  return {
    table, where, params, columns, full, selected: new Set(),
    names: columns.map(({ name }) => name).sort(),
    keyNames: table.keyColumns.map(({ name }) => name),
    request: {
      table: table.sqlName,
      where,
      ...Object.fromEntries(params.map((value, i) => [`params[${i + 1}]`, value])),
      columns: columns === table.columns && table.computed.length === 0 ? undefined : columns.map(({ sql }) => sql).join(','),
      replica: full ? 'full' : undefined,
    },
  }
}

function someColumns(random, { columns, keyColumns }) {
  const others = shuffled(random, columns.filter((column) => !keyColumns.includes(column)))
  return shuffled(random, [...keyColumns, ...others.slice(0, 1 + random.below(3))])
}

/** Compares records of clients with the truth; returns how many. `records`: of one shape's clients. */
export function compare(truth, shape, clients) {
  const records = clients.flatMap((client) => client.records.map((record) => ({ ...record, client }))).sort((a, b) => (a.position < b.position ? -1 : 1))
  let next = 0
  for (const { position, rows } of truth.states(shape)) {
    for (; next < records.length && (position === undefined || records[next].position < position); next++) same(shape, records[next], rows)
    shape.rows = rows
  }
  for (const client of clients) client.records.length = 0
  return records.length
}

function same(shape, record, rows) {
  const held = record.rows.map(([, line]) => line).sort()
  const lines = [...rows.values()].sort()
  if (held.length === lines.length && held.every((line, i) => line === lines[i])) return
  const missing = lines.filter((line) => !held.includes(line))
  const extra = held.filter((line) => !lines.includes(line))
  assert.fail(`at ${record.position} a client holds ${held.length} rows instead of ${lines.length}: ${describe(shape)}
  missing: ${missing.slice(0, 3).join('\n    ')}
  too many: ${extra.slice(0, 3).join('\n    ')}
  history of the first: ${history(shape, missing[0] ?? extra[0])}
  client ${record.client.manner}, handle ${record.client.handle}: ${record.trail.join('; ')}`)
}

/** The changes that made or ended a row with this line. */
function history({ table, columns }, line) {
  const is = (version) => version?.line(columns) === line
  const found = table.changes.filter(({ old, new: made }) => is(old) || is(made))
  return found.slice(-6).map(({ position, xid, old, new: made }) => `${position} (${xid}) ${is(old) ? 'ends' : ''}${is(made) ? 'makes' : ''} ${(old ?? made).key}`).join('; ')
}

/** The shape's rows by a SELECT now, when nobody writes: it must be the audit's last state. */
export async function assertSelect(client, shape) {
  const where = shape.where === undefined ? '' : `where ${shape.where}`
  const { rows } = await client.query({ text: `select ${shape.table.keyless ? 'distinct on (t.*::text) ' : ''}${shape.columns.map(({ sql }) => sql).join(', ')} from ${shape.table.sqlName}${shape.table.keyless ? ` as ${shape.table.sqlName}` : ''} ${where}`.replace('t.*::text', `${shape.table.sqlName}.*::text`),
    values: shape.params, rowMode: 'array', types: { getTypeParser: () => (value) => value } })
  const lines = rows.map((values) => lineOf(shape.columns, Object.fromEntries(shape.columns.map(({ name }, i) => [name, values[i]])))).sort()
  assert.deepEqual([...shape.rows.values()].sort(), lines, `the audit and SELECT differ: ${describe(shape)}`)
}

export const describe = ({ request }) => JSON.stringify(request)
