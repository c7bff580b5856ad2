// HTTP/1.1 and HTTP/2, in the clear and over TLS; connections that stay, that are slow, and that are drained.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { copyFileSync, readFileSync } from 'node:fs'
import http from 'node:http'
import http2 from 'node:http2'
import net from 'node:net'
import { join } from 'node:path'
import { after, test } from 'node:test'
import tls from 'node:tls'
import { root, scratchDir, send, served, sleep, startSidecar, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `create table items (id int primary key, title text); insert into items values (1, 'a');
    create table wide (id int primary key, v text);
    insert into wide select i, string_agg(md5(i::text || j::text), '') from generate_series(1, 100) i, generate_series(1, 6000) j group by i;`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '20000' },
})

const certificates = join(root, 'tests/transport/certificates')
const sessions = []
after(() => sessions.forEach((session) => session.destroy()))

/** An HTTP/2 session with `get(path)`: { status, headers, text }. */
async function session(url, options = {}) {
  const client = http2.connect(url, options)
  sessions.push(client)
  client.on('error', () => {})
  await once(client, 'connect')
  const get = async (path, headers = {}) => {
    const stream = client.request({ ':path': path, ...headers })
    const [answer] = await once(stream, 'response')
    const chunks = []
    for await (const chunk of stream) chunks.push(chunk)
    return { status: answer[':status'], headers: answer, text: Buffer.concat(chunks).toString() }
  }
  return { client, get }
}

/** Bytes that a connection sends, until it is closed. */
async function connection(port) {
  const socket = net.connect(port, '127.0.0.1')
  await once(socket, 'connect')
  const it = { socket, text: '', closed: false }
  socket.on('data', (data) => { it.text += data })
  socket.on('error', () => {})
  socket.on('close', () => { it.closed = true })
  return it
}

const metric = async (name) => {
  const { text } = await send(site.sidecar.url, '/metrics')
  return Number(text.split('\n').find((line) => line.startsWith(`${name} `)).split(' ').at(-1))
}

test('HTTP/2 with prior knowledge: a page follows as many shapes as it likes over one connection', async () => {
  const { get } = await session(site.sidecar.url)
  const start = await get('/v1/shape?table=items&offset=-1')
  assert.equal(start.status, 200)
  assert.equal(start.headers['connection'], undefined)
  const handles = []
  for (let i = 0; i < 30; i++) {
    const { headers } = await get(`/v1/shape?table=items&where=id%3E${i}%20or%20title%3D%27z%27&offset=-1`)
    handles.push(headers['electric-handle'])
  }
  const upTo = await Promise.all(handles.map((handle, i) => get(`/v1/shape?table=items&where=id%3E${i}%20or%20title%3D%27z%27&offset=0_0&handle=${handle}`)))
  const held = upTo.map(({ headers }, i) => get(`/v1/shape?table=items&where=id%3E${i}%20or%20title%3D%27z%27&offset=${headers['electric-offset']}&handle=${headers['electric-handle']}&live&cursor=`))
  await waitFor(async () => await metric('shapefeed_live_requests') === 30, { what: 'thirty held requests' })
  await site.sql("insert into items values (1000, 'z')")
  for (const answer of await Promise.all(held)) {
    assert.equal(answer.status, 200)
    assert.match(answer.text, /"1000"/)
  }
})

test('a connection is not closed after so many requests', async () => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  const ports = new Set()
  agent.on('free', (socket) => ports.add(socket.localPort))
  for (let i = 0; i < 1500; i++) assert.equal((await send(site.sidecar.url, '/', { agent })).status, 200)
  assert.equal(ports.size, 1)
  agent.destroy()
})

test('TLS: HTTP/1.1 and HTTP/2 by negotiation, and SIGHUP reads the certificate again', async () => {
  const dir = scratchDir('certificate')
  const [cert, key] = [join(dir, 'tls.crt'), join(dir, 'tls.key')]
  const use = (name) => {
    copyFileSync(join(certificates, `${name}.crt`), cert)
    copyFileSync(join(certificates, `${name}.key`), key)
  }
  use('first')
  const sidecar = await startSidecar({ databaseUrl: site.database.url, flags: ['--tls-cert', cert, '--tls-key', key], ready: false })
  const url = `https://127.0.0.1:${sidecar.port}`
  const handshake = async (ALPNProtocols) => {
    const socket = tls.connect({ port: sidecar.port, host: '127.0.0.1', rejectUnauthorized: false, ALPNProtocols })
    await once(socket, 'secureConnect')
    const seen = { name: socket.getPeerCertificate().subject.CN, protocol: socket.alpnProtocol }
    socket.destroy()
    return seen
  }
  await waitFor(() => handshake(['h2']).catch(() => false), { what: 'it serves' })
  assert.deepEqual(await handshake(['h2', 'http/1.1']), { name: 'first', protocol: 'h2' })
  assert.deepEqual(await handshake(['http/1.1']), { name: 'first', protocol: 'http/1.1' })

  const { get } = await session(url, { rejectUnauthorized: false })
  assert.equal((await get('/v1/shape?table=items&offset=-1')).status, 200)

  use('second')
  process.kill(sidecar.pid, 'SIGHUP')
  await waitFor(async () => (await handshake(['h2'])).name === 'second', { what: 'the second certificate' })
  assert.equal((await get('/v1/shape?table=items&offset=-1')).status, 200, 'connections that are there stay')

  copyFileSync(join(certificates, 'first.key'), key)
  process.kill(sidecar.pid, 'SIGHUP')
  await waitFor(() => /stays as it was/.test(sidecar.log()), { what: 'the mismatch is logged' })
  assert.equal((await handshake(['h2'])).name, 'second', 'a certificate that does not fit its key changes nothing')

  // Who speaks something else is let go of, and nobody else notices.
  const plain = await connection(sidecar.port)
  plain.socket.write('GET / HTTP/1.1\r\n\r\n')
  await waitFor(() => plain.closed)
  assert.equal((await get('/')).status, 200)
  await sidecar.stop()
})

test('half a TLS configuration, or a file that is none, is refused at the start', async () => {
  const [cert, key] = [join(certificates, 'first.crt'), join(certificates, 'first.key')]
  const cases = [[['--tls-cert', cert], /tls-key/], [['--tls-cert', key, '--tls-key', key], /first\.key/], [['--tls-cert', cert, '--tls-key', '/nowhere'], /nowhere/]]
  for (const [flags, text] of cases) {
    const sidecar = await startSidecar({ databaseUrl: site.database.url, flags, ready: false })
    assert.notEqual((await sidecar.exited).code, 0)
    assert.match(sidecar.log(), text)
  }
})

test('slow connections: silence is fine, half a request or an answer that is not taken is not', async () => {
  const { sidecar } = await site.another({ env: { SHAPEFEED_HEADER_TIMEOUT: '1', SHAPEFEED_SEND_TIMEOUT: '2', SHAPEFEED_IDLE_TIMEOUT: '6' } })
  const [silent, half, trickling] = await Promise.all([0, 0, 0].map(() => connection(sidecar.port)))
  half.socket.write('GET / HTTP/1.1\r\nhost: x\r\n')
  const trickle = setInterval(() => trickling.socket.write('x'), 200)
  await waitFor(() => half.closed && trickling.closed, { timeoutMs: 5000, what: 'requests that do not come are given up' })
  clearInterval(trickle)
  assert.ok(!silent.closed)
  silent.socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n')
  await waitFor(() => /^HTTP\/1.1 200/.test(silent.text))
  const { get, client } = await session(sidecar.url)
  await get('/')
  await sleep(3000)
  assert.ok(!silent.closed && !client.closed, 'a connection may be silent for longer than a request may take')
  await waitFor(() => silent.closed && client.closed, { timeoutMs: 10_000, what: 'for so long, and no longer' })
})

test('clients that take nothing cost little, and are cut', async () => {
  const { sidecar, api } = await site.another({ env: { SHAPEFEED_SEND_TIMEOUT: '3', SHAPEFEED_LOG_LEVEL: 'debug', SHAPEFEED_CHUNK_BYTES: '100000000' } })
  const rss = () => Number(readFileSync(`/proc/${sidecar.pid}/status`, 'utf8').match(/VmRSS:\s+(\d+) kB/)[1]) * 1024
  await api.start({ table: 'wide' })
  const before = rss()
  const lazy = await Promise.all(Array.from({ length: 40 }, () => connection(sidecar.port)))
  for (const { socket } of lazy) {
    socket.pause()
    socket.write('GET /v1/shape?table=wide&offset=-1 HTTP/1.1\r\nhost: x\r\n\r\n')
  }
  const cut = () => sidecar.log().match(/connection cut.*late=Stall/g)?.length ?? 0
  let most = 0
  await waitFor(() => {
    most = Math.max(most, rss() - before)
    return cut() === lazy.length
  }, { timeoutMs: 20_000, what: 'all of them are cut' })
  assert.ok(most < lazy.length * (1 << 20), `${most} bytes for 40 answers of 19 MB`)
  lazy.forEach(({ socket }) => socket.destroy())
})

test('a client that is slow but takes its answer gets all of it', async () => {
  const { sidecar } = await site.another({ env: { SHAPEFEED_SEND_TIMEOUT: '2', SHAPEFEED_CHUNK_BYTES: '100000000' } })
  const request = http.get(`${sidecar.url}/v1/shape?table=wide&offset=-1`)
  const [response] = await once(request, 'response')
  const length = Number(response.headers['content-length'])
  assert.ok(length > 10 << 20)
  let taken = 0
  for await (const piece of response) {
    taken += piece.length
    // Four seconds or more in all, twice the limit.
    await sleep(piece.length / length * 5000)
  }
  assert.equal(taken, length)
})

test('drain: held requests are answered as at their end, and connections are told to close', async (t) => {
  const { sidecar, api } = await site.another()
  const follower = await api.follow({ table: 'items' })
  const query = `/v1/shape?table=items&handle=${follower.handle}&offset=${follower.offset}&live&cursor=`
  const agent = new http.Agent({ keepAlive: true })
  t.after(() => agent.destroy())
  const first = send(sidecar.url, query, { agent })
  const { client, get } = await session(sidecar.url)
  t.after(() => client.destroy())
  let toldToClose = false
  client.once('goaway', () => { toldToClose = true })
  const second = get(query)
  await waitFor(async () => /shapefeed_live_requests 2/.test((await send(sidecar.url, '/metrics')).text), { what: 'two held requests' })
  const began = Date.now()
  const stopped = sidecar.stop()
  for (const answer of await Promise.all([first, second])) {
    assert.equal(answer.status, 200)
    assert.equal(answer.headers['electric-has-data'], 'false')
    assert.match(answer.text, /up-to-date/)
    assert.ok(answer.headers['electric-handle'] && answer.headers['electric-cursor'])
  }
  assert.equal((await first).headers.connection, 'close')
  await waitFor(() => toldToClose, { timeoutMs: 5000, what: 'a GOAWAY' })
  assert.deepEqual(await stopped, { code: 0, signal: null })
  assert.ok(Date.now() - began < 5000)
})
