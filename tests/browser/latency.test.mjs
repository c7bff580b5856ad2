// C4: how long it takes from a commit at the server, and from a write here, until a live query of the page has it. Each has to come; how fast is printed.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { scale, sleep, waitFor } from '../lib/index.mjs'
import { demoSite, query, startBrowser, tokenOf } from './site.mjs'

const site = demoSite()
const commits = scale > 1 ? 200 : 25
const rows = 10_000

/** What a time on this machine may come to before something is wrong rather than slow, in milliseconds. */
const gross = 3000

/** `window.seen`: when the page was first told of each id that is at least `from`. */
const watch = (tab, table, from) => tab.evaluate(async ([name, first]) => {
  window.seen = {}
  await sync.live(`select id from ${name} where id >= $1 order by id desc limit 20`, [first], (found) => {
    for (const { id } of found) window.seen[id] ??= performance.timeOrigin + performance.now()
  })
}, [table, from])

const instant = () => performance.timeOrigin + performance.now()

/** Milliseconds from each commit's acknowledgement to the page; `insert(id)` commits. */
async function commitTimes(tab, first, insert) {
  const committed = new Map()
  for (let id = first; id < first + commits; id++) {
    await insert(id)
    committed.set(id, instant())
    await sleep(80 + Math.random() * 80)
  }
  const ids = [...committed.keys()]
  await waitFor(() => tab.evaluate((all) => all.every((id) => id in window.seen), ids), { timeoutMs: 20_000, what: 'each commit has arrived' })
  const seen = await tab.evaluate(() => window.seen)
  return ids.map((id) => seen[id] - committed.get(id))
}

/** Milliseconds from each write in the page to its live query. */
const writeTimes = (tab, first, sql) => tab.evaluate(async ([from, count, text]) => {
  const times = []
  for (let id = from; id < from + count; id++) {
    const started = performance.timeOrigin + performance.now()
    await sync.db.query(text, [id])
    while (!(id in window.seen)) await new Promise((resolve) => setTimeout(resolve, 1))
    times.push(window.seen[id] - started)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  return times
}, [first, commits, sql])

function report(t, what, times) {
  const sorted = times.toSorted((a, b) => a - b).map(Math.round)
  const at = (share) => sorted[Math.ceil(sorted.length * share) - 1]
  t.diagnostic(`${what}: ${JSON.stringify({ count: sorted.length, p50: at(0.5), p95: at(0.95), worst: sorted.at(-1) })}`)
  assert.ok(at(0.5) < gross, `half of them take more than ${gross} ms: ${sorted}`)
}

/** A tab where all that a window follows is there. */
async function settled(browser, user, shape) {
  const tab = await browser.open(site.sidecar.url.replace('127.0.0.1', 'localhost'), user)
  await tab.evaluate((definition) => sync.shape(definition).upToDate(), shape)
  return tab
}

/** With so many users; ids of new ones are from `first` on. */
async function threeShapes(t, users, first) {
  await site.sql(`insert into users select 1000 + n, 'User ' || n from generate_series(1, ${users}) n on conflict do nothing`)
  const browser = await startBrowser()
  // Of no company: the app follows users, companies and workspaces.
  const tab = await settled(browser, { id: 1001, name: 'User 1', about: '', token: tokenOf(1001) }, { table: 'users' })
  assert.ok((await query(tab, 'select count(*)::int as n from users'))[0].n > users)
  await watch(tab, 'users', first)
  report(t, 'commit', await commitTimes(tab, first, (id) => site.client.query(`insert into users values ($1, 'New')`, [id])))
  assert.equal((await query(tab, 'select count(*)::int as n from sync.stream where active'))[0].n, 3)
  assert.deepEqual(browser.errors, [])
  await browser.close()
}

test('three shapes, 10,000 rows', { timeout: scale > 1 ? 600_000 : 120_000 }, (t) => threeShapes(t, rows, 1_000_000))

test('all shapes of the window, 10,000 rows, while others write', { timeout: scale > 1 ? 600_000 : 120_000 }, async (t) => {
  await site.sql(`insert into folders select 1000000 + n, 5, null, 'Folder ' || n from generate_series(1, ${rows}) n`)
  const browser = await startBrowser()
  const tab = await settled(browser, site.users[0], { table: 'folders', where: 'workspace_id = 5' })
  await tab.waitForSelector('[data-folder]')
  assert.ok((await query(tab, 'select count(*)::int as n from folders'))[0].n > rows)
  await watch(tab, 'folders', 3_000_000)
  report(t, 'local write', await writeTimes(tab, 3_000_000, `insert into folders (id, workspace_id, parent_id, name) values ($1, 4, 4001, 'Mine')`))
  await tab.evaluate(() => sync.sent())

  const other = await site.database.connect()
  let writing = true
  const others = (async () => {
    for (let n = 1; writing; n++) {
      await other.query('update folders set name = $2 where id = $1', [1_000_000 + 1 + n % rows, `Changed ${n}`])
      await sleep(50)
    }
  })()
  report(t, 'commit', await commitTimes(tab, 4_000_000, (id) => site.client.query(`insert into folders values ($1, 4, 4001, 'New')`, [id])))
  report(t, 'local write', await writeTimes(tab, 5_000_000, `insert into folders (id, workspace_id, parent_id, name) values ($1, 4, 4001, 'Mine')`))
  writing = false
  await others
  await tab.evaluate(() => sync.sent())
  const { rows: [{ n }] } = await site.client.query('select count(*)::int as n from folders where id >= 3000000')
  assert.equal(n, 3 * commits, 'what was written here is at the server')
  assert.deepEqual(browser.errors, [])
  await browser.close()
})

if (scale > 1) test('three shapes, 100,000 rows', { timeout: 600_000 }, (t) => threeShapes(t, 100_000, 2_000_000))
