// C16: seven shapes and more that wait do not hold up a write: over HTTP/2 with TLS, and over HTTP/1.1 with live requests spread.
import assert from 'node:assert/strict'
import net from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { root, waitFor } from '../lib/index.mjs'
import { demoSite, query, startBrowser, wire } from './site.mjs'

const site = demoSite()
const certificates = join(root, 'tests/transport/certificates')
const writes = 40

/** Milliseconds of writes until the server has answered, one after the other. */
async function writeTimes(tab, first) {
  const times = []
  for (let i = 0; i < writes; i++) {
    times.push(await tab.evaluate(async (id) => {
      const started = performance.now()
      await sync.db.query("insert into folders (id, workspace_id, name) values ($1, 4, 'Timed')", [id])
      await sync.sent()
      return performance.now() - started
    }, first + i))
  }
  return times.map(Math.round)
}

/** By which protocol the worker's requests went, of those that the browser remembers. */
const protocols = (tab) => tab.workers()[0].evaluate(() => {
  const api = performance.getEntriesByType('resource').filter(({ name }) => name.includes('/v1/'))
  return [...new Set(api.map(({ nextHopProtocol }) => nextHopProtocol).filter(Boolean))]
})

const accepts = (port) => new Promise((resolve) => {
  const socket = net.connect(port, '127.0.0.1', () => resolve(true)).on('error', () => resolve(false)).on('close', () => socket.destroy())
  socket.on('connect', () => socket.end())
})

async function check(t, origin, { first, protocol, args = [] }) {
  const browser = await startBrowser({ args, ignoreHTTPSErrors: true })
  const tab = await browser.open(origin, site.users[0])
  // The company's shapes and the workspace's, which the panel names, are live.
  await tab.waitForFunction(() => document.querySelectorAll('.panel .state.live').length === 2)
  const times = await writeTimes(tab, first)
  const sorted = times.toSorted((a, b) => a - b)
  const [p50, p95] = [0.5, 0.95].map((share) => sorted[Math.ceil(writes * share) - 1])
  t.diagnostic(JSON.stringify({ first: times[0], p50, p95, worst: sorted.at(-1), protocols: await protocols(tab) }))
  if (protocol) assert.deepEqual(await protocols(tab), [protocol])
  // A write that waits for a connection waits as long as a live request is held, which is 20 s.
  assert.ok(p95 < 2000, `no write waits for a connection: ${times}`)
  assert.equal((await query(tab, "select count(*)::int as n from folders where name = 'Timed'"))[0].n >= writes, true)
  assert.deepEqual(browser.errors, [])
  await browser.close()
}

test('HTTP/1.1 on this machine: live requests are spread over names', { timeout: 120_000 }, async (t) => {
  const line = await wire(site)
  await check(t, line.origin, { first: 600_000 })
  assert.ok(line.requests.filter(({ params }) => params.get('live') === 'true').length >= 7)
  await line.stop()
})

test('HTTP/2 over TLS', { timeout: 120_000 }, async (t) => {
  const secure = await site.start({ flags: ['--tls-cert', join(certificates, 'first.crt'), '--tls-key', join(certificates, 'first.key')], ready: false })
  await waitFor(() => accepts(secure.port), { what: 'it listens' })
  await check(t, secure.url.replace('http://127.0.0.1', 'https://localhost'), { first: 650_000, protocol: 'h2', args: ['--ignore-certificate-errors'] })
  await secure.stop()
})
