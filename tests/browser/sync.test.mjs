// C3, C18 and C20: many rows arrive, all of them as they are, while the page stays at hand; a browser that is started again goes on from there.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { scale, waitFor } from '../lib/index.mjs'
import { demoSite, opened, query, startBrowser, wire } from './site.mjs'

const site = demoSite()
const rows = 20_000 * scale

const schema = `
  create table entries (id uuid primary key, folder int not null, title text, amount numeric, size bigint, ratio float8, done bool not null,
    tags text[], body jsonb, changed_at timestamptz);
  grant select on entries to app;
  call shapefeed.track('public.entries');
  insert into entries select md5('entry ' || n)::uuid, n % 500, case when n % 11 > 0 then 'Entry ' || n || ' of "all", ünïcode ✓' end, n / 7.0,
    n * 1000000007::bigint, sqrt(n), n % 3 = 0, array['tag ' || n % 5, null, 'a,b'], jsonb_build_object('n', n, 'list', array[1, n], 'text', repeat('x', n % 60)),
    timestamptz '2024-02-29 12:00:00.123456Z' + n * interval '61 seconds' from generate_series(1, ${rows}) n`

/** Number of rows, and one hash over all columns of all rows in order. */
const digest = `select count(*)::int as n, md5(string_agg(row(id, folder, title, amount, size, ratio, done, tags, body,
  changed_at at time zone 'UTC')::text, e'\\n' order by id)) as hash from entries`

/**
 * Follows the table until it is up to date. `first`: milliseconds until a live query has a row; `tasks`: those of the page that
 * took long.
 */
const follow = (tab) => tab.evaluate(async () => {
  const tasks = []
  const note = (entries) => tasks.push(...entries.map(({ duration }) => Math.round(duration)))
  const observer = new PerformanceObserver((list) => note(list.getEntries()))
  observer.observe({ type: 'longtask' })
  const started = performance.now()
  const since = () => Math.round(performance.now() - started)
  const seen = new Promise((resolve) => sync.live('select id from entries limit 1', [], ({ length }) => length && resolve(since())))
  await sync.shape({ table: 'entries' }).upToDate()
  const ms = since()
  note(observer.takeRecords())
  return { ms, first: await seen, tasks }
})

const api = ({ requests }) => requests.filter(({ path }) => path.startsWith('/v1/'))
const transferred = (line) => sum(api(line).map(({ bytes }) => bytes))
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0)

/** 100 ms on a machine that has a processor for the page; in CI others want it, too. */
function isAtHand({ ms, tasks }) {
  assert.ok(sum(tasks) < Math.max(300, ms / 10), `long tasks of ${sum(tasks)} ms in ${ms} ms: ${tasks}`)
}

test('many rows of all kinds arrive as they are, and a restart transfers none of them', { timeout: 120_000 + 60_000 * scale }, async (t) => {
  await site.sql(schema)
  const line = await wire(site)
  const first = await startBrowser()
  const before = await first.open(line.origin, site.users[0])
  await before.waitForSelector('[data-folder]')
  const came = await follow(before)
  assert.deepEqual(await query(before, digest), (await site.client.query(digest)).rows)
  t.diagnostic(JSON.stringify({ rows, ms: came.ms, rowsPerSecond: Math.round(rows / came.ms * 1000), firstRowMs: came.first,
    kB: Math.round(transferred(line) / 1000), longTasks: came.tasks.length, worst: Math.max(0, ...came.tasks) }))
  isAtHand(came)
  await before.evaluate(() => navigator.serviceWorker.ready.then(() => undefined))
  await first.close()

  line.requests.length = 0
  const again = await startBrowser({ profile: first.profile })
  const tab = await again.open(line.origin, site.users[0], { ready: false })
  await opened(tab)
  const { n } = (await query(tab, 'select count(*)::int as n from entries'))[0]
  const usableMs = await tab.evaluate(() => Math.round(performance.now()))
  assert.equal(n, rows, 'all rows are there as soon as the database is')
  const resumed = await follow(tab)
  await waitFor(() => api(line).filter(({ params }) => params.get('live') === 'true').length >= 8, { what: 'all shapes are followed' })
  t.diagnostic(JSON.stringify({ usableMs, upToDateMs: resumed.ms, requests: api(line).length, bytes: transferred(line) }))
  assert.ok(transferred(line) < 50_000, `${transferred(line)} bytes were transferred`)
  assert.equal(api(line).filter(({ params }) => params.get('offset') === '-1').length, 0, 'nothing is fetched again')
  assert.deepEqual(await query(tab, digest), (await site.client.query(digest)).rows)
  assert.deepEqual([...first.errors, ...again.errors], [])
  await again.close()
  await line.stop()
})
