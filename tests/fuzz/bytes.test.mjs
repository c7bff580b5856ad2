// Connections with any bytes on them: requests that were cut, spliced and flipped, HTTP/2 frames, noise. None of them gets a
// 5xx, hangs, or leaves anything behind.
import assert from 'node:assert/strict'
import net from 'node:net'
import { test } from 'node:test'
import { scale, served } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'
import { growthOf } from './growth.mjs'

const site = served({
  schema: "create table items (id int primary key, title text); insert into items select i, 'title ' || i from generate_series(1, 50) i",
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '20', SHAPEFEED_SSE_TIMEOUT_MS: '40', SHAPEFEED_HEADER_TIMEOUT: '1', SHAPEFEED_IDLE_TIMEOUT: '1' },
})

const frame = (type, flags, stream, payload = Buffer.alloc(0)) => {
  const head = Buffer.alloc(9)
  head.writeUIntBE(payload.length, 0, 3)
  head.writeUInt8(type, 3)
  head.writeUInt8(flags, 4)
  head.writeUInt32BE(stream, 5)
  return Buffer.concat([head, payload])
}
const preface = Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), frame(4, 0, 0)])
// GET http / by the static table, with a literal :authority.
const headers = Buffer.from([0x82, 0x86, 0x84, 0x41, 0x01, 0x78])

function templates(handle) {
  const path = `/v1/shape?table=items&offset=0_0&handle=${handle}`
  const texts = [
    'GET /v1/shape?table=items&offset=-1 HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip, br;q=0.5, zstd\r\nif-none-match: "x", W/"y"\r\n\r\n',
    `GET ${path}&live=true&cursor=5 HTTP/1.1\r\nhost: x\r\n\r\n`,
    `GET ${path}&live=true&live_sse=true HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n`,
    `HEAD ${path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`,
    'OPTIONS /v1/shape HTTP/1.1\r\nhost: x\r\norigin: http://y\r\naccess-control-request-headers: authorization\r\n\r\n',
    'POST /v1/shape?table=items&offset=now HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 40\r\n\r\n{"where":"id < $1","params":{"1":"5"}}  ',
    'POST /v1/shape?table=items&offset=-1 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\na\r\n{"where":"\r\n8\r\nid < 5"}\r\n0\r\n\r\n',
    'POST /v1/shape?table=items&offset=-1 HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}',
    'GET /v1/health HTTP/1.0\r\n\r\n', 'GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n',
    'GET / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n',
  ].map((text) => Buffer.from(text, 'latin1'))
  const two = [
    Buffer.concat([preface, frame(4, 1, 0), frame(1, 5, 1, headers)]),
    Buffer.concat([preface, frame(1, 4, 1, headers), frame(8, 0, 0, Buffer.from([0, 0, 255, 255])), frame(0, 1, 1, Buffer.from('{}')), frame(6, 0, 0, Buffer.alloc(8)), frame(3, 0, 1, Buffer.alloc(4))]),
  ]
  return [...texts, ...two, Buffer.concat(texts.slice(0, 4)), Buffer.from([0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3])]
}

/** Bytes with a few things wrong. */
function broken(random, bytes, others) {
  let now = Buffer.from(bytes)
  const at = () => random.below(now.length + 1)
  const changes = [
    () => { if (now.length) now[random.below(now.length)] = random.below(256) },
    () => { if (now.length) now[random.below(now.length)] ^= 1 << random.below(8) },
    () => { const from = at(); now = Buffer.concat([now.subarray(0, from), now.subarray(from + 1 + random.below(20))]) },
    () => { const from = at(); now = Buffer.concat([now.subarray(0, from), now.subarray(Math.max(0, from - random.below(40)))]) },
    () => { now = now.subarray(0, at()) },
    () => { const other = random.pick(others); now = Buffer.concat([now.subarray(0, at()), other.subarray(random.below(other.length))]) },
    () => { const from = at(); now = Buffer.concat([now.subarray(0, from), Buffer.from(Array.from({ length: random.below(30) }, () => random.below(256))), now.subarray(from)]) },
    () => { const from = at(); now = Buffer.concat([now.subarray(0, from), Buffer.from(random.pick(['\r\n', '\0', ': ', '\r\n\r\n', 'content-length: 99999999999999999999\r\n', 'transfer-encoding: chunked\r\n', 'ffffffffffffffff\r\n', '%', ' HTTP/1.1', '\ud83d'])), now.subarray(from)]) },
    () => { const from = at(); now = Buffer.concat([now.subarray(0, from), Buffer.alloc(random.below(100_000), random.pick(['a', '\r\n', '&x=', '\0'])), now.subarray(from)]) },
  ]
  for (let i = random.below(4); i > 0; i--) random.pick(changes)()
  return now
}

/** Sends bytes in parts, then ends (later: who ends at once wants no answer) or is silent, and reads until the server closes: what it said. */
function exchange(parts, ends) {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ host: '127.0.0.1', port: site.sidecar.port, allowHalfOpen: true })
    const said = []
    const hang = setTimeout(() => {
      socket.destroy()
      reject(new Error(`no end; it said ${JSON.stringify(Buffer.concat(said).toString('latin1').slice(0, 2000))}`))
    }, 20_000)
    socket.on('data', (data) => said.push(data)).on('error', () => {}).on('end', () => socket.end()).on('close', () => {
      clearTimeout(hang)
      resolve(Buffer.concat(said).toString('latin1'))
    })
    for (const part of parts) socket.write(part)
    if (ends) setTimeout(() => socket.end(), 100)
  })
}

test('connections with any bytes', { timeout: 3_000_000 }, async () => {
  const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? 20_240_607)
  const { handle } = await site.api.start({ table: 'items' })
  const known = templates(handle)
  const random = randomFrom(seed)
  const statuses = {}
  let silent = 0
  const count = Math.round(3500 * scale)
  const work = async () => {
    let next = 0
    const worker = async () => {
      while (next++ < count) {
        const bytes = broken(random, random.pick(known), known)
        const cut = random.below(bytes.length + 1)
        // A body is waited for, for half a minute: who announces one ends, here.
        const ends = random.chance(0.95) || /post|content-length|transfer-encoding/i.test(bytes.toString('latin1'))
        const said = await exchange([bytes.subarray(0, cut), bytes.subarray(cut)], ends)
          .catch((error) => assert.fail(`seed ${seed}: ${JSON.stringify(bytes.toString('latin1').slice(0, 2000))}: ${error.message}`))
        const answers = [...said.matchAll(/^HTTP\/1\.[01] (\d{3}) /gm)].map(([, status]) => status)
        if (answers.length === 0) silent++
        for (const status of answers) {
          statuses[status] = (statuses[status] ?? 0) + 1
          assert.ok(status < 500, `seed ${seed}: ${JSON.stringify(bytes.toString('latin1').slice(0, 2000))}: ${said.slice(0, 500)}`)
        }
      }
    }
    await Promise.all(Array.from({ length: 50 }, worker))
  }
  console.log(`${await growthOf(site, work)}; answers by status: ${JSON.stringify(statuses)}, ${silent} connections without one`)
  for (const status of [200, 400]) assert.ok(statuses[status] > count / 10, `${status}: ${JSON.stringify(statuses)}`)
  assert.equal((await site.api.start({ table: 'items' })).operations.length, 50)
  assert.doesNotMatch(site.sidecar.log(), /panicked|ERROR/)
})
