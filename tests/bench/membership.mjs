// Users who follow what the companies have that they are members of: what it costs one feed session to have them all, and how
// soon a membership that comes or goes is told.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root, startSidecar, waitFor } from '../lib/index.mjs'
import { runParts } from './lib/cluster.mjs'
import { startLoad } from './lib/load.mjs'
import { cpuSeconds, memoryKiB } from './lib/processes.mjs'
import { check, figure, remark } from './lib/report.mjs'
import { quantile } from './lib/statistics.mjs'

const suite = 'membership'
const USERS = 50_000
const COMPANIES = 10_000
const MEMBERSHIPS = 5
/** Users of another kind, to learn what a value costs: members of so many companies. */
const WIDE = { users: 100, memberships: 2000 }
const SECONDS = 8
const FLIPS = 50
const UPDATES = { perSecond: 100, rows: 50 }
const DEFINED_AT_ONCE = 500

/** SQL for a user's k-th company; between two there is one more, which comes and goes. */
const APART = COMPANIES / MEMBERSHIPS
const company = (user, k) => `1 + (${user} + ${k} * ${APART}) % ${COMPANIES}`
const oneMore = (user) => `1 + (${user} + ${APART / 2}) % ${COMPANIES}`
/** Two workspaces in each company, two folders in each of these. */
const schema = `${readFileSync(join(root, 'sql/examples/foundation.sql'), 'utf8')}
  insert into users select i, 'user ' || i from generate_series(1, ${USERS + WIDE.users}) i;
  insert into companies select i, 'company ' || i from generate_series(1, ${COMPANIES}) i;
  insert into workspaces select i, 1 + i % ${COMPANIES}, 'workspace ' || i from generate_series(1, ${2 * COMPANIES}) i;
  insert into folders select i, 1 + i % ${2 * COMPANIES}, null, 'folder ' || i from generate_series(1, ${4 * COMPANIES}) i;
  insert into company_members select ${company('i', 'k')}, i from generate_series(1, ${USERS}) i, generate_series(0, ${MEMBERSHIPS - 1}) k;
  insert into company_members select 1 + (i + k) % ${COMPANIES}, i from generate_series(${USERS + 1}, ${USERS + WIDE.users}) i, generate_series(1, ${WIDE.memberships}) k;
  ${['companies', 'company_members', 'workspaces', 'folders'].map((table) => `call shapefeed.track('${table}');`).join('')}
  vacuum analyze; checkpoint;`

const visibleTo = {
  companies: 'id in (select company_id from company_members where user_id = $1)',
  workspaces: 'company_id in (select company_id from company_members where user_id = $1)',
  folders: 'workspace_id in (select id from workspaces where company_id in (select company_id from company_members where user_id = $1))',
}
const tables = Object.keys(visibleTo)
/** A user's shapes have these numbers. */
const idsOf = (user) => tables.map((_, k) => tables.length * (user - 1) + k + 1)
/** What a membership brings or takes away: the company, its workspaces, their folders. */
const MOVED = 1 + 2 + 4

/** So many users get a membership more, one after the other, and then lose it again. */
const FLIPPED = 100
const flips = [
  `insert into company_members select ${oneMore('u')}, u from (select 1 + $1::int % ${FLIPPED} * ${USERS / FLIPPED} u) s`,
  `delete from company_members using (select 1 + $1::int % ${FLIPPED} * ${USERS / FLIPPED} u) s where user_id = u and company_id = ${oneMore('u')}`,
].flatMap((statement) => Array(FLIPPED).fill(statement))
const flippedUser = (number) => 1 + (number % FLIPPED) * (USERS / FLIPPED)
const renamed = `update folders set name = 'folder ' || id || ' ' || $1::int
  where id > $1::int * ${UPDATES.rows} % ${4 * COMPANIES} and id <= $1::int * ${UPDATES.rows} % ${4 * COMPANIES} + ${UPDATES.rows}`

const parts = { mass, served }

/** Those whose name has a match of `only`, a regular expression. */
export const membership = (cluster, only = '') => runParts(cluster, schema, parts, only)


/** The definitions of these users' shapes, by number. */
async function define({ client }, users) {
  const definition = (table) => `shapefeed._define('{public,${table}}', '${visibleTo[table]}', array[u::text], null, 'default', 'full', null)::text`
  const { rows } = await client.query(`select array[${tables.map(definition)}] as d from unnest($1::int[]) u`, [users])
  return rows.flatMap(({ d }) => d)
}

/** Attaches the shapes of users from `first` on; what that cost the session. */
async function attach(database, feed, pid, first, count) {
  const [before, resident] = [cpuSeconds(pid), memoryKiB(pid).now]
  for (let at = first; at < first + count; at += DEFINED_AT_ONCE) {
    const users = Array.from({ length: Math.min(DEFINED_AT_ONCE, first + count - at) }, (_, i) => at + i)
    await feed.call('attach', users.flatMap(idsOf), await define(database, users))
  }
  return { seconds: cpuSeconds(pid) - before, bytes: (memoryKiB(pid).now - resident) * 1024 }
}

async function mass(database) {
  const feed = startLoad('feed')
  const pid = await feed.call('open', database.url)
  await attach(database, feed, pid, USERS, 1) // the tables are known
  const wide = await attach(database, feed, pid, USERS + 1, WIDE.users)
  const all = await attach(database, feed, pid, 1, USERS - 1)
  const shapes = tables.length * USERS
  const values = 3 * MEMBERSHIPS * USERS // companies, and two workspaces in each
  const ofValue = wide.bytes / (3 * WIDE.memberships * WIDE.users)
  figure({ suite, name: 'memory of a value of a set', value: ofValue, unit: ' B', at: '<=', target: 100 })
  figure({ suite, name: `memory of one of ${shapes} shapes beside its values`, value: (all.bytes - values * ofValue) / shapes, unit: ' B', at: '<=', target: 2048,
    note: `${(all.bytes / 2 ** 20).toFixed(0)} MiB in all` })
  remark({ suite, name: 'CPU of attaching a shape', value: all.seconds * 1e6 / shapes, unit: ' µs', note: `${all.seconds.toFixed(1)} s in all` })
  await load(database, feed, pid)
  await feed.stop()
}

/** Changes and memberships at their rates, while the feed is read. */
async function load(database, feed, pid) {
  const [members, folders] = [startLoad('writer'), startLoad('writer')]
  await feed.call('start')
  await waitFor(async () => (await feed.call('take')).operations.length === 0, { what: 'the feed is read' })
  const before = cpuSeconds(pid)
  const [acknowledged] = await Promise.all([
    members.call('write', database.url, flips, { perSecond: FLIPS, count: SECONDS * FLIPS }),
    folders.call('write', database.url, [renamed], { perSecond: UPDATES.perSecond, count: SECONDS * UPDATES.perSecond }),
  ])
  const came = []
  const updates = SECONDS * UPDATES.perSecond * UPDATES.rows
  let counted
  await waitFor(async () => {
    const taken = await feed.call('take')
    came.push(...taken.operations)
    counted = taken.counted
    return came.length >= acknowledged.length * MOVED && counted.updates >= updates
  }, { timeoutMs: 60_000, what: 'every change is told' })
  const used = cpuSeconds(pid) - before
  check(suite, 'changes told, once for all shapes', counted.updates, updates)
  check(suite, 'rows that memberships moved', came.length, acknowledged.length * MOVED)
  check(suite, 'shapes that ended', counted.ended, 0)
  check(suite, 'rows told to another user', came.filter(({ ids }, i) => !idsOf(flippedUser(Math.floor(i / MOVED))).includes(Number(ids.slice(1, -1)))).length, 0)
  const latencies = acknowledged.map((at, number) => came[(number + 1) * MOVED - 1].at - at)
  figure({ suite, name: `CPU of ${UPDATES.perSecond * UPDATES.rows} changes and ${FLIPS} memberships in a second`, value: used / SECONDS, unit: ' s', at: '<=', target: 1 })
  figure({ suite, name: 'a membership to the session that has all, p50', value: quantile(latencies, 0.5), unit: ' ms', at: '<=', target: 5, absolute: true })
  figure({ suite, name: 'the same, p99', value: quantile(latencies, 0.99), unit: ' ms', at: '<=', target: 30, absolute: true })
  await feed.call('stop')
  await Promise.all([members.stop(), folders.stop()])
}

/** Some users over HTTP: a live request for each of their shapes. */
async function served(database) {
  const users = Array.from({ length: FLIPPED }, (_, number) => flippedUser(number))
  const sidecar = await startSidecar({ databaseUrl: database.url, env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '300000' } })
  const [clients, writer] = [startLoad('clients'), startLoad('writer')]
  const shapes = users.flatMap((user) => tables.map((table) => ({ table, where: visibleTo[table], 'params[1]': user })))
  await clients.call('open', sidecar.url, shapes.length, shapes)
  await clients.call('goLive')
  await waitFor(async () => await sidecar.metric('shapefeed_live_requests') === shapes.length, { timeoutMs: 60_000, what: 'requests are held' })
  const acknowledged = await writer.call('write', database.url, flips, { perSecond: FLIPS, count: SECONDS * FLIPS })
  const came = []
  await waitFor(async () => {
    came.push(...(await clients.call('take', 'id')).filter(({ values }) => values.length))
    return came.length >= acknowledged.length * tables.length
  }, { timeoutMs: 60_000, what: 'every membership has come' })
  check(suite, 'rows that memberships moved, at clients', came.reduce((sum, { values }) => sum + values.length, 0), acknowledged.length * MOVED)
  const turns = new Map()
  const latencies = came.sort((a, b) => a.at - b.at).map(({ client, at }) => {
    const turn = turns.get(client) ?? 0
    turns.set(client, turn + 1)
    return at - acknowledged[Math.floor(client / tables.length) + turn * FLIPPED]
  })
  figure({ suite, name: 'a membership to its clients, p50', value: quantile(latencies, 0.5), unit: ' ms', at: '<=', target: 5, absolute: true })
  figure({ suite, name: 'the same at clients, p99', value: quantile(latencies, 0.99), unit: ' ms', at: '<=', target: 30, absolute: true })
  await Promise.all([clients.stop(), writer.stop(), sidecar.stop()])
}
