// A client of client/ in Node, with what tests ask of it.
import { openAsBlob } from 'node:fs'
import { join } from 'node:path'
import { createSync } from '../../../client/dist/index.js'
import { PGlite } from '../../../client/node_modules/@electric-sql/pglite/dist/index.js'
import { live } from '../../../client/node_modules/@electric-sql/pglite/dist/live/index.js'
import { root, waitFor } from '../../lib/index.mjs'
import { Line } from './line.mjs'

/** A table's rows, each as one line, in order. */
const rowsOf = (table, where = 'true') => `select to_jsonb(t)::text as t from ${table} t where ${where} order by to_jsonb(t)::text collate "C"`

/** A database as a first start finds it; `dataDir`: in memory, if it is not given. */
export async function newDatabase(dataDir) {
  return PGlite.create({ dataDir, loadDataDir: await openAsBlob(join(root, 'client/dist/pgdata.tar.gz')), extensions: { live } })
}

/** A database that is there already. */
export const oldDatabase = (dataDir) => PGlite.create({ dataDir, extensions: { live } })

/**
 * A client of a site (`served`) with a line of its own. `sync` is what createSync gives, `errors` what nobody asked about.
 * `options`: those of createSync.
 */
export async function openClient(site, { pglite, ...options } = {}) {
  const line = new Line()
  const errors = []
  const database = pglite ?? await newDatabase()
  const settings = { url: site.sidecar.url, userId: 'test', ...options, fetch: line.fetch, onError: (error) => errors.push(error), pglite: database }
  return new Client(site, line, errors, database, settings, await createSync(settings))
}

class Client {
  constructor(site, line, errors, pglite, settings, sync) {
    Object.assign(this, { site, line, errors, pglite, settings, sync })
  }

  async query(sql, params) {
    return (await this.sync.db.query(sql, params)).rows
  }

  async one(sql, params) {
    return Object.values((await this.query(sql, params))[0] ?? {})[0]
  }

  async lines(table, where) {
    return (await this.query(rowsOf(table, where))).map(({ t }) => t)
  }

  /** Follows a shape up to where it is up to date. */
  async follow(definition) {
    const handle = this.sync.shape(definition)
    await this.until(() => handle.status === 'live', () => `${JSON.stringify(definition)} is ${handle.status}: ${JSON.stringify(handle.error)}`)
    return handle
  }

  async until(condition, what = () => String(condition), timeoutMs = 30_000) {
    try {
      await waitFor(condition, { timeoutMs, what: 'it happens' })
    } catch (error) {
      throw new Error(`${what()}; ${JSON.stringify(this.sync.status())}; ${this.errors}`, { cause: error })
    }
  }

  /** Waits until everything written here is answered and confirmed. */
  settled() {
    return this.until(async () => (await this.one('select count(*)::int from sync.outbox')) === 0, () => 'the outbox is not empty')
  }

  /** Waits until the table is, here, what the query says there. */
  async equals(table, where) {
    let here, there
    const same = async () => {
      there = (await this.site.client.query(rowsOf(table, where))).rows.map(({ t }) => t)
      here = await this.lines(table, where).catch(() => [])
      return here.length === there.length && here.every((row, i) => row === there[i])
    }
    await this.until(same, () => {
      const missing = there.filter((row) => !here.includes(row))
      const extra = here.filter((row) => !there.includes(row))
      return `${table}: ${missing.length} rows missing, ${extra.length} too many: ${missing[0]} / ${extra[0]}`
    })
  }

  /** Another client on the same database, as after a reload. */
  async reload(options = {}) {
    await this.sync.close()
    return openClient(this.site, { ...this.settings, ...options, pglite: this.pglite })
  }

  async close() {
    await this.sync.close()
    if (!this.pglite.closed) await this.pglite.close()
  }
}
