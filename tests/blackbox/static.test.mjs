// --static-dir: a site beside the API, from one origin.
import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { freshDatabase, scratchDir, startCluster, startSidecar } from '../lib/index.mjs'

let cluster, sidecar
before(async () => {
  const dir = scratchDir('static')
  const site = join(dir, 'site')
  mkdirSync(join(site, 'assets'), { recursive: true })
  writeFileSync(join(dir, 'secret.txt'), 'not a part of the site')
  writeFileSync(join(site, 'index.html'), '<title>A page</title>')
  writeFileSync(join(site, 'assets/a.wasm'), 'plain')
  writeFileSync(join(site, 'assets/a.wasm.gz'), gzipSync('compressed'))
  cluster = await startCluster()
  const database = await freshDatabase(cluster)
  await database.psql('create table t (id int primary key)')
  sidecar = await startSidecar({ databaseUrl: database.url, flags: ['--static-dir', site] })
})
after(async () => {
  await sidecar.stop()
  await cluster.stop()
})

/** As it is written, without what fetch makes of paths and codings: { status, headers, body }. */
function ask(path, { method = 'GET', headers = {} } = {}) {
  return new Promise((resolve, reject) => {
    const { port } = new URL(sidecar.url)
    http.request({ port, host: '127.0.0.1', path, method, headers }, (response) => {
      const parts = []
      response.on('data', (part) => parts.push(part))
      response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, body: Buffer.concat(parts) }))
    }).on('error', reject).end()
  })
}

test('pages, with their types, and compressed where a file is there for it', async () => {
  const page = await ask('/')
  assert.deepEqual([page.status, page.headers['content-type'], String(page.body)], [200, 'text/html', '<title>A page</title>'])
  const plain = await ask('/assets/a.wasm')
  assert.deepEqual([plain.headers['content-type'], plain.headers['content-encoding'], String(plain.body)], ['application/wasm', undefined, 'plain'])
  const small = await ask('/assets/a.wasm', { headers: { 'accept-encoding': 'gzip' } })
  assert.deepEqual([small.headers['content-type'], small.headers['content-encoding']], ['application/wasm', 'gzip'])
  const again = await ask('/', { headers: { 'if-modified-since': page.headers['last-modified'] } })
  assert.equal(again.status, 304)
})

test('the API is where it was', async () => {
  assert.equal((await ask('/v1/shape?table=t&offset=-1')).status, 200)
  assert.equal((await ask('/v1/health')).status, 200)
  assert.equal((await ask('/metrics')).status, 200)
})

test('nothing outside of the folder, nothing that is not there, and no writing', async () => {
  for (const path of ['/nothing', '/v1/nothing', '/../secret.txt', '/%2e%2e/secret.txt', '/assets/..%2f..%2fsecret.txt', '//secret.txt']) {
    assert.equal((await ask(path)).status, 404, path)
  }
  assert.equal((await ask('/index.html', { method: 'POST' })).status, 405)
})
