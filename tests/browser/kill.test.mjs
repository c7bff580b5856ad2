// C6: a browser that is killed at once after a write was awaited has it when it is started again, once.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { scale, scratchDir, waitFor } from '../lib/index.mjs'
import { demoSite, query, startBrowser, status, wire } from './site.mjs'

const site = demoSite()
const kills = scale > 1 ? 20 : 3

const isThere = (tab, id) => query(tab, 'select count(*)::int as n from folders where id = $1', [id]).then(([{ n }]) => n)

test('no write that was awaited is lost or doubled when the browser is killed', { timeout: 60_000 + kills * 40_000 }, async () => {
  const ada = site.users[0]
  const profile = scratchDir('profile')
  const line = await wire(site)
  let browser = await startBrowser({ profile })
  let tab = await browser.open(line.origin, ada)
  await tab.waitForSelector('[data-folder]')
  await tab.evaluate(() => navigator.serviceWorker.ready.then(() => undefined))
  await line.cut()

  const written = []
  for (let i = 0; i < kills; i++) {
    const id = 800_000 + 10 * i
    await query(tab, "insert into folders (id, workspace_id, name) values ($1, 4, 'Statement')", [id])
    await tab.evaluate((first) => sync.db.transaction(async (tx) => {
      await tx.query("insert into folders (id, workspace_id, name) values ($1, 4, 'One of two')", [first + 1])
      await tx.query("insert into folders (id, workspace_id, name) values ($1, 4, 'The other one')", [first + 2])
    }), id)
    await browser.kill()
    written.push(id, id + 1, id + 2)

    browser = await startBrowser({ profile })
    tab = await browser.open(line.origin, ada)
    for (const it of written) assert.equal(await isThere(tab, it), 1, `folder ${it} after kill ${i + 1}`)
    assert.equal((await status(tab)).pending, 2 * (i + 1), 'transactions to be sent')
  }

  await line.join()
  await waitFor(async () => (await status(tab)).pending === 0, { timeoutMs: 60_000, what: 'all is sent' })
  const { rows } = await site.client.query('select id from folders where id between 800000 and 899999 order by id')
  assert.deepEqual(rows.map(({ id }) => id), written)
  assert.equal((await status(tab)).rejected, 0)
  await browser.close()
  await line.stop()
})
