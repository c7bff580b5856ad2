// C20: rows that come and are applied do not hold up the page.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { scale } from '../lib/index.mjs'
import { demoSite, query, startBrowser, wire } from './site.mjs'

const site = demoSite()
const rows = 10_000 * scale

test('a shape of many rows is read while the page stays at hand', { timeout: 120_000 + 30_000 * scale }, async (t) => {
  await site.sql(`insert into folders select 2000000 + n, 5, null, 'Folder ' || n from generate_series(1, ${rows}) n`)
  const line = await wire(site)
  const browser = await startBrowser()
  const tab = await browser.open(line.origin, site.users[0])
  await tab.waitForSelector('[data-folder]')
  const { ms, tasks } = await tab.evaluate(async () => {
    const long = []
    const observer = new PerformanceObserver((list) => long.push(...list.getEntries().map(({ duration }) => Math.round(duration))))
    observer.observe({ type: 'longtask' })
    const started = performance.now()
    const shape = sync.shape({ table: 'folders', where: 'workspace_id = 5 and id > 2000000' })
    await shape.upToDate()
    observer.takeRecords().forEach(({ duration }) => long.push(Math.round(duration)))
    return { ms: Math.round(performance.now() - started), tasks: long }
  })
  assert.equal((await query(tab, 'select count(*)::int as n from folders where id > 2000000'))[0].n, rows)
  t.diagnostic(JSON.stringify({ rows, ms, longTasks: tasks.length, worst: Math.max(0, ...tasks) }))
  // 100 ms on a machine that has a processor for the page; in CI others want it, too.
  const sum = tasks.reduce((a, b) => a + b, 0)
  assert.ok(sum < Math.max(300, ms / 10), `long tasks of ${sum} ms in ${ms} ms: ${tasks}`)
  await browser.close()
  await line.stop()
})
