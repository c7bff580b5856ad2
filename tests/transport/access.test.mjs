// The secret, whatever the path looks like and wherever it could leak; limits of requests at the same time.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import http2 from 'node:http2'
import net from 'node:net'
import { test } from 'node:test'
import { openEvents, send, served, sidecarBinary, waitFor } from '../lib/index.mjs'

const secret = 'tr0ub4dor'
const password = 'c0rrecth0rse'

const site = served({
  schema: "create table items (id int primary key, title text); insert into items values (1, 'battery');",
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '20000' },
})

/** What a path that is sent byte for byte is answered with. */
async function rawPath(port, path) {
  const socket = net.connect(port, '127.0.0.1')
  await once(socket, 'connect')
  socket.write(`GET ${path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`)
  const chunks = []
  for await (const chunk of socket) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

test('no spelling of the path gets past the secret', async () => {
  const { sidecar } = await site.another({ env: { SHAPEFEED_SECRET: secret, SHAPEFEED_INSECURE: undefined } })
  const spellings = [
    '/v1/shape', '/v1/shape/', '//v1/shape', '/v1//shape//', '/v1/%73hape', '/%76%31/shape', '/v1%2fshape', '/v1%2Fshape', '/v1/shape%2f', '/v1/%2e/shape',
    '/v1/./shape', '/v1/../v1/shape', '/x/../v1/shape', '/V1/SHAPE', '/v1/shape;x', '/v1/shape%00', '/v1/shape%20', '/v1/shape#', '/v1/%2573hape', '/v1\\shape',
    'http://elsewhere/v1/shape', '*', '/v1/shape%3f', '/v1/shape/.', '/v1/shape/%2e%2e/shape', '/%2fv1%2fshape',
  ]
  for (const path of spellings) {
    const answer = await rawPath(sidecar.port, `${path}?table=items&offset=-1`)
    assert.match(answer, /^HTTP\/1.1 (401|404|400) /, path)
    assert.doesNotMatch(answer, /battery/, path)
  }
  // Those that are the path of shapes open with the secret.
  for (const path of ['/v1/shape', '/v1/shape/', '//v1/shape', '/v1/%73hape', '/v1%2Fshape']) {
    assert.match(await rawPath(sidecar.port, `${path}?table=items&offset=-1&secret=${secret}`), /battery/, path)
  }
  // Nor does another place for it.
  for (const headers of [{ authorization: `Bearer ${secret}` }, { secret }, { cookie: `secret=${secret}` }]) {
    assert.equal((await send(sidecar.url, '/v1/shape?table=items&offset=-1', { headers })).status, 401)
  }
})

test('secrets are in no log, no answer and no metric, at the highest log level', async () => {
  const databaseUrl = site.database.url.replace('postgres@', `postgres:${password}@`)
  const { sidecar, api } = await site.another({ databaseUrl, env: { SHAPEFEED_SECRET: secret, SHAPEFEED_INSECURE: undefined, SHAPEFEED_LOG_LEVEL: 'trace', SHAPEFEED_LONG_POLL_TIMEOUT_MS: '500' } })
  const { handle } = await api.start({ table: 'items', secret })
  const answers = []
  const queries = [
    `table=items&offset=0_0&handle=${handle}&live&secret=${secret}`, `table=items&offset=0_0&handle=1-2-3&secret=${secret}`, `secret=${secret}`,
    `table=nothing&offset=-1&secret=${secret}`, `table=items&offset=-1&where=1/(id-1)=1&secret=${secret}`, `table=items&offset=-1&api_secret=${secret}`,
    `table=items&offset=-1&secret=${secret}x`, `table=items&offset=-1&secret=${secret}&foo=${'x'.repeat(70_000)}`, `secret=${secret}&secret=%ff`,
  ]
  for (const query of queries) {
    for (const method of ['GET', 'HEAD', 'POST', 'DELETE', 'OPTIONS', 'PUT']) answers.push(await api.get(query, { method }))
  }
  const client = http2.connect(sidecar.url)
  for (const query of queries) {
    const stream = client.request({ ':path': `/v1/shape?${query}` })
    stream.on('error', () => {})
    stream.resume()
    await new Promise((resolve) => stream.once('close', resolve))
  }
  client.destroy()
  answers.push({ text: await rawPath(sidecar.port, `/v1/shape?secret=${secret}\u0001`), headers: {} })
  answers.push({ text: (await send(sidecar.url, '/metrics')).text, headers: {} })
  await site.cluster.restart()
  await waitFor(async () => (await api.get(`table=items&offset=-1&secret=${secret}`)).status === 200, { what: 'it serves again' })
  await sidecar.stop()
  const log = sidecar.log()
  assert.match(log, /TRACE/)
  for (const hidden of [secret, password]) {
    const at = log.indexOf(hidden)
    assert.equal(at, -1, log.slice(Math.max(0, at - 200), at + 200))
    for (const { text, headers } of answers) assert.ok(!text.includes(hidden) && !JSON.stringify(headers).includes(hidden))
  }
})

test('what --help shows has no secret', async () => {
  const env = { ...process.env, SHAPEFEED_SECRET: secret, ELECTRIC_SECRET: secret, DATABASE_URL: `postgresql://u:${password}@h/d`, SHAPEFEED_DATABASE_URL: `postgresql://u:${password}@h/d` }
  const help = execFileSync(sidecarBinary, ['--help'], { env }).toString()
  assert.match(help, /--secret/)
  assert.ok(!help.includes(secret) && !help.includes(password))
})

test('requests above the limits are put off, each kind by its own', async () => {
  const { sidecar, api } = await site.another({ env: { SHAPEFEED_MAX_CONCURRENT_INITIAL: '2', SHAPEFEED_MAX_CONCURRENT_EXISTING: '3', SHAPEFEED_CHUNK_BYTES: '100000000' } })
  const follower = await api.follow({ table: 'items' })
  const live = () => api.get({ table: 'items', handle: follower.handle, offset: follower.offset, live: 'true', cursor: '' })
  const held = [live(), live(), live()]
  const metrics = async () => (await send(sidecar.url, '/metrics')).text
  await waitFor(async () => /shapefeed_live_requests 3/.test(await metrics()), { what: 'three held requests' })
  const seconds = new Set()
  for (let i = 0; i < 40; i++) {
    const { status, json, headers, cacheControl } = await live()
    assert.equal(status, 503)
    assert.deepEqual(json, { code: 'concurrent_request_limit_exceeded', message: 'Concurrent existing request limit exceeded (limit: 3), please retry' })
    assert.equal(headers['electric-internal-known-error'], 'true')
    assert.equal(headers['access-control-allow-origin'], '*')
    assert.equal(cacheControl, 'no-store')
    seconds.add(Number(headers['retry-after']))
  }
  assert.ok(Math.min(...seconds) >= 6 && Math.max(...seconds) <= 10 && seconds.size > 1, `${[...seconds]}`)
  assert.match(await metrics(), /shapefeed_requests_total\{class="put_off",status="503"\} 40/)
  assert.equal((await api.get({ table: 'items', offset: '-1' })).status, 200, 'who starts is not kept out by who waits')
  for (const path of ['/', '/v1/health']) assert.equal((await send(sidecar.url, path)).status, 200)
  assert.equal((await api.get('', { method: 'OPTIONS' })).status, 204)
  await site.sql("insert into items values (2, 'staple')")
  assert.deepEqual((await Promise.all(held)).map(({ status }) => status), [200, 200, 200])
  await waitFor(async () => (await api.get({ table: 'items', handle: follower.handle, offset: '0_0' })).status === 200, { what: 'there is room again' })

  // Requests that start, and do not take what they asked for: they are answered until they have.
  await site.sql("create table wide (id int primary key, v text); insert into wide select i, string_agg(md5(i::text || j::text), '') from generate_series(1, 100) i, generate_series(1, 4000) j group by i")
  await api.start({ table: 'wide' })
  const lazy = [1, 2].map(() => net.connect(sidecar.port, '127.0.0.1'))
  for (const socket of lazy) {
    socket.write('GET /v1/shape?table=wide&offset=-1 HTTP/1.1\r\nhost: x\r\n\r\n')
    await once(socket, 'readable')
  }
  const third = await api.get({ table: 'items', offset: 'now' })
  assert.equal(third.status, 503)
  assert.equal(third.json.message, 'Concurrent initial request limit exceeded (limit: 2), please retry')
  assert.equal((await api.get({ table: 'items', handle: follower.handle, offset: '0_0' })).status, 200, 'nor the other way round')
  lazy.forEach((socket) => socket.destroy())
  await waitFor(async () => (await api.get({ table: 'items', offset: 'now' })).status === 200, { what: 'there is room again' })
})

test('clients that go away leave their places', async () => {
  const { sidecar, api } = await site.another({ env: { SHAPEFEED_MAX_CONCURRENT_EXISTING: '5' } })
  const follower = await api.follow({ table: 'items' })
  for (let round = 0; round < 4; round++) {
    const gone = new AbortController()
    const held = Array.from({ length: 5 }, () =>
      api.get({ table: 'items', handle: follower.handle, offset: follower.offset, live: 'true', cursor: '' }, { signal: gone.signal })
        .catch(() => {}))
    const live = async () => Number((await send(sidecar.url, '/metrics')).text.match(/shapefeed_live_requests (\d+)/)[1])
    await waitFor(async () => await live() === 5, { what: 'all places are taken' })
    const next = () => api.get({ table: 'items', handle: follower.handle, offset: '0_0' })
    assert.equal((await next()).status, 503)
    gone.abort()
    await Promise.all(held)
    await waitFor(async () => await live() === 0 && (await next()).status === 200, { what: 'there is room again' })
  }
})

test('streams of events and subsets have their places too, streams until they end', async () => {
  const { sidecar, api } = await site.another({ env: { SHAPEFEED_MAX_CONCURRENT_EXISTING: '2' } })
  const follower = await api.follow({ table: 'items' })
  const of = { table: 'items', handle: follower.handle }
  const query = new URLSearchParams({ ...of, offset: follower.offset, live: 'true', live_sse: 'true', cursor: '' })
  const streams = [await openEvents(sidecar.url, query), await openEvents(sidecar.url, query)]
  const subset = () => api.get({ ...of, offset: follower.offset }, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"order_by":"id"}' })
  assert.equal((await openEvents(sidecar.url, query)).status, 503)
  assert.equal((await subset()).status, 503)
  streams[0].close()
  await waitFor(async () => (await subset()).status === 200, { what: 'there is room for a subset' })
  streams[1].close()
})

test("Electric's names of settings count", async () => {
  const ours = { SHAPEFEED_INSECURE: undefined, SHAPEFEED_ALLOW_DELETE: undefined, SHAPEFEED_DATABASE_URL: undefined, SHAPEFEED_LONG_POLL_TIMEOUT_MS: undefined }
  const theirs = { DATABASE_URL: site.database.url, ELECTRIC_SECRET: secret, ELECTRIC_ENABLE_INTEGRATION_TESTING: 'true', ELECTRIC_CACHE_MAX_AGE: '7', ELECTRIC_LONG_POLL_TIMEOUT: '300' }
  const { api } = await site.another({ env: { ...ours, ...theirs } })
  assert.equal((await api.get({ table: 'items', offset: '-1' })).status, 401)
  const follower = await api.follow({ table: 'items', secret })
  assert.match(follower.answers.at(-1).cacheControl, /max-age=7,/)
  const idle = await follower.live()
  assert.ok(idle.hasData === 'false' && idle.ms < 5000)
  assert.equal((await api.delete({ table: 'items', secret })).status, 202)
})
