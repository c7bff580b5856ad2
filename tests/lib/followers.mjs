// Stock clients that follow shapes, and what they hold compared with what a SELECT says.
import { Shape, ShapeStream } from '@electric-sql/client'
import { waitFor } from './wait.mjs'

/**
 * Follows a shape: { rows(), stream, shape, stop() }. `rows()` is the client's copy as sorted JSON lines.
 * `params` as the client takes them: table, where, columns, replica, params; `options`: the stream's others.
 */
export function follow(url, params, options = {}) {
  const abort = new AbortController()
  const stream = new ShapeStream({
    url: `${url}/v1/shape`,
    params,
    signal: abort.signal,
    parser: asText,
    backoffOptions: { initialDelay: 20, maxDelay: 200, multiplier: 1.5 },
    ...options,
  })
  const errors = []
  const shape = new Shape(stream)
  stream.subscribe(() => {}, (error) => errors.push(error))
  return {
    stream,
    shape,
    errors,
    rows: () => shape.currentRows.map(line).sort(),
    stop: () => abort.abort(),
  }
}

// Values stay as Postgres prints them, so that they compare with a SELECT of ::text columns.
const asText = Object.fromEntries(
  ['int2', 'int4', 'int8', 'float4', 'float8', 'bool', 'json', 'jsonb'].map((type) => [type, (value) => value]))

function line(row) {
  return JSON.stringify(Object.keys(row).sort().map((name) => [name, row[name] === null ? null : String(row[name])]))
}

/** The rows of a query, all columns as text, as `rows()` above has them. */
export async function selectedRows(client, query) {
  const { rows, fields } = await client.query({ text: query, types: { getTypeParser: () => (value) => value } })
  return rows.map((row) => line(Object.fromEntries(fields.map(({ name }) => [name, row[name]])))).sort()
}

/** Waits until the follower holds just what the query says; throws with a difference if it does not come to that. */
export async function untilSame(follower, client, query, { timeoutMs = 20_000 } = {}) {
  let truth, copy
  const same = async () => {
    truth = await selectedRows(client, query)
    copy = follower.rows()
    return truth.length === copy.length && truth.every((row, i) => row === copy[i])
  }
  try {
    await waitFor(same, { timeoutMs, intervalMs: 50, what: 'the copy equals the table' })
  } catch (error) {
    const missing = truth.filter((row) => !copy.includes(row))
    const extra = copy.filter((row) => !truth.includes(row))
    throw new Error(`${query}: ${missing.length} rows missing, ${extra.length} too many; first: ` +
      `${missing[0] ?? ''} / ${extra[0] ?? ''}; client errors: ${follower.errors}`, { cause: error })
  }
  return truth.length
}
