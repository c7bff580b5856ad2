// Where workers cannot write to OPFS the database is in IndexedDB: nothing that was awaited is lost there either.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root, scratchDir, waitFor } from '../lib/index.mjs'
import { demoSite, equals, opened, query, startBrowser, status, wire } from './site.mjs'

const site = demoSite({ worker: (text) => `delete FileSystemFileHandle.prototype.createSyncAccessHandle;\n${text}` })

const insert = (tab, id) => query(tab, "insert into folders (id, workspace_id, name) values ($1, 4, 'Offline')", [id])
const transaction = (tab, id) => tab.evaluate((first) => sync.db.transaction(async (tx) => {
  for (const folder of [first, first + 1]) await tx.query("insert into folders (id, workspace_id, name) values ($1, 4, 'Offline')", [folder])
}), id)
const written = async (tab) => (await query(tab, "select id from folders where name = 'Offline' order by id")).map(({ id }) => id)

test('the app works, and writes that were awaited outlive a reload and a kill at once', { timeout: 180_000 }, async (t) => {
  const profile = scratchDir('profile')
  const line = await wire(site)
  let browser = await startBrowser({ profile })
  let tab = await browser.open(line.origin, site.users[0])
  const first = await tab.evaluate(() => Math.round(performance.getEntriesByName('atrium:open')[0].startTime))
  await equals(site, tab, 'folders', 'workspace_id = 4')
  const places = await tab.evaluate(async () => ({
    opfs: (await Array.fromAsync((await navigator.storage.getDirectory()).keys())).length,
    indexedDb: (await indexedDB.databases()).length,
  }))
  assert.deepEqual(places, { opfs: 0, indexedDb: 1 })
  await tab.evaluate(() => navigator.serviceWorker.ready.then(() => undefined))

  await line.cut()
  await insert(tab, 900_000)
  await tab.reload()
  await opened(tab)
  assert.deepEqual(await written(tab), [900_000])
  const again = await tab.evaluate(() => Math.round(performance.getEntriesByName('atrium:open')[0].startTime))
  const times = await tab.evaluate(async () => {
    const all = []
    for (let id = 900_100; id < 900_120; id++) {
      const started = performance.now()
      await sync.db.query("insert into folders (id, workspace_id, name) values ($1, 4, 'Timed')", [id])
      all.push(performance.now() - started)
    }
    return all.map(Math.round)
  })
  const sorted = times.toSorted((a, b) => a - b)
  t.diagnostic(JSON.stringify({ openMs: [first, again], writeMs: { first: times[0], p50: sorted[9], p95: sorted[18], worst: sorted[19] } }))
  const expected = [900_000]
  for (const [write, id, count] of [[insert, 900_001, 1], [transaction, 900_002, 2]]) {
    await write(tab, id)
    await browser.kill()
    for (let n = 0; n < count; n++) expected.push(id + n)
    browser = await startBrowser({ profile })
    tab = await browser.open(line.origin, site.users[0])
    assert.deepEqual(await written(tab), expected)
  }

  await line.join()
  await waitFor(async () => (await status(tab)).pending === 0, { timeoutMs: 60_000, what: 'all is sent' })
  await equals(site, tab, 'folders', 'workspace_id = 4')
  const { rows } = await site.client.query("select id from folders where name = 'Offline' order by id")
  assert.deepEqual(rows.map(({ id }) => id), expected)
  assert.deepEqual(browser.errors, [])
  await browser.close()
  await line.stop()
})

/** Changes files at random; what is wrong with what is kept then, if something is. */
async function firstDifference([source, seed]) {
  const { IndexedDbBackend } = await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })))
  let state = seed
  const below = (n) => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 8) % n
  const paths = ['/a', '/a/1', '/a/10', '/a/16', '/a/160', '/b', '/b/1', '/global/pg_control', '/ab']
  const directories = new Set()
  const files = new Map()
  const backend = new IndexedDbBackend(`test ${seed}`)
  const text = ([path, data]) => `${path} ${data && [...data].map((byte) => String.fromCharCode(byte)).join('')}`
  await backend.init()
  for (let round = 0; round < 40; round++) {
    const ops = []
    const changed = []
    for (let n = below(3); n > 0; n--) {
      const path = paths[below(paths.length)]
      if (below(2) && !files.has(path) && path !== '/global/pg_control') {
        ops.push({ op: 'mkdir', path })
        directories.add(path)
      } else {
        ops.push({ op: 'remove', path })
        for (const all of [directories, files]) for (const it of [...all.keys()]) if (it === path || it.startsWith(`${path}/`)) all.delete(it)
      }
    }
    for (const path of new Set([0, 0, 0].map(() => paths[below(paths.length)]))) {
      if (directories.has(path)) continue
      const before = files.get(path)
      const full = !before || below(4) === 0
      const size = below(2) ? below(5) * 8192 : below(40_000)
      const truncate = full || size < before.length || below(2) === 0
      const now = new Uint8Array(truncate ? size : Math.max(size, before.length))
      if (!full) now.set(before.subarray(0, now.length))
      const chunks = []
      for (let at = full ? 0 : below(20_000); at < now.length; at += full ? now.length : 1 + below(20_000)) {
        const length = full ? now.length : Math.min(now.length - at, 1 + below(below(2) ? 300 : 20_000))
        for (let i = at; i < at + length; i++) now[i] = at % 3 ? below(256) : 0
        chunks.push({ at, data: now.slice(at, at + length) })
        at += length
      }
      files.set(path, now)
      changed.push({ path, size: now.length, full, truncate, chunks })
    }
    const group = () => changed.filter((_, index) => index % 2 === round % 2)
    const wal = group()
    await backend.apply({ ops, files: { wal, data: changed.filter((it) => !wal.includes(it)), control: [] } }, { relaxedDurability: true })
    const kept = []
    for await (const { path, data } of backend.load()) kept.push([path, data])
    const model = [...[...directories].sort().map((path) => [path]), ...[...files].sort(([a], [b]) => (a < b ? -1 : 1))]
    if (kept.map(text).join() !== model.map(text).join()) return `round ${round}: other files than were written`
    if (await backend.hasDatabase() !== files.has('/global/pg_control')) return `round ${round}: a database, or none`
  }
  return undefined
}

test('blocks are what was written to files, after any changes', { timeout: 120_000 }, async () => {
  const source = readFileSync(join(root, 'client/dist/indexeddb.js'), 'utf8')
  const browser = await startBrowser()
  const tab = await browser.context.newPage()
  await tab.goto(`${site.sidecar.url}/icon.svg`)
  for (let seed = 1; seed <= 3; seed++) {
    assert.equal(await tab.evaluate(firstDifference, [source, seed]), undefined, `seed ${seed}`)
  }
  await browser.close()
})
