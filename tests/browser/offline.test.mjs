// C5: two people, of whom one is cut off, edits, reloads, and comes back: both and Postgres are the same then.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { waitFor } from '../lib/index.mjs'
import { demoSite, equals, opened, query, startBrowser, status, wire } from './site.mjs'

const site = demoSite()
const mine = 'workspace_id = 4' // the workspace that both have open
const run = (tab, sql, params) => query(tab, sql, params)

/** Twenty changes of folders: by the window's own buttons, by statements, and one transaction of three. */
async function edit(tab) {
  await tab.locator('[data-add]').click()
  await tab.locator('.folder form input').fill('Made offline')
  await tab.locator('.folder form input').press('Enter')
  for (let i = 0; i < 8; i++) await run(tab, 'insert into folders (id, workspace_id, parent_id, name) values ($1, 4, $2, $3)', [900_000 + i, i ? 900_000 : null, `Offline ${i}`])
  for (let i = 1; i <= 5; i++) await run(tab, 'update folders set name = $2 where id = $1', [4000 + i, `Renamed by Ada ${i}`])
  for (const id of [900_007, 40061, 40062]) await run(tab, 'delete from folders where id = $1', [id])
  await tab.evaluate(() => sync.db.transaction(async (tx) => {
    await tx.query("insert into folders (id, workspace_id, name) values (910000, 4, 'One')")
    await tx.query("insert into folders (id, workspace_id, parent_id, name) values (910001, 4, 910000, 'Transaction')")
    await tx.query('update folders set parent_id = 910000 where id = 4008')
  }))
}

test('what one edits offline and another one online meets when the network is back', { timeout: 180_000 }, async (t) => {
  const [ada, bruno] = site.users
  const [near, far] = [await wire(site), await wire(site)]
  const [a, b] = [await startBrowser(), await startBrowser()]
  const [adas, brunos] = [await a.open(near.origin, ada), await b.open(far.origin, bruno)]
  for (const tab of [adas, brunos]) await equals(site, tab, 'folders', mine)
  await adas.evaluate(() => navigator.serviceWorker.ready.then(() => undefined))

  await near.cut()
  await a.context.setOffline(true)
  await edit(adas)
  // Different columns of one row, the same column of another one, and a row that is gone meanwhile.
  await run(brunos, 'update folders set parent_id = 4002 where id = 4001')
  await run(brunos, "update folders set name = 'Renamed by Bruno' where id = 4002")
  await run(brunos, 'delete from folders where id = 4003')
  await run(brunos, "insert into folders (id, workspace_id, name) values (920000, 4, 'By Bruno')")
  await brunos.evaluate(() => sync.sent())
  await equals(site, brunos, 'folders', mine)

  await adas.reload()
  await opened(adas)
  await adas.getByText('Made offline', { exact: true }).waitFor({ timeout: 10_000 })
  await adas.getByText('Offline 0', { exact: true }).waitFor()
  const before = await run(adas, `select count(*)::int as n from folders where ${mine} and name like 'Offline %'`)
  assert.equal(before[0].n, 7, 'what was written offline is there after a reload')
  await waitFor(async () => (await status(adas)).pending > 0, { what: 'the window knows what it has not sent' })
  assert.equal((await status(adas)).online, false)

  const started = Date.now()
  await a.context.setOffline(false)
  await near.join()
  await waitFor(async () => (await status(adas)).pending === 0, { timeoutMs: 60_000, what: 'all is sent' })
  const sentMs = Date.now() - started
  for (const tab of [adas, brunos]) await equals(site, tab, 'folders', mine, 30_000)
  t.diagnostic(JSON.stringify({ sentMs, equalMs: Date.now() - started }))

  const { rows } = await site.client.query('select id, name, parent_id from folders where id in (4001, 4002, 4003, 910001, 4008) order by id')
  assert.deepEqual(rows, [
    { id: 4001, name: 'Renamed by Ada 1', parent_id: 4002 },
    { id: 4002, name: 'Renamed by Ada 2', parent_id: null },
    { id: 4008, name: 'Archive', parent_id: 910000 },
    { id: 910001, name: 'Transaction', parent_id: 910000 },
  ])
  assert.equal((await status(adas)).rejected, 1, 'the rename of the folder that is gone')
  await adas.locator('[data-rejection="P0002"]').getByText('Dismiss').click()
  await adas.locator('[data-rejection]').waitFor({ state: 'detached' })
  assert.deepEqual([...a.errors, ...b.errors], [])
  await Promise.all([a.close(), b.close()])
  await Promise.all([near.stop(), far.stop()])
})
