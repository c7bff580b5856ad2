// The stock pglite-sync, into a PGlite in this process.
import { PGlite } from '@electric-sql/pglite'
import { live } from '@electric-sql/pglite/live'
import { electricSync } from '@electric-sql/pglite-sync'
import { sumOf } from '../lib/items.mjs'
import { nowMs, serveLoad } from '../lib/load.mjs'

let pg, sync
let seen = []

serveLoad({
  /** A PGlite with the table. */
  start: async (schema) => {
    pg = await PGlite.create({ extensions: { electric: electricSync(), live } })
    await pg.exec(schema)
  },

  /** Syncs the table from nothing, in a mode of the library: { ms, rows, sum: of all values }. */
  sync: async (base, table, mode = 'insert') => {
    const began = nowMs()
    sync = await new Promise((resolve, reject) => {
      const shape = { url: `${base}/v1/shape`, params: { table } }
      const options = { shape, table, primaryKey: ['id'], shapeKey: null, initialInsertMethod: mode, onInitialSync: () => resolve(started), onError: reject }
      const started = pg.electric.syncShapeToTable(options)
    })
    const ms = nowMs() - began
    await pg.exec(`set timezone to 'UTC'`)
    return { ms, ...(await pg.query(sumOf(table))).rows[0] }
  },

  /** Watches a query whose one row has a number `n`. */
  watch: async (sql) => {
    await pg.live.query(sql, [], ({ rows }) => { if (rows.length) seen.push({ n: rows[0].n, at: nowMs() }) })
  },

  /** What was seen: [{ n, at }]. */
  seen: () => seen,

  unsubscribe: () => sync.unsubscribe(),
})
