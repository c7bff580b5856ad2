// C2: how long the app takes to open, the first time, again, and without a network; what it transfers.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { demoSite, equals, opened, query, startBrowser, wire } from './site.mjs'

const site = demoSite()

/** Milliseconds from the start of the page's load to when the database answers and to the first folder. */
async function times(tab) {
  await tab.waitForSelector('[data-folder]', { timeout: 60_000 })
  return tab.evaluate(() => ({
    open: Math.round(performance.getEntriesByName('atrium:open')[0].startTime),
    folders: Math.round(performance.now()),
  }))
}

/** Bytes of page, worker and what they load, as they were sent, each once: the service worker asks for some of it again. */
function downloaded({ requests }) {
  const files = new Map()
  for (const { path, bytes } of requests) if (!path.startsWith('/v1/')) files.set(path, Math.max(bytes, files.get(path) ?? 0))
  return [...files.values()].reduce((sum, bytes) => sum + bytes, 0)
}

test('the app opens the first time, again, and without a network, with the rows that it had', async (t) => {
  const ada = site.users[0]
  const line = await wire(site)
  const browser = await startBrowser()
  const tab = await browser.open(line.origin, ada)
  const cold = await times(tab)
  const bytes = downloaded(line)
  await equals(site, tab, 'companies', 'id in (1, 2)')
  await tab.evaluate(() => navigator.serviceWorker.ready.then(() => undefined))

  await tab.reload()
  await opened(tab)
  const warm = await times(tab)

  await line.cut()
  await tab.context().setOffline(true)
  await tab.reload()
  await opened(tab)
  const offline = await times(tab)
  assert.ok((await query(tab, 'select count(*)::int as n from folders'))[0].n > 50, 'folders are there')
  await tab.waitForSelector('[data-online="false"]')
  t.diagnostic(JSON.stringify({ cold, warm, offline, downloaded: bytes }))
  assert.deepEqual(browser.errors, [])
  await browser.close()
  await line.stop()
})
