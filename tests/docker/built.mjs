// What scripts/test-docker has built, at work: compose.yaml is started as it says, and asked with curl.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { before, test } from 'node:test'
import { promisify } from 'node:util'
import { waitFor } from '../lib/index.mjs'
import { Container, compose, removeVolumes, rootOf, settingsOf, up } from './container.mjs'

const direct = 'http://127.0.0.1:3000'
const cached = 'http://127.0.0.1:8080'
let services

/** A stock curl: { status, headers, body }. */
async function curl(...words) {
  const { stdout } = await promisify(execFile)('curl', ['-sS', '-i', ...words], { encoding: 'buffer', maxBuffer: 1 << 30 })
  const end = stdout.indexOf('\r\n\r\n')
  const [first, ...lines] = stdout.subarray(0, end).toString().split('\r\n')
  const headers = Object.fromEntries(lines.map((line) => /^(.*?): (.*)$/.exec(line)).map(([, name, value]) => [name.toLowerCase(), value]))
  return { status: Number(first.split(' ')[1]), headers, body: stdout.subarray(end + 4) }
}

const json = async (...words) => JSON.parse((await curl(...words)).body)
const psql = async (sql, container = services.postgres) =>
  (await container.exec('psql', '-X', '-A', '-t', '-q', '-v', 'ON_ERROR_STOP=1', '-U', 'postgres', '-d', 'shapefeed', '-c', sql)).trim()
const head = async () => Number(await psql('select head from shapefeed.status'))
const rowsOf = (messages) => messages.filter((it) => it.value).map((it) => it.value)

/** Rows of a table from the first request up to date, as they come. */
async function rowsUpToNow(base, table) {
  const rows = []
  let place = 'offset=-1'
  for (;;) {
    const { headers, body } = await curl(`${base}/v1/shape?table=${table}&${place}`)
    const messages = JSON.parse(body)
    rows.push(...rowsOf(messages))
    if (messages.some((it) => it.headers.control === 'up-to-date')) return rows
    place = `handle=${headers['electric-handle']}&offset=${headers['electric-offset']}`
  }
}

before(async () => {
  removeVolumes()
  services = await up()
})

test('the builder is sent what the Dockerfiles copy, and of a working copy nothing else', () => {
  const context = rootOf('context')
  for (const there of ['Cargo.toml', 'extension/src/lib.rs', 'sql', 'client/demo/package-lock.json', 'docker/demo.sh']) {
    assert.ok(existsSync(join(context, there)), there)
  }
  for (const not of ['target', '.local', '.git', '.env', 'tests', 'client/node_modules', 'client/demo/dist']) {
    assert.ok(!existsSync(join(context, not)), not)
  }
})

test('images have what runs, not what built it', () => {
  for (const image of ['postgres', 'sidecar', 'demo']) {
    for (const tool of ['usr/local/cargo', 'usr/bin/gcc', 'cache', 'src/client']) assert.ok(!existsSync(join(rootOf(image), tool)), `${image}: ${tool}`)
    assert.ok(!settingsOf(image).Env.some((it) => /SECRET|PASSWORD/.test(it)), 'no secret')
  }
})

test('Postgres has the library preloaded and the extension made; a write moves the position', async () => {
  assert.equal(await psql('select worker from shapefeed.status'), 'running')
  assert.equal(await psql('show shared_preload_libraries'), 'shapefeed')
  await psql("create table notes (id int primary key, body text); insert into notes values (1, 'one')")
  await psql("call shapefeed.track('notes')")
  const started = await head()
  await psql("insert into notes values (2, 'two')")
  await waitFor(async () => await head() > started, { what: 'the position moves' })
})

test('the sidecar is nobody, and healthy by its own check', async () => {
  const status = readFileSync(`/proc/${services.sidecar.pid}/status`, 'utf8')
  assert.match(status, /^Uid:\t65534\t65534/m)
  assert.match(status, /^CapEff:\t0+$/m)
  assert.ok(await services.sidecar.isHealthy())
})

test('curl reads a shape from the sidecar and through nginx, the second time from its cache, and follows it', async () => {
  const path = '/v1/shape?table=notes&offset=-1'
  const answer = await curl(direct + path)
  assert.equal(answer.status, 200)
  assert.deepEqual(rowsOf(JSON.parse(answer.body)), [{ id: '1', body: 'one' }, { id: '2', body: 'two' }])
  assert.equal((await curl(cached + path)).headers['x-cache'], 'MISS')
  const again = await curl(cached + path)
  assert.equal(again.headers['x-cache'], 'HIT')
  assert.deepEqual(again.body, answer.body)

  const { 'electric-handle': handle, 'electric-offset': offset } = again.headers
  const follow = json(`${cached}/v1/shape?table=notes&handle=${handle}&offset=${offset}&live=true`)
  await psql("insert into notes values (3, 'three')")
  assert.deepEqual(rowsOf(await follow), [{ id: '3', body: 'three' }])
})

test('the demo: its page and files from the sidecar and through nginx, its users with tokens that count', async () => {
  for (const base of [direct, cached]) {
    const index = await curl(`${base}/`)
    assert.match(index.headers['content-type'], /^text\/html/)
    const script = /src="\.\/(assets\/[^"]+\.js)"/.exec(index.body)[1]
    const files = ['sw.js', 'icon.svg', script, ...readdirSync(join(rootOf('demo'), 'src/page/assets')).filter((it) => it.endsWith('.wasm')).map((it) => `assets/${it}`)]
    for (const file of files) assert.deepEqual((await curl(`${base}/${file}`)).body, readFileSync(join(rootOf('demo'), 'src/page', file)), `${base}/${file}`)

    const [user] = await json(`${base}/users.json`)
    const companies = `${base}/v1/shape?table=companies&offset=-1`
    assert.ok(rowsOf(await json('-H', `Authorization: Bearer ${user.token}`, companies)).length > 0)
    assert.equal((await curl('-H', `Authorization: Bearer ${user.token}x`, companies)).status, 401)
  }
})

test('nginx passes neither metrics nor what only looks like a file', async () => {
  for (const path of ['/metrics', '/metrics/', '//metrics', '/%6detrics', '/assets/%2e%2e/metrics', '/assets/../metrics']) {
    assert.equal((await curl('--path-as-is', cached + path)).status, 404, path)
  }
  assert.equal((await curl(`${cached}/v1/health`)).status, 200)
})

test('the demo once more, as with each `up`: it changes nothing that is there', async () => {
  const companies = await psql('select count(*) from companies')
  assert.equal(await services.demo.start().exited, 0, services.demo.log)
  assert.equal(await psql('select count(*) from companies'), companies)
})

test('without Postgres the sidecar is not healthy; Postgres goes on where it was, and so does the sidecar', async () => {
  const position = await head()
  assert.equal(await services.postgres.stop(), 0)
  await waitFor(async () => !await services.sidecar.isHealthy(), { what: 'the sidecar is not healthy' })
  services.postgres.start()
  await services.postgres.healthy()
  assert.doesNotMatch(services.postgres.log, /init process complete/)
  await services.sidecar.healthy()
  await psql("insert into notes values (4, 'four')")
  await waitFor(async () => await head() > position, { what: 'the position moves' })
  await waitFor(async () => (await rowsUpToNow(direct, 'notes')).length === 4, { what: 'the shape has it' })
})

test('the sidecar and nginx stop when they are told to', async () => {
  assert.equal(await services.sidecar.stop(), 0)
  assert.equal(await services.cache.stop(), 0)
})

test('Postgres preloads the library in a new data folder with options of one\'s own, and in one that another image made', async () => {
  assert.equal(await services.postgres.stop(), 0)
  const { environment, healthcheck } = compose.services.postgres
  const folder = '/var/lib/postgresql/other'
  const start = async (options) => {
    const container = new Container('postgres', { healthcheck, environment: { ...environment, PGDATA: folder }, volumes: [`other:${folder}`], ...options }).start()
    await container.healthy()
    return container
  }
  const own = await start({ command: ['-c', 'max_connections=50'] })
  assert.equal(await psql('show max_connections', own), '50')
  assert.equal(await psql('select worker from shapefeed.status', own), 'running')
  assert.equal(await own.stop(), 0)

  const settings = join(rootOf('postgres'), folder, 'postgresql.conf')
  const text = readFileSync(settings, 'utf8')
  assert.match(text, /^shared_preload_libraries = 'shapefeed'$/m)
  writeFileSync(settings, text.replace(/^shared_preload_libraries = 'shapefeed'$/m, ''))
  const plain = await start()
  assert.equal(await psql('select worker from shapefeed.status', plain), 'running')
  assert.equal(await plain.stop(), 0)
})
