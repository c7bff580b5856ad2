// The demo app as `make demo` has it, and browsers that open it.
import { execFile, execFileSync } from 'node:child_process'
import { cpSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before } from 'node:test'
import { promisify } from 'node:util'
import { chromium } from 'playwright-core'
import { freshDatabase, root, scratchDir, startCluster, startProxy, startSidecar, waitFor } from '../lib/index.mjs'
import { atExit } from '../lib/cleanup.mjs'
import { token } from '../lib/jwt.mjs'
import { startGate } from './gate.mjs'

const executablePath = process.env.SHAPEFEED_CHROMIUM ?? join(root, '.local/chromium/chromium')
const secret = 'a secret of the tests, of 32 bytes and more'
const run = promisify(execFile)

/** A token of a user whom the demo's page does not offer. */
export const tokenOf = (id) => token({ role: 'app', sub: String(id) }, secret)

/** The demo's page with users that have tokens, as a folder to be served. `worker` changes the text of the worker. */
function page(worker) {
  const dir = scratchDir('page')
  cpSync(join(root, 'client/demo/dist'), dir, { recursive: true })
  writeFileSync(join(dir, 'users.json'), execFileSync(process.execPath, [join(root, 'client/demo/tokens.mjs'), secret]))
  if (worker) {
    const assets = join(dir, 'assets')
    const file = join(assets, readdirSync(assets).find((name) => /^sync\.worker-.*\.js$/.test(name)))
    writeFileSync(file, worker(readFileSync(file, 'utf8')))
    for (const compressed of ['br', 'gz']) rmSync(`${file}.${compressed}`)
  }
  return dir
}

/** Postgres with the demo's data, and a sidecar that serves them and the page; stopped after the tests of a file. */
export function demoSite({ flags = [], env = {}, worker } = {}) {
  const site = {
    sql: (text) => site.database.psql(text),
    users: undefined,
    /** Another sidecar at the same place or elsewhere. */
    start: ({ flags: more = [], ...options } = {}) => startSidecar({
      databaseUrl: site.database.url,
      flags: ['--static-dir', site.page, '--jwt-secret', secret, '--roles', 'app', ...flags, ...more],
      env,
      ...options,
    }),
  }
  before(async () => {
    site.cluster = await startCluster()
    site.database = await freshDatabase(site.cluster)
    await run(join(root, 'scripts/sample-app'), [String(site.cluster.port), site.database.name])
    site.page = page(worker)
    site.users = JSON.parse(readFileSync(join(site.page, 'users.json'), 'utf8'))
    site.sidecar = await site.start()
    site.client = await site.database.connect()
  })
  after(async () => {
    await site.sidecar?.stop()
    await site.cluster?.stop()
  })
  return site
}

/**
 * A way to the sidecar of its own: { origin, requests, cut(), join(), stop() }. `requests` are those of `startProxy`.
 * The page's host is `localhost`, where browsers let pages have service workers without TLS.
 */
export async function wire(site) {
  const proxy = await startProxy(site.sidecar.url)
  const gate = await startGate(new URL(proxy.url).port)
  return {
    origin: `http://localhost:${gate.port}`,
    requests: proxy.requests,
    cut: gate.cut,
    join: gate.join,
    stop: async () => {
      await gate.stop()
      await proxy.stop()
    },
  }
}

/**
 * A browser with a profile of its own: { context, open(), kill(), reopen(), close() }. `errors` has what pages printed as an
 * error or threw, but for requests that failed, which is what tests have them do.
 */
export async function startBrowser({ args = [], profile = scratchDir('profile'), ...options } = {}) {
  const flags = ['--no-sandbox', ...args]
  const context = await chromium.launchPersistentContext(profile, { executablePath, args: flags, viewport: { width: 1280, height: 800 }, ...options })
  const forget = atExit(() => killAll(profile))
  const errors = []
  context.on('weberror', (error) => errors.push(String(error.error()?.stack ?? error)))
  context.on('console', (message) => {
    if (message.type() === 'error' && !/Failed to load resource|ERR_|net::/.test(message.text())) errors.push(message.text())
  })
  return {
    context,
    errors,
    profile,
    /** A tab, signed in as a user of the site, where the app is open. */
    async open(origin, user, { ready = true } = {}) {
      const tab = await context.newPage()
      if (user) await tab.addInitScript((it) => sessionStorage.setItem('atrium.user', it), JSON.stringify(user))
      await tab.goto(`${origin}/`)
      if (ready) await opened(tab)
      return tab
    },
    /** SIGKILL of all its processes. */
    async kill() {
      killAll(profile)
      await context.close().catch(() => {})
      await waitFor(() => processesOf(profile).length === 0, { what: 'the browser is gone' })
      forget()
    },
    async close() {
      await context.close()
      forget()
    },
  }
}

/** Waits until the app has its database. */
export const opened = (tab) => tab.waitForFunction(() => window.sync, undefined, { timeout: 60_000 })

/** Rows of a query on the tab's local database. */
export const query = (tab, sql, params = []) => tab.evaluate(([text, values]) => sync.db.query(text, values).then(({ rows }) => rows), [sql, params])

/** The tab's status of sync. */
export const status = (tab) => tab.evaluate(() => sync.status())

/** Rows of a table as one text, to compare places. */
export const contents = (table, where = 'true') =>
  `select coalesce(string_agg(to_jsonb(t)::text, e'\\n' order by to_jsonb(t)::text collate "C"), '') as text from ${table} t where ${where}`

/** Waits until a tab's table is that of the server; `where` says which rows of it this user has. */
export async function equals(site, tab, table, where, timeoutMs = 20_000) {
  let here, there
  await waitFor(async () => {
    there = (await site.client.query(contents(table, where))).rows[0].text
    here = (await query(tab, contents(table, where)))[0].text
    return here === there
  }, { timeoutMs, what: `${table} is the server's` }).catch((error) => {
    const [a, b] = [here, there].map((text) => text?.split('\n') ?? [])
    throw new Error(`${error.message}; here only: ${a.filter((it) => !b.includes(it)).slice(0, 3)}; there only: ${b.filter((it) => !a.includes(it)).slice(0, 3)}`)
  })
}

function commandLine(pid) {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
  } catch {
    return ''
  }
}

function parentOf(pid) {
  try {
    return Number(readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) \S /, '').split(' ')[0])
  } catch {
    return 0
  }
}

/** Those that name the profile, and what they started. Zombies have no command line, but an executable neither. */
function processesOf(profile) {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number)
  const found = new Set(pids.filter((pid) => commandLine(pid).includes(profile)))
  const isOurs = (pid) => pid > 1 && (found.has(pid) || isOurs(parentOf(pid)))
  return found.size ? pids.filter((pid) => isOurs(pid) && isAlive(pid)) : []
}

function isAlive(pid) {
  try {
    return Boolean(readlinkSync(`/proc/${pid}/exe`))
  } catch {
    return false
  }
}

function killAll(profile) {
  for (const pid of processesOf(profile)) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // ended by itself
    }
  }
}
