// A client of client/ in Node, with what tests ask of it.
import assert from 'node:assert/strict'
import { createSync } from '../../../client/dist/index.js'
import { startProxy, waitFor } from '../../lib/index.mjs'

/** A table's rows, each as one line, in order. */
const rowsOf = (table, where = 'true') => `select to_jsonb(t)::text as t from ${table} t where ${where} order by to_jsonb(t)::text collate "C"`

/**
 * A client of a site (`served`), behind a proxy of its own: { sync, proxy, follow, equals, cut, join, reopen, close, … }.
 * Options are those of createSync. Errors that nobody asked about are in `errors`.
 */
export async function openClient(site, options = {}) {
  const proxy = options.proxy ?? await startProxy(site.sidecar.url)
  const errors = []
  const settings = { url: proxy.url, userId: 'test', onError: (error) => errors.push(error), ...options }
  const client = {
    proxy,
    errors,
    sync: await createSync(settings),
    query: async (sql, params) => (await client.sync.db.query(sql, params)).rows,
    lines: async (table, where) => (await client.query(rowsOf(table, where))).map(({ t }) => t),
    /** Follows a shape up to where it is up to date. */
    follow: async (definition) => {
      const handle = client.sync.shape(definition)
      try {
        await waitFor(() => handle.status === 'live', { timeoutMs: 60_000, what: 'the shape is up to date' })
      } catch (error) {
        throw new Error(`${JSON.stringify(definition)}: ${handle.status}, ${JSON.stringify(handle.error)}`, { cause: error })
      }
      return handle
    },
    /** Waits until the table is, here, what the query says there. */
    equals: (table, where) => equal(client, site, table, where),
    /** The same database, opened by another client; without `close`, as after a crash. */
    reopen: (more = {}) => openClient(site, { ...options, ...more, proxy }),
    close: async () => {
      await client.sync.close()
      await proxy.stop()
    },
  }
  return client
}

async function equal(client, site, table, where) {
  let here, there
  const same = async () => {
    there = (await site.client.query(rowsOf(table, where))).rows.map(({ t }) => t)
    here = await client.lines(table, where).catch(() => [])
    return here.length === there.length && here.every((line, i) => line === there[i])
  }
  try {
    await waitFor(same, { timeoutMs: 20_000, what: `the local ${table} is the server's` })
  } catch (error) {
    const missing = there.filter((line) => !here.includes(line))
    const extra = here.filter((line) => !there.includes(line))
    throw new Error(`${table}: ${missing.length} rows missing, ${extra.length} too many; ${missing[0]} / ${extra[0]}; ${client.errors}`, { cause: error })
  }
}
