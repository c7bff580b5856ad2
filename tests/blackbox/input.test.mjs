// Whatever is sent: an answer below 500 with the JSON error and the CORS headers, and never a connection that is dropped.
import assert from 'node:assert/strict'
import net from 'node:net'
import { test } from 'node:test'
import { scale, send, served } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'

const site = served({
  schema: `
    create table items (id int primary key, title text, n int8, day date, tags text[], "we""ird /" text);
    insert into items select i, 'title ' || i, i * 10, date '2024-01-01' + i, array['a', i::text] from generate_series(1, 50) i;`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '40', SHAPEFEED_CHUNK_BYTES: '2000' },
})

const raw = (path, options) => send(site.sidecar.url, path, { agent: site.api.agent, ...options })

/** An error says what is wrong in JSON, whoever asks from wherever. */
function assertError(answer, what) {
  assert.ok(answer.status >= 400 && answer.status < 500, `${what}: ${answer.status} ${answer.text}`)
  assert.equal(answer.headers['access-control-allow-origin'], '*', what)
  assert.match(answer.headers['content-type'], /^application\/json/, what)
  if (answer.status === 409) assert.deepEqual(answer.json, [{ headers: { control: 'must-refetch' } }], what)
  else assert.equal(typeof answer.json?.message, 'string', `${what}: ${answer.text}`)
}

async function refused(query, status = 400, field) {
  const answer = await raw(`/v1/shape?${query}`)
  assert.equal(answer.status, status, `${query.slice(0, 200)}: ${answer.text}`)
  assertError(answer, query.slice(0, 200))
  if (field) assert.deepEqual(Object.keys(answer.json.errors), [field], `${query}: ${answer.text}`)
}

test('NUL bytes', async () => {
  await refused('offset=-1&table=it%00ems', 400, 'table')
  await refused('offset=-1&table=items&where=title=%27%00%27', 400, 'where')
  await refused('offset=-1&table=items&where=title=$1&params[1]=%00', 400, 'params')
  await refused('offset=-1&table=items&columns=id,%00', 400, 'columns')
  await refused('offset=%00&table=items', 400, 'offset')
  await refused('offset=-1&table=items&replica=%00', 400, 'replica')
  await refused('offset=0_0&table=items&handle=%00', 409)
  assert.equal((await raw('/v1/shape?offset=-1&table=items&foo=%00&%00=1&cursor=%00&handle=%00')).status, 200)
})

test('bytes that are not UTF-8, and percent signs that escape nothing', async () => {
  for (const bytes of ['%ff', '%c3%28', '%ed%a0%80', '%f8%88%80%80%80', '%c0%80']) {
    await refused(`offset=-1&table=${bytes}`, 400, 'table')
    await refused(`offset=-1&table=items&where=title=%27${bytes}%27`, 400, 'where')
    await refused(`offset=${bytes}&table=items`, 400, 'offset')
    await refused(`offset=0_0&table=items&handle=${bytes}`, 409)
    assert.equal((await raw(`/v1/shape?offset=-1&table=items&${bytes}=${bytes}`)).status, 200)
  }
  await refused('offset=-1&table=%', 400, 'table')
  await refused('offset=-1&table=%zz', 400, 'table')
  await refused('offset=-1&table=items&where=%2', 400, 'where')
})

test('a URL above 64 KiB', async () => {
  const answer = await raw(`/v1/shape?offset=-1&table=items&foo=${'x'.repeat(65_600)}`)
  assert.equal(answer.status, 414)
  assertError(answer, 'long')
  assert.deepEqual(answer.json.errors, { url: ['is too long'] })
  const longer = await raw(`/v1/shape?offset=-1&table=items&foo=${'x'.repeat(2 << 20)}`)
  assert.ok([414, 431].includes(longer.status), `${longer.status}`)
  assertError(longer, 'longer')
  assert.equal((await raw(`/v1/shape?offset=-1&table=items&foo=${'x'.repeat(60_000)}`)).status, 200)
})

test('large headers', async () => {
  const answer = await raw('/v1/shape?offset=-1&table=items', { headers: { 'if-none-match': 'x'.repeat(2 << 20) } })
  assert.equal(answer.status, 431)
  assertError(answer, 'header')
})

test('huge and odd offsets', async () => {
  const { handle } = await site.api.start({ table: 'items' })
  const huge = '9'.repeat(400)
  for (const offset of [`${huge}_0`, `${huge}_${huge}`, `${huge}_inf`, '9223372036854775807_0', '9223372036854775808_9223372036854775808', '1_0', '2_5']) {
    for (const live of ['', '&live=true']) {
      await refused(`offset=${offset}&table=items&handle=${handle}${live}`, 409)
    }
  }
  for (const cursor of [huge, '1', '7', '255', '18446744073709551616', '9'.repeat(5000)]) {
    await refused(`offset=0_${cursor}&table=items&handle=${handle}`, 409)
    await refused(`offset=0_${cursor}&table=items&handle=${handle}&live`, 409)
  }
})

test('a snapshot cursor that a client makes up: a new handle', async () => {
  const { handle } = await site.api.start({ table: 'items' })
  const cursor = (text) => BigInt(`0x01${Buffer.from([0, text.length, ...Buffer.from(text)]).toString('hex')}`)
  for (const text of ['\0', 'no number', '1e400', '']) {
    await refused(`table=items&handle=${handle}&offset=0_${cursor(text)}`, 409)
  }
})

test('a clause that Postgres can type and not evaluate', async () => {
  await site.sql(`create table spelled (a text collate "C" primary key, b text collate "POSIX"); insert into spelled values ('a', 'b')`)
  await refused(`table=spelled&offset=-1&where=${encodeURIComponent('a = b')}`, 400, 'where')
})

test('a body of many members', async () => {
  const body = `{${Array.from({ length: 300_000 }, (_, i) => `"m${i}":1`).join()}}`
  const began = performance.now()
  const answer = await raw('/v1/shape?table=items&offset=-1', { method: 'POST', body, headers: { 'content-type': 'application/json' } })
  assert.equal(answer.status, 400, answer.text)
  assert.ok(performance.now() - began < 5000)
})

test('odd handles are unknown ones', async () => {
  const { handle } = await site.api.start({ table: 'items' })
  const [hash, pin] = handle.split('-')
  const odd = ['x', '-', '--', '1-2-3', `${hash}`, `${hash}-${pin}`, `${hash}-${pin}-`, `${hash}-${pin}--1`, `${hash}-${pin}-0-0`, `${hash}-1-0`,
    `${hash}-99999999999999999999-0`, `${hash}-9223372036854775807-0`, `0${hash}-${pin}-0`, "';drop table items", 'x'.repeat(10_000)]
  for (const given of odd) {
    const answer = await site.api.get({ table: 'items', offset: '0_0', handle: given })
    assert.equal(answer.status, 409, `${given}: ${answer.text}`)
    assertError(answer, given)
    assert.notEqual(answer.handle, given)
  }
})

test('a parameter given twice counts once', async () => {
  assert.equal((await raw('/v1/shape?offset=bad&offset=-1&table=nonexistent&table=items')).status, 200)
  await refused('offset=-1&offset=bad&table=items', 400, 'offset')
  await refused('offset=-1&table=items&table=', 400, 'table')
})

test('requests that are no HTTP', async () => {
  for (const text of ['nonsense\r\n\r\n', 'GET /v1/shape HTTP/9.9\r\n\r\n', 'GET  HTTP/1.1\r\n\r\n', 'GET /v1/shape?a=\u0001 HTTP/1.1\r\nhost: x\r\n\r\n',
    'GET /v1/shape HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n', 'GET /v1/shape HTTP/1.1\r\nbad header\r\n\r\n']) {
    const answer = await exchange(text)
    assert.match(answer, /^HTTP\/1\.1 4\d\d /, JSON.stringify(text))
    assert.match(answer, /access-control-allow-origin: \*/i, JSON.stringify(text))
    assert.match(answer, /\{.*"message":/, JSON.stringify(text))
  }
  // A path of bytes that no client sends is a request like others.
  assert.match(await exchange('GET /v1/shape?offset=-1&table=\xff HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n'), /^HTTP\/1\.1 400 /)
})

/** Sends bytes and reads until the server closes. */
function exchange(text) {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ host: '127.0.0.1', port: site.sidecar.port })
    let answer = ''
    socket.setTimeout(5000, () => socket.destroy(new Error(`no end after ${JSON.stringify(text)}: ${answer}`)))
    socket.on('data', (data) => { answer += data.toString('latin1') }).on('error', reject).on('close', () => resolve(answer))
    socket.write(Buffer.from(text, 'latin1'))
  })
}

// Requests from a grammar that knows the protocol, so that most go deep, and bytes from one that knows nothing.
function fuzzed(random, handles) {
  const junk = () => Array.from({ length: random.below(12) }, () => random.pick([
    "'", '"', '%00', '%ff', '%', '\\', '(', ')', ';', '--', '/*', '$1', '$0', '$99999', '::', 'a', '1', '%20', '%0a', '\u00e9', '%F0%9F%98%80', '[', ']', '.', ',', '{', '}', '%26', '=', '_', '-', '~', '*', 'now()', 'null', 'E%27%5Cx',
  ])).join('')
  const pick = (...values) => random.chance(0.1) ? junk() : random.pick(values)
  const some = {
    table: () => pick('items', 'public.items', '%22items%22', 'ITEMS', 'nothing', 'shapefeed.tracked', 'pg_catalog.pg_class'),
    offset: () => pick('-1', '-1', '0_0', '0_inf', 'now', `0_${random.below(1e9)}`, `${random.below(1e9)}_0`, `${Date.now() * 1000}_${random.below(5)}`, '0_22222222222222'),
    handle: () => pick(...handles, '1-2-3'),
    live: () => pick('true', 'false', ''),
    cursor: () => pick('', '5', '99999999999999999999999'),
    where: () => pick("id%3D1", "title%20like%20%27%25a%25%27", 'n%20%3E%20$1', 'tags%20@%3E%20$1', 'day%20=%20$1', 'n/(id-3)=1', 'title::int=1', 'repeat(title,300000000)%20%3D%20%27%27', 'id%20in%20($1,$2)', `title=${junk()}`),
    'params[1]': () => pick('1', 'abc', '{a}', '2024-01-01', ''),
    'params[2]': () => pick('2'),
    [`params[${junk()}]`]: () => junk(),
    columns: () => pick('id', 'id,title', 'title', '%22we%22%22ird%20/%22,id'),
    'columns[]': () => pick('id'),
    queryable_columns: () => pick('id', 'id,title'),
    replica: () => pick('default', 'full'),
    log: () => pick('full', 'changes_only'),
    expired_handle: () => pick(...handles),
    'cache-buster': junk,
    live_sse: () => pick('false', 'true'),
    subset__limit: () => pick('5'),
    [junk()]: junk,
  }
  const oftenness = { table: 0.97, offset: 0.97, handle: 0.7, where: 0.3, 'params[1]': 0.3 }
  const names = Object.keys(some).filter((name) => random.chance(oftenness[name] ?? 0.08))
  // What a browser or proxy would never let into a request line is escaped, the rest goes as it is.
  return names.map((name) => `${name}=${some[name]()}`).join('&').replace(/[\s"<>\\^`{|}\u0080-\uffff]/g, encodeURIComponent)
}

test('a seeded fuzz', { timeout: 120_000 }, async () => {
  const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? 20_240_607)
  const random = randomFrom(seed)
  const { handle } = await site.api.start({ table: 'items' })
  const handles = [handle, (await site.api.start({ table: 'items', where: 'id=1' })).handle]
  const count = Math.round(2000 * scale)
  const statuses = {}
  let next = 0
  async function worker() {
    while (next < count) {
      const number = next++
      const query = fuzzed(random, handles)
      const method = random.pick(['GET', 'GET', 'GET', 'GET', 'HEAD', 'DELETE'])
      const what = `seed ${seed}, request ${number}: ${method} /v1/shape?${query}`
      const answer = await raw(`/v1/shape?${query}`, { method }).catch((error) => assert.fail(`${what}: ${error}`))
      statuses[answer.status] = (statuses[answer.status] ?? 0) + 1
      if (answer.status >= 400) {
        if (method === 'HEAD') assert.ok(answer.status < 500, what)
        else assertError(answer, what)
      } else if (answer.status === 200 && method === 'GET') {
        assert.ok(Array.isArray(answer.json), what)
      }
    }
  }
  await Promise.all(Array.from({ length: 8 }, worker)).catch(e=>{console.log(site.sidecar.log().split('\n').filter(l=>/ERROR|panick/.test(l)).join('\n'));throw e})
  console.log(`answers by status: ${JSON.stringify(statuses)}`)
  for (const status of [200, 400, 409]) assert.ok(statuses[status] > count / 50, `${status}: ${JSON.stringify(statuses)}`)
  // It is still there, and so is the table.
  assert.equal((await site.api.start({ table: 'items' })).status, 200)
  assert.equal(await site.sql('select count(*) from items'), '50')
  assert.doesNotMatch(site.sidecar.log(), /panicked|ERROR/)
})
