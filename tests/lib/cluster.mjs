// Private Postgres clusters, by scripts/cluster.
import { execFile, spawnSync } from 'node:child_process'
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { atExit } from './cleanup.mjs'
import { pgBin, root, scratchDir } from './paths.mjs'
import { freePort } from './wait.mjs'

const run = promisify(execFile)
const script = join(root, 'scripts/cluster')

// A process that dies loses nothing without fsync; only a machine does. Pass fsync=on where fsync's time is measured.
const testSettings = ['fsync=off', 'max_prepared_transactions=64', 'max_connections=200', "log_statement='none'"]

/**
 * A running cluster. Stop it with `stop()`; at the end of the process it is stopped anyway.
 * `url` names the superuser and the database postgres; `urlOf(database, user)` others.
 */
class Cluster {
  constructor(dir, port, settings) {
    Object.assign(this, { dir, port, settings, clients: new Set() })
    this.dataDir = join(dir, 'data')
    this.url = this.urlOf('postgres')
    this.forget = atExit(() => {
      spawnSync(script, ['stop', this.dataDir, 'immediate'], { stdio: 'inherit' })
      if (!process.env.SHAPEFEED_TEST_DIR) rmSync(dir, { recursive: true, force: true })
    })
  }

  urlOf(database, user = 'postgres') {
    return `postgresql://${encodeURIComponent(user)}@127.0.0.1:${this.port}/${encodeURIComponent(database)}`
  }

  /** Starts it again, with the settings that it had or, beside them, with `conf` (lines of postgresql.conf). */
  async start({ conf = [] } = {}) {
    this.settings = [...this.settings, ...conf]
    await run(script, ['start', this.dataDir, String(this.port), ...this.settings])
  }

  async stop() {
    await this.halt('fast')
  }

  async stopImmediate() {
    await this.halt('immediate')
  }

  async halt(mode) {
    await this.disconnect()
    await run(script, ['stop', this.dataDir, mode])
  }

  /** `mode`: 'fast' or 'immediate'. Connections of `connect()` are closed. */
  async restart({ mode = 'fast', conf = [] } = {}) {
    await this.halt(mode)
    await this.start({ conf })
  }

  /** kill -9 of the postmaster. Its other processes notice and end; `start()` waits for that. */
  kill9() {
    process.kill(this.pid, 'SIGKILL')
  }

  get pid() {
    return Number(readFileSync(join(this.dataDir, 'postmaster.pid'), 'utf8').split('\n')[0])
  }

  log() {
    return readFileSync(join(this.dataDir, 'postgres.log'), 'utf8')
  }

  /** Runs a script by psql and returns what it prints: unaligned, tuples only. Stops at the first error, which rejects. */
  async psql(sql, { database = 'postgres', user = 'postgres', args = [] } = {}) {
    const child = run(join(pgBin, 'psql'),
      ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', ...args, this.urlOf(database, user)], { maxBuffer: 1 << 28 })
    child.child.stdin.on('error', () => {}) // psql may end before it has read everything
    child.child.stdin.end(sql)
    return (await child).stdout.replace(/\n$/, '')
  }

  /** A connected client of `pg`; closed with the cluster, or by `end()`. */
  async connect({ database = 'postgres', user = 'postgres', ...options } = {}) {
    const client = new pg.Client({ connectionString: this.urlOf(database, user), ...options })
    client.on('error', () => {}) // the server went away: the next query says so
    await client.connect()
    this.clients.add(client)
    client.once('end', () => this.clients.delete(client))
    return client
  }

  async disconnect() {
    await Promise.all([...this.clients].map((client) => client.end().catch(() => {})))
    this.clients.clear()
  }
}

function settingsOf({ preload = true, conf = [] }) {
  return [...testSettings, ...(preload ? [] : ["shared_preload_libraries=''"]), ...conf]
}

/** Makes and starts a cluster. `preload`: with the extension's library; `conf`: lines of postgresql.conf, "name=value". */
export async function startCluster({ preload = true, conf = [] } = {}) {
  const cluster = new Cluster(scratchDir('cluster'), await freePort(), settingsOf({ preload, conf }))
  await cluster.start()
  return cluster
}

/** A streaming standby of `primary`, with the primary's settings and `conf`. */
export async function startStandby(primary, { conf = [] } = {}) {
  const standby = new Cluster(scratchDir('standby'), await freePort(), [...primary.settings, ...conf])
  await run(script, ['standby', standby.dataDir, String(standby.port), String(primary.port), ...standby.settings])
  return standby
}

let databases = 0

/**
 * A new database with the extension: { name, url, psql(sql, options), connect(options), drop() }.
 * `extension: false` leaves CREATE EXTENSION to the test.
 */
export async function freshDatabase(cluster, { extension = true } = {}) {
  const name = `test_${process.pid}_${++databases}`
  await cluster.psql(`create database ${name};`)
  if (extension) await cluster.psql('create extension shapefeed;', { database: name })
  return {
    name,
    url: cluster.urlOf(name),
    urlAs: (user) => cluster.urlOf(name, user),
    psql: (sql, options) => cluster.psql(sql, { database: name, ...options }),
    connect: (options) => cluster.connect({ database: name, ...options }),
    drop: () => cluster.psql(`drop database ${name} with (force);`),
  }
}
