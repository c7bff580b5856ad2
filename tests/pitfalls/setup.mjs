// What the schedules have in common.
import { freshDatabase, waitFor } from '../lib/index.mjs'
import { LogReader, netEffect } from '../lib/log.mjs'

/**
 * A database with the extension, `sql` run in it, then `tables` tracked and sequenced. Beside what freshDatabase() gives:
 * `client`, a connection; `query(sql)`, rows of one; `sequenced()`, the whole log once everything in it has a position.
 */
export async function trackedDatabase(cluster, sql, tables, { preloaded = true } = {}) {
  const database = await freshDatabase(cluster)
  const client = await database.connect()
  const self = {
    ...database,
    client,
    query: async (text, values) => (await client.query(text, values)).rows,
    step: async () => { if (!preloaded) await client.query('call shapefeed.sequence()') },
    head: async () => (await client.query('select head from shapefeed._head()')).rows[0].head,
    sequenced: async () => {
      await settled(self)
      return new LogReader(client).all()
    },
  }
  if (sql) await client.query(sql)
  for (const table of tables) await client.query(`call shapefeed.track('${table}')`)
  await settled(self)
  return self
}

/** Waits until all of the log has a position. */
async function settled({ client, step }) {
  await waitFor(async () => {
    await step()
    const loose = await client.query('select xid from shapefeed.change except select xid from shapefeed.commit')
    return loose.rows.length === 0
  }, { what: 'everything in the log has a position' })
}

/** What the log makes of `table`, from its first record on: rows by their column `id`; or what does not fit. */
export function replay(transactions, table) {
  const rows = new Map()
  for (const transaction of transactions) {
    const { before, after } = netEffect(transaction)
    for (const { row } of before.filter((image) => image.table === table)) {
      if (JSON.stringify(rows.get(row.id)) !== JSON.stringify(row)) throw new Error(`not here: ${JSON.stringify(row)}`)
      rows.delete(row.id)
    }
    for (const { row } of after.filter((image) => image.table === table)) {
      if (rows.has(row.id)) throw new Error(`here already: ${JSON.stringify(row)}`)
      rows.set(row.id, row)
    }
  }
  return [...rows.values()].sort((a, b) => a.id - b.id)
}

/** What operations of the extension make of no rows; or what does not fit. */
export function applied(operations) {
  const rows = new Map()
  for (const { operation, key, value } of operations) {
    if (rows.has(key) === (operation === 'insert')) throw new Error(`${operation} of ${key} does not fit`)
    if (operation === 'delete') rows.delete(key)
    else rows.set(key, { ...rows.get(key), ...value })
  }
  return [...rows.values()].sort((a, b) => a.id - b.id)
}

/** Reasons for which `relid` or a shape ends, in the order of the log. */
export function endsOf(transactions, relid) {
  return transactions.flatMap(({ notes }) => notes).flatMap(({ ends }) => ends ?? [])
    .filter((end) => end.relid === relid).map(({ reason }) => reason)
}

/** The SQLSTATE that a promise is rejected with; undefined if it is not. */
export async function sqlstate(promise) {
  try {
    await promise
  } catch (error) {
    return error.code ?? String(error)
  }
}
