// A database that does not open is told to the page, and the next try may succeed.
import { test } from 'node:test'
import { demoSite, opened, startBrowser, wire } from './site.mjs'

const site = demoSite()

test('the page says that the database does not open, and opens it when it can', { timeout: 120_000 }, async () => {
  const line = await wire(site)
  const browser = await startBrowser()
  const broken = '**/*.wasm'
  await browser.context.route(broken, (route) => route.abort())
  const tab = await browser.open(line.origin, site.users[0], { ready: false })
  await tab.getByText('The local database does not open').waitFor({ timeout: 30_000 })
  await browser.context.unroute(broken)
  await tab.getByText('Try again').click()
  await opened(tab)
  await tab.waitForSelector('[data-folder]')
  await browser.close()
  await line.stop()
})
