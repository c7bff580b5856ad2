// C14: who is no member any more loses the company and what it has; who is again has it again.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { waitFor } from '../lib/index.mjs'
import { demoSite, equals, query, startBrowser, wire } from './site.mjs'

const site = demoSite()
const count = (tab) => query(tab, `select (select count(*) from companies where id = 2)::int as companies,
  (select count(*) from workspaces where company_id = 2)::int as workspaces, (select count(*) from folders where workspace_id in (4, 5))::int as folders`)
  .then(([row]) => row)
const nothing = { companies: 0, workspaces: 0, folders: 0 }
const isGone = async (tab) => Object.values(await count(tab)).every((n) => n === 0)

test('a membership that ends takes its rows away, online and at the next connection, and brings them back', { timeout: 120_000 }, async (t) => {
  const [ada, bruno] = site.users
  const [line, brunosLine] = [await wire(site), await wire(site)]
  const [a, b] = [await startBrowser(), await startBrowser()]
  const [adas, brunos] = [await a.open(line.origin, ada), await b.open(brunosLine.origin, bruno)]
  for (const tab of [adas, brunos]) {
    await tab.locator('.company-menu select').selectOption({ label: 'Harbor Coffee Roasters' })
    await equals(site, tab, 'folders', 'workspace_id = 4')
  }

  const member = brunos.locator('[data-member="1"]')
  await member.hover()
  await member.getByTitle('Remove Ada Brandt').click()
  const removed = Date.now()
  await waitFor(() => isGone(adas), { what: 'company, workspaces and folders are gone' })
  t.diagnostic(JSON.stringify({ goneMs: Date.now() - removed }))
  assert.equal(await adas.locator('.company-menu option').count(), 1, 'nor is the company in the menu')

  await brunos.locator('.invite').selectOption({ label: 'Ada Brandt' })
  await adas.locator('.company-menu select').selectOption({ label: 'Harbor Coffee Roasters' })
  await equals(site, adas, 'folders', 'workspace_id = 4')

  await line.cut()
  await brunos.locator('[data-member="1"]').hover()
  await brunos.locator('[data-member="1"]').getByTitle('Remove Ada Brandt').click()
  await brunos.evaluate(() => sync.sent())
  assert.notDeepEqual(await count(adas), nothing, 'who is offline does not know')
  await line.join()
  await waitFor(() => isGone(adas), { timeoutMs: 30_000, what: 'they are gone after the network is back' })
  assert.deepEqual([...a.errors, ...b.errors], [])
  await Promise.all([a.close(), b.close()])
  await Promise.all([line.stop(), brunosLine.stop()])
})
