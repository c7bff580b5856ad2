// A cluster, a database and a sidecar for the tests of one file.
import { after, before } from 'node:test'
import { freshDatabase, startCluster } from './cluster.mjs'
import { ShapeApi } from './shape.mjs'
import { startSidecar } from './sidecar.mjs'

/**
 * Starts them before the tests of a file and stops them after: { cluster, database, sidecar, api, client }.
 * `schema`: SQL that is run first; `env`: settings of the sidecar; `ready`: what is done when it serves. `client` is a connection of `pg`.
 */
export function served({ schema = '', env = {}, conf = [], ready = async () => {} } = {}) {
  const site = {
    sql: (text) => site.database.psql(text),
    /** Something that is stopped before the sidecar. */
    onStop: (stop) => void others.push(stop),
    /** Another sidecar on the same database; it is stopped with the first. */
    async another(options = {}) {
      const sidecar = await startSidecar({ databaseUrl: site.database.url, ...options, env: { ...env, ...options.env } })
      const api = new ShapeApi(sidecar.url)
      others.push(async () => {
        api.close()
        await sidecar.stop()
      })
      return { sidecar, api }
    },
  }
  const others = []
  before(async () => {
    site.cluster = await startCluster({ conf })
    site.database = await freshDatabase(site.cluster)
    if (schema) await site.sql(schema)
    site.client = await site.database.connect()
    site.sidecar = await startSidecar({ databaseUrl: site.database.url, env })
    site.api = new ShapeApi(site.sidecar.url)
    await ready(site)
  })
  after(async () => {
    await Promise.all(others.map((stop) => stop()))
    site.api?.close()
    await site.sidecar?.stop()
    await site.cluster?.stop()
  })
  return site
}
