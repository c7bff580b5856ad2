// The stock pglite-sync, into a PGlite in this process.
import { PGlite } from '@electric-sql/pglite'
import { electricSync } from '@electric-sql/pglite-sync'
import { nowMs, serveLoad } from '../lib/load.mjs'

let pg

serveLoad({
  /** A PGlite with the table. */
  start: async (schema) => {
    pg = await PGlite.create({ extensions: { electric: electricSync() } })
    await pg.exec(schema)
  },

  /** Syncs the table from nothing: { ms, rows }. */
  sync: async (base, table) => {
    const began = nowMs()
    const sync = await new Promise((resolve, reject) => {
      const shape = { url: `${base}/v1/shape`, params: { table } }
      const started = pg.electric.syncShapeToTable({ shape, table, primaryKey: ['id'], shapeKey: null, onInitialSync: () => resolve(started), onError: reject })
    })
    const ms = nowMs() - began
    sync.unsubscribe()
    return { ms, rows: (await pg.query(`select count(*)::int as count from ${table}`)).rows[0].count }
  },
})
