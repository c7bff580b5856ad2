// Compressed answers: every coding, what is not compressed, and that many clients cost one compression.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import http from 'node:http'
import { test } from 'node:test'
import zlib from 'node:zlib'
import { execFileSync } from 'node:child_process'
import { isUpToDate, openEvents, served, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `create table small (id int primary key); insert into small values (1);
    create table wide (id int primary key, v text);
    insert into wide select i, md5(i::text) from generate_series(1, 150000) i;
    create table hot (id int primary key, v text);`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '20000' },
})

const agent = new http.Agent({ keepAlive: true, maxSockets: Infinity })

/** { status, headers, body } with the body as it was sent. */
function raw(query, accept, headers = {}, posted = undefined) {
  const options = { agent, method: posted ? 'POST' : 'GET', headers: { ...headers, ...accept && { 'accept-encoding': accept } } }
  return new Promise((resolve, reject) => {
    http.request(`${site.sidecar.url}/v1/shape?${query}`, options, async (response) => {
      const chunks = []
      for await (const chunk of response) chunks.push(chunk)
      resolve({ status: response.statusCode, headers: response.headers, body: Buffer.concat(chunks) })
    }).on('error', reject).end(posted)
  })
}

const unpack = {
  gzip: (body) => zlib.gunzipSync(body),
  br: (body) => zlib.brotliDecompressSync(body),
  zstd: (body) => zlib.zstdDecompressSync?.(body),
}

/** Seconds of processor time that the sidecar has used. */
function cpu() {
  const fields = readFileSync(`/proc/${site.sidecar.pid}/stat`, 'utf8').split(') ')[1].split(' ')
  return (Number(fields[11]) + Number(fields[12])) / Number(execFileSync('getconf', ['CLK_TCK']))
}

test('every coding means the same', async () => {
  const plain = await raw('table=wide&offset=-1')
  assert.equal(plain.headers['content-encoding'], undefined)
  assert.equal(plain.headers.vary, 'accept-encoding')
  assert.equal(Number(plain.headers['content-length']), plain.body.length)
  for (const coding of ['gzip', 'br', 'zstd']) {
    const { status, headers, body } = await raw('table=wide&offset=-1', coding)
    assert.equal(status, 200)
    assert.equal(headers['content-encoding'], coding)
    assert.equal(headers.vary, 'accept-encoding')
    assert.equal(headers.etag, `W/${plain.headers.etag}`)
    assert.ok(body.length < plain.body.length * 0.7)
    if (unpack[coding](body)) assert.ok(unpack[coding](body).equals(plain.body))
    const known = await raw('table=wide&offset=-1', coding, { 'if-none-match': headers.etag })
    assert.equal(known.status, 304)
    assert.equal(known.headers.vary, 'accept-encoding')
  }
  assert.equal((await raw('table=wide&offset=-1', 'gzip, br, zstd')).headers['content-encoding'], 'zstd')
  assert.equal((await raw('table=wide&offset=-1', 'gzip, br;q=0.5')).headers['content-encoding'], 'gzip')
  assert.equal((await raw('table=wide&offset=-1', 'identity')).headers['content-encoding'], undefined)
})

test('what is small stays plain', async () => {
  const answer = await raw('table=small&offset=-1', 'gzip')
  assert.equal(answer.headers['content-encoding'], undefined)
  assert.equal(answer.headers.vary, 'accept-encoding')
  assert.ok(answer.body.length <= 1024)
})

test('a chunk is compressed once, for those who come at the same time and those who come later', async () => {
  // Something that this sidecar has not compressed yet, and its cost without compression.
  const query = "table=wide&where=id%20%3E%201&offset=-1"
  await raw(query)
  const times = async (n, accept) => {
    const began = cpu()
    const bodies = await Promise.all(Array.from({ length: n }, () => raw(query, accept)))
    assert.ok(bodies.every(({ body }) => body.equals(bodies[0].body)))
    return cpu() - began
  }
  const once = await times(1, 'br')
  const again = await times(20, 'br')
  const together = await times(20, 'gzip')
  const alone = await times(1, 'gzip')
  assert.ok(again < 10 * Math.max(once, 0.05), `20 more: ${again} s, the first: ${once} s`)
  assert.ok(together < 10 * Math.max(once, 0.05), `20 together: ${together} s; one more: ${alone} s`)
})

test('live answers are shared too', async () => {
  const follower = await site.api.follow({ table: 'hot' })
  const query = `table=hot&offset=${follower.offset}&handle=${follower.handle}&live&cursor=`
  const held = Array.from({ length: 200 }, () => raw(query, 'gzip'))
  await waitFor(async () => (await (await fetch(`${site.sidecar.url}/metrics`)).text()).includes('shapefeed_live_requests 200'))
  await site.sql("insert into hot select i, repeat('x', 1000) from generate_series(1, 100) i")
  const answers = await Promise.all(held)
  for (const { headers, body } of answers) {
    assert.equal(headers['content-encoding'], 'gzip')
    assert.ok(body.equals(answers[0].body))
  }
  const messages = JSON.parse(unpack.gzip(answers[0].body))
  assert.equal(messages.length, 101)
  assert.equal(messages.at(-1).headers.control, 'up-to-date')
})

test('subsets are compressed, by GET and POST', async () => {
  const query = 'table=wide&offset=-1&log=changes_only'
  const own = { order_by: 'id', limit: 1000 }
  const got = (accept) => raw(`${query}&subset__order_by=id&subset__limit=1000`, accept)
  const posted = (accept) => raw(query, accept, { 'content-type': 'application/json' }, JSON.stringify(own))
  const data = (body) => JSON.parse(body).data.map(({ value }) => value)
  for (const ask of [got, posted]) {
    const plain = await ask()
    assert.equal(plain.status, 200)
    assert.equal(plain.headers['content-encoding'], undefined)
    assert.equal(plain.headers.vary, 'accept-encoding')
    assert.equal(Number(plain.headers['content-length']), plain.body.length)
    const packed = await ask('gzip')
    assert.equal(packed.headers['content-encoding'], 'gzip')
    assert.equal(packed.headers.vary, 'accept-encoding')
    assert.equal(packed.headers.etag, undefined)
    assert.ok(packed.body.length < plain.body.length * 0.7)
    assert.deepEqual(data(unpack.gzip(packed.body)), data(plain.body))
    assert.equal(data(plain.body).length, 1000)
  }
})

test('a stream of events is not compressed, since that would hold them back', async () => {
  const follower = await site.api.follow({ table: 'hot' })
  const query = `table=hot&offset=${follower.offset}&handle=${follower.handle}&live&live_sse&cursor=`
  const stream = await openEvents(site.sidecar.url, query, { headers: { 'accept-encoding': 'gzip, br, zstd' } })
  assert.equal(stream.headers['content-encoding'], undefined)
  await site.sql("insert into hot select i, repeat('x', 2000) from generate_series(101, 110) i")
  await stream.until((messages) => messages.length > 10 && isUpToDate(messages.at(-1)))
  stream.close()
})
