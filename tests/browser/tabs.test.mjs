// C11: tabs share one database, one set of streams and one sender, and outlive each other.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { waitFor } from '../lib/index.mjs'
import { demoSite, equals, query, startBrowser, status, wire } from './site.mjs'

const site = demoSite()

/** Follows folders of a workspace by a live query of the tab: `window.seen` has the names that it was last told. */
const watch = (tab) => tab.evaluate(async () => {
  window.seen = []
  window.endWatch = await sync.live('select name from folders where workspace_id = 4 and parent_id is null order by name', [], (rows) => { window.seen = rows.map((row) => row.name) })
})
const sees = (tab, name, timeoutMs = 10_000) => waitFor(() => tab.evaluate((it) => window.seen.includes(it), name), { timeoutMs, what: `the tab's live query has ${name}` })

test('one leader for all tabs: live queries outlive other tabs and the leader; streams and writes are not doubled', { timeout: 120_000 }, async (t) => {
  const ada = site.users[0]
  const line = await wire(site)
  const browser = await startBrowser()
  const first = await browser.open(line.origin, ada)
  await first.waitForSelector('[data-folder]')
  const second = await browser.open(line.origin, ada)
  await second.waitForSelector('[data-folder]')
  assert.deepEqual([(await status(first)).leader, (await status(second)).leader], [true, false])
  const initial = line.requests.filter(({ path, params }) => path === '/v1/shape' && params.get('offset') === '-1')
    .map(({ params }) => [...params].filter(([name]) => name === 'table' || name === 'where' || name.startsWith('params')).sort().join(' '))
  assert.equal(new Set(initial).size, initial.length, `each shape is asked for once: ${initial.join('; ')}`)

  await watch(first)
  await watch(second)
  await sees(first, 'Plans')
  await second.evaluate(() => window.endWatch())
  await site.sql("update folders set name = 'After one unmounted' where id = 4001")
  await sees(first, 'After one unmounted')
  await watch(second)
  await query(second, "insert into folders (id, workspace_id, name) values (700001, 4, 'By the follower')")
  await sees(first, 'By the follower')
  await second.evaluate(() => sync.sent())

  const closed = Date.now()
  await first.close()
  await waitFor(async () => (await status(second)).leader, { timeoutMs: 20_000, what: 'the other tab leads' })
  await site.sql("update folders set name = 'After the leader went' where id = 4002")
  await sees(second, 'After the leader went', 20_000)
  const failoverMs = Date.now() - closed
  await query(second, "insert into folders (id, workspace_id, name) values (700002, 4, 'By the new leader')")
  await second.evaluate(() => sync.sent())
  await equals(site, second, 'folders', 'workspace_id = 4')
  const { rows } = await site.client.query('select id from folders where id in (700001, 700002) order by id')
  assert.deepEqual(rows.map(({ id }) => id), [700001, 700002])
  assert.equal((await status(second)).rejected, 0, 'nothing was sent twice')
  t.diagnostic(JSON.stringify({ failoverMs }))
  assert.deepEqual(browser.errors, [])
  await browser.close()
  await line.stop()
})
