// The package in client/, into a PGlite in this process.
import { createSync } from '../../../client/dist/index.js'
import { newDatabase } from '../../local/lib/client.mjs'
import { sumOf } from '../lib/items.mjs'
import { nowMs, serveLoad } from '../lib/load.mjs'

let pglite, sync
let seen = []

const number = ({ n }) => Number(n)

serveLoad({
  /** A PGlite as a first start finds it, and a client that follows nothing yet. */
  start: async (_schema, url) => {
    pglite = await newDatabase()
    sync = await createSync({ url, userId: 'bench', pglite })
  },

  /** Syncs the table from nothing: { ms, firstMs: until a live query has rows, rows, sum: of all values }. */
  sync: async (_url, table) => {
    const began = nowMs()
    let firstMs
    const unsubscribe = await sync.live(`select id from ${table} limit 1`, [], (rows) => { if (rows.length) firstMs ??= nowMs() - began })
    await sync.shape({ table }).upToDate()
    const ms = nowMs() - began
    await unsubscribe()
    await pglite.exec(`set timezone to 'UTC'`)
    return { ms, firstMs, ...(await pglite.query(sumOf(table))).rows[0] }
  },

  /** Watches a query whose one row has a number `n`. */
  watch: async (sql) => {
    await sync.live(sql, [], (rows) => { if (rows.length) seen.push({ n: number(rows[0]), at: nowMs() }) })
  },

  /** What was seen: [{ n, at }]. */
  seen: () => seen,

  /** Writes `count` times, $1 the number from `first` on, each when the one before was seen: milliseconds from each to its sight. */
  write: async (sql, { first, count }) => {
    const times = []
    for (let n = first; n < first + count; n++) {
      const began = nowMs()
      await sync.db.query(sql, [n])
      while (!seen.some((it) => it.n === n)) await new Promise((resolve) => { setTimeout(resolve, 1) })
      times.push(seen.find((it) => it.n === n).at - began)
    }
    await sync.sent()
    return times
  },

  close: () => sync.close(),
})
