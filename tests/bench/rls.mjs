// Callers of one table whose policy asks for their memberships: what a change costs that concerns a few of them, and whether all
// have what they may SELECT.
import { startSidecar, waitFor } from '../lib/index.mjs'
import { bearer, token } from '../lib/jwt.mjs'
import { runParts } from './lib/cluster.mjs'
import { startLoad } from './lib/load.mjs'
import { cpuMs, cpuSeconds, memoryKiB } from './lib/processes.mjs'
import { check, figure, remark } from './lib/report.mjs'

const suite = 'rls'
const CALLERS = 10_000
/** As many teams; each caller is in so many, and each team has as many members. */
const TEAMS = 5
const DOCS = 20_000
const SECONDS = 8
const SAMPLE = 100
const DEFINED_AT_ONCE = 100
const secret = 'a secret of the benchmark, long enough for HS256'

const schema = `
  create role app;
  create table members (team int, person int, primary key (team, person));
  create table docs (id int primary key, team int not null, n int not null, body text not null);
  create index on docs (team); create index on members (person);
  insert into members select 1 + (i + k * ${CALLERS / TEAMS}) % ${CALLERS}, i from generate_series(1, ${CALLERS}) i, generate_series(0, ${TEAMS - 1}) k;
  insert into docs select i, 1 + i % ${CALLERS}, 0, repeat('x', 100) from generate_series(1, ${DOCS}) i;
  create function caller() returns int stable language sql return (current_setting('request.jwt.claims', true)::json ->> 'sub')::int;
  alter table docs enable row level security; alter table members enable row level security;
  create policy own on members for select using (person = (select caller()));
  create policy of_team on docs for select using (team in (select team from members where person = (select caller())));
  grant select on docs, members to app;
  call shapefeed.track('members'); call shapefeed.track('docs');
  vacuum analyze; checkpoint;`

const claims = (caller) => ({ role: 'app', sub: String(caller) })
/** Change number $1 is of so many rows that follow one another, of as many teams. */
const changed = (rows) => `update docs set n = $1::int where id > $1::int * ${rows} % ${DOCS} and id <= $1::int * ${rows} % ${DOCS} + ${rows}`

const parts = { feed, served }

/** Those whose name has a match of `only`, a regular expression. */
export const rls = (cluster, only = '') => runParts(cluster, schema, parts, only)

/** The rows that a caller may SELECT. */
async function selected({ client }, caller, query = 'select id, n from docs order by id') {
  await client.query('begin')
  await client.query("select set_config('request.jwt.claims', $1, true)", [JSON.stringify(claims(caller))])
  await client.query('set local role app')
  const { rows } = await client.query(query)
  await client.query('rollback')
  return rows
}

/** All in one feed session, without HTTP. */
async function feed(database) {
  const session = startLoad('feed')
  const pid = await session.call('open', database.url)
  const define = `select shapefeed._define('{public,docs}', null, null, null, 'default', 'full', 'app',
    jsonb_build_object('request.jwt.claims', json_build_object('role', 'app', 'sub', c::text)::text))::text as d from unnest($1::int[]) c`
  const attach = async (from, to) => {
    for (let at = from; at <= to; at += DEFINED_AT_ONCE) {
      const callers = Array.from({ length: Math.min(DEFINED_AT_ONCE, to + 1 - at) }, (_, i) => at + i)
      const { rows } = await database.client.query(define, [callers])
      await session.call('attach', callers, rows.map(({ d }) => d))
    }
  }
  await attach(1, DEFINED_AT_ONCE) // the tables are known
  const [used, resident] = [cpuSeconds(pid), memoryKiB(pid).now]
  await attach(DEFINED_AT_ONCE + 1, CALLERS)
  const callers = CALLERS - DEFINED_AT_ONCE
  remark({ suite, name: 'CPU of attaching a caller', value: (cpuSeconds(pid) - used) * 1e6 / callers, unit: ' µs' })
  remark({ suite, name: `memory of one of ${CALLERS} callers in the database`, value: (memoryKiB(pid).now - resident) * 1024 / callers, unit: ' B' })
  const [rows, perSecond] = [50, 40]
  const writer = startLoad('writer')
  await session.call('start')
  const before = cpuSeconds(pid)
  await writer.call('write', database.url, [changed(rows)], { perSecond, count: SECONDS * perSecond, first: 1 })
  const updates = SECONDS * perSecond * rows
  let counted
  await waitFor(async () => ({ counted } = await session.call('take')).counted.updates >= updates, { timeoutMs: 60_000, what: 'every change is told' })
  check(suite, 'changes told', counted.updates, updates)
  check(suite, 'callers told of them', counted.told, updates * TEAMS)
  check(suite, 'shapes that ended', counted.ended, 0)
  figure({ suite, name: `changes for ${CALLERS} callers in a second of the session's CPU`, value: updates / (cpuSeconds(pid) - before), at: '>=', target: 1000,
    note: 'the best published figure for checked feeds: 40/s for 500 subscribers' })
  await session.call('stop')
  await Promise.all([session.stop(), writer.stop()])
}

/** All over HTTP, with a token and a live request each. */
async function served(database) {
  const env = { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '300000', SHAPEFEED_JWT_SECRET: secret, SHAPEFEED_ROLES: 'app', SHAPEFEED_MAX_CONCURRENT_EXISTING: String(2 * CALLERS) }
  const sidecar = await startSidecar({ databaseUrl: database.url, env })
  const [clients, writer] = [startLoad('clients'), startLoad('writer')]
  const tokens = Array.from({ length: CALLERS }, (_, i) => token(claims(i + 1), secret))
  const resident = memoryKiB(sidecar.pid).now
  await clients.call('open', sidecar.url, CALLERS, [{ table: 'docs' }], tokens)
  await clients.call('goLive')
  await waitFor(async () => await sidecar.metric('shapefeed_live_requests') === CALLERS, { timeoutMs: 300_000, what: 'requests are held' })
  await waitFor(async () => await sidecar.metric('shapefeed_attached_shapes') >= CALLERS, { timeoutMs: 60_000, what: 'shapes are attached' })
  remark({ suite, name: `memory of one of ${CALLERS} live callers in the sidecar`, value: (memoryKiB(sidecar.pid).now - resident) / CALLERS, unit: ' KiB',
    note: 'connection, token, held request, shape and its tail' })
  const [rows, perSecond] = [50, 24]
  const count = SECONDS * perSecond
  const before = { sidecar: cpuMs(sidecar.pid), clients: await clients.cpuMs() }
  const acknowledged = await writer.call('write', database.url, [changed(rows)], { perSecond, count, first: 1000 })
  const came = new Map()
  let told = 0
  let last = 0
  await waitFor(async () => {
    for (const { client, at, values } of await clients.call('take', 'id')) {
      came.set(client, [...(came.get(client) ?? []), ...values])
      told += values.length
      last = Math.max(last, at)
    }
    return told >= count * rows * TEAMS
  }, { timeoutMs: 120_000, what: 'every change has come' })
  const seconds = (last - acknowledged[0]) / 1000
  check(suite, 'changes told to callers', told, count * rows * TEAMS)
  figure({ suite, name: `changes a second to ${CALLERS} live callers`, value: (count * rows) / seconds, at: '>=', target: 1000, absolute: true,
    note: `${(told / seconds).toFixed(0)} told a second, the last ${(last - acknowledged.at(-1)).toFixed(0)} ms after the writer had stopped` })
  remark({ suite, name: "the sidecar's CPU for each that was told", value: (cpuMs(sidecar.pid) - before.sidecar) * 1000 / told, unit: ' µs',
    note: `clients ${((await clients.cpuMs() - before.clients) * 1000 / told).toFixed(0)} µs` })
  await checkSample(database, sidecar, tokens, came, { first: 1000, count, rows })
  await Promise.all([clients.stop(), writer.stop(), sidecar.stop()])
}

/** Whether what callers were told, and what one who starts now gets, is what they may SELECT. */
async function checkSample(database, sidecar, tokens, came, { first, count, rows }) {
  const changes = Array.from({ length: count * rows }, (_, i) => 1 + (first + Math.floor(i / rows)) * rows % DOCS + (i % rows))
  let [wrong, different] = [0, 0]
  for (let caller = 1; caller <= CALLERS; caller += CALLERS / SAMPLE) {
    const visible = await selected(database, caller)
    const ids = new Set(visible.map(({ id }) => id))
    const expected = changes.filter((id) => ids.has(id)).sort((a, b) => a - b)
    const told = (came.get(caller - 1) ?? []).sort((a, b) => a - b)
    wrong += Number(String(told) !== String(expected))
    const held = new Map()
    for (let at = 'offset=-1'; at;) {
      const answer = await fetch(`${sidecar.url}/v1/shape?table=docs&${at}`, { headers: bearer(tokens[caller - 1]) })
      if (answer.status !== 200) throw new Error(`${answer.status} ${await answer.text()}`)
      for (const { key, value } of await answer.json()) if (key) held.set(key, { ...held.get(key), ...value })
      const header = (name) => answer.headers.get(`electric-${name}`)
      at = header('up-to-date') === null && `handle=${header('handle')}&offset=${header('offset')}`
    }
    const text = (all) => all.map(({ id, n }) => `${id} ${n}`).sort().join()
    different += Number(text([...held.values()]) !== text(visible))
  }
  check(suite, `of ${SAMPLE} callers, those who were told anything else than changes of what they see`, wrong, 0)
  check(suite, `of ${SAMPLE} callers, those who get other rows than SELECT gives`, different, 0)
}
