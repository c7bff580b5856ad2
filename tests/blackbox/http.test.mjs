// Routes, methods, CORS, the secret, rights, health and metrics.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ShapeApi, freePort, send, served, startSidecar, waitFor } from '../lib/index.mjs'

const exposed = 'electric-cursor,electric-handle,electric-has-data,electric-offset,electric-schema,electric-up-to-date,' +
  'electric-internal-known-error,retry-after'

const site = served({
  schema: `create table items (id int primary key, title text); insert into items values (1, 'a');
    create table others (id int primary key, word text); insert into others values (1, 'hush');`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '1000' },
})

const ask = (path, options) => send(site.sidecar.url, path, options)

test('the root, health, and what is not there', async () => {
  for (const path of ['/', '/v1/health', '/metrics']) {
    for (const method of ['GET', 'HEAD']) {
      const answer = await ask(path, { method })
      assert.equal(answer.status, 200, path)
      assert.equal(answer.headers['access-control-allow-methods'], 'GET, HEAD')
      if (method === 'HEAD') assert.equal(answer.text, '')
    }
  }
  const health = await ask('/v1/health')
  assert.deepEqual(health.json, { status: 'active' })
  assert.equal(health.headers['cache-control'], 'no-cache, no-store, must-revalidate')
  assert.equal(health.headers['content-type'], 'application/json; charset=utf-8')
  for (const [method, path] of [['GET', '/v1'], ['GET', '/v1/shapes'], ['GET', '/favicon.ico'], ['PUT', '/v1/shape'], ['PATCH', '/v1/shape'], ['POST', '/v1/health'], ['DELETE', '/'], ['GET', '/%00'], ['GET', '/%ff']]) {
    const { status, text, headers } = await ask(path, { method })
    assert.equal(status, 404, `${method} ${path}`)
    assert.equal(text, 'Not found')
    assert.equal(headers['access-control-allow-origin'], '*')
    assert.equal(headers['cache-control'], 'max-age=0, private, must-revalidate')
  }
})

test('other spellings of the path', async () => {
  for (const path of ['/v1/shape/', '/v1//shape', '//v1/shape//', '/v1/%73hape']) {
    const answer = await ask(`${path}?table=items&offset=-1`)
    assert.equal(answer.status, 200, path)
    assert.ok(answer.headers['electric-handle'])
    assert.match(answer.headers['access-control-allow-methods'], /DELETE/)
  }
})

test('POST says what GET says, and is not cached', async () => {
  const answer = await ask('/v1/shape?table=items&offset=-1', { method: 'POST' })
  assert.equal(answer.status, 200)
  assert.equal(answer.json.length, 2)
  assert.equal(answer.headers['cache-control'], 'no-cache')
  assert.equal(answer.headers['access-control-allow-origin'], '*')
})

test('every answer has the CORS headers', async () => {
  const { handle } = await site.api.start({ table: 'items' })
  const cases = [
    ['table=items&offset=-1', 200],
    [`table=items&offset=0_0&handle=${handle}`, 200],
    ['table=items', 400],
    ['table=items&offset=0_0&handle=1-2-3', 409],
  ]
  for (const [query, status] of cases) {
    const { headers, ...answer } = await ask(`/v1/shape?${query}`, { headers: { origin: 'https://app.example' } })
    assert.equal(answer.status, status)
    assert.equal(headers['access-control-allow-origin'], '*', 'not an echo: caches would hand it to other origins')
    assert.equal(headers['access-control-expose-headers'], exposed)
    assert.match(headers['access-control-allow-methods'], /^GET, .*HEAD, DELETE, OPTIONS$/)
  }
})

test('preflights', async () => {
  const answer = await ask('/v1/shape?table=nothing', {
    method: 'OPTIONS',
    headers: { origin: 'https://app.example', 'access-control-request-method': 'GET', 'access-control-request-headers': 'authorization, content-type, if-none-match, x-own' },
  })
  assert.equal(answer.status, 204)
  assert.equal(answer.text, '')
  assert.equal(answer.headers['access-control-allow-origin'], '*')
  assert.equal(answer.headers['access-control-max-age'], '86400')
  for (const name of ['authorization', 'content-type', 'if-none-match', 'x-own']) {
    assert.ok(answer.headers['access-control-allow-headers'].includes(name))
  }
  assert.match(answer.headers['access-control-allow-methods'], /^GET, .*DELETE/)
  assert.equal((await ask('/v1/health', { method: 'OPTIONS' })).status, 204)
})

test('HEAD is GET without a body', async () => {
  const { handle } = await site.api.start({ table: 'items' })
  for (const query of ['table=items&offset=-1', `table=items&offset=0_0&handle=${handle}`, 'table=items&offset=0_0&handle=1-2-3', 'table=a-b&offset=-1', 'table=items&offset=now']) {
    const [head, get] = [await ask(`/v1/shape?${query}`, { method: 'HEAD' }), await ask(`/v1/shape?${query}`)]
    assert.equal(head.status, get.status)
    assert.equal(head.text, '')
    for (const name of ['electric-handle', 'electric-offset', 'electric-schema', 'cache-control', 'content-type', 'electric-up-to-date']) {
      assert.equal(head.headers[name], get.headers[name], `${query}: ${name}`)
    }
  }
})

test('compression, where it is worth it', async () => {
  await site.sql("create table wide (id int primary key, v text); insert into wide select i, repeat('x', 100) from generate_series(1, 100) i;")
  const answer = await fetch(`${site.sidecar.url}/v1/shape?table=wide&offset=-1`, { headers: { 'accept-encoding': 'gzip' } })
  assert.equal(answer.headers.get('content-encoding'), 'gzip')
  assert.match(answer.headers.get('vary'), /accept-encoding/i)
  assert.equal((await answer.json()).length, 101)
  const plain = await ask('/v1/shape?table=wide&offset=-1')
  assert.equal(plain.headers['content-encoding'], undefined)
  assert.match(plain.headers.vary ?? '', /accept-encoding/i)
})

test('the secret', async () => {
  const { sidecar, api } = await site.another({ env: { SHAPEFEED_SECRET: 's3cret', SHAPEFEED_INSECURE: undefined } })
  const open = ['secret=s3cret', 'api_secret=s3cret', 'secret=s3cret&api_secret=x']
  const shut = ['', 'secret=', 'secret=s3cre', 'secret=s3cret1', 'secret=S3CRET', 'secret=x&api_secret=s3cret', 'secret=%00', 'api_secret=']
  for (const query of open) assert.equal((await api.get(`table=items&offset=-1&${query}`)).status, 200, query)
  for (const query of shut) {
    for (const method of ['GET', 'HEAD', 'DELETE']) {
      const answer = await api.get(`table=items&offset=-1&${query}`, { method })
      assert.equal(answer.status, 401, query)
      assert.equal(answer.headers['access-control-allow-origin'], '*', 'without it a browser sees a network error')
      assert.equal(answer.headers['cache-control'], method === 'DELETE' ? 'no-cache' : 'no-store')
      if (method !== 'HEAD') assert.deepEqual(answer.json, { message: 'Unauthorized - Invalid API secret' })
    }
  }
  assert.equal((await api.get('secret=s3cret')).status, 400, 'the secret first, then the parameters')
  assert.equal((await api.get('')).status, 401)
  for (const path of ['/v1/shape/?table=items&offset=-1', '/v1//shape?table=items&offset=-1', '/v1/%73hape?table=items&offset=-1']) {
    assert.equal((await send(sidecar.url, path)).status, 401, path)
  }
  assert.equal((await send(sidecar.url, '/')).status, 200)
  assert.equal((await send(sidecar.url, '/v1/health')).status, 200)
  assert.equal((await api.get('', { method: 'OPTIONS' })).status, 204)
  // A cached answer must not depend on the secret.
  assert.equal((await api.get('table=items&offset=-1&secret=s3cret')).handle, (await api.get('table=items&offset=-1&secret=s3cret&x=1')).handle)
})

test('it does not start without saying who may ask', async () => {
  const start = (env) => startSidecar({ databaseUrl: site.database.url, env, ready: false })
  for (const env of [{ SHAPEFEED_INSECURE: undefined }, { SHAPEFEED_INSECURE: undefined, SHAPEFEED_SECRET: '' }]) {
    const sidecar = await start(env)
    const { code } = await sidecar.exited
    assert.notEqual(code, 0)
    assert.match(sidecar.log(), /secret/)
  }
})

test('a table that is not tracked, without auto-track', async () => {
  const { api } = await site.another({ env: { SHAPEFEED_AUTO_TRACK: 'false' } })
  await site.sql('create table "Not yet" (id int primary key);')
  const answer = await api.get({ table: '"Not yet"', offset: '-1' })
  assert.equal(answer.status, 400)
  assert.match(answer.json.errors.table[0], /not tracked/)
  assert.match(answer.json.errors.table[0], /shapefeed\.track/)
  assert.equal(await site.sql(`select count(*) from shapefeed.tracked_tables where "table" = '"Not yet"'::regclass`), '0')
  await site.sql(`call shapefeed.track('"Not yet"');`)
  assert.equal((await api.get({ table: '"Not yet"', offset: '-1' })).status, 200)
})

test('deletion is off unless it is allowed', async () => {
  const { api } = await site.another({ env: { SHAPEFEED_ALLOW_DELETE: undefined } })
  const { handle } = await api.start({ table: 'items' })
  const answer = await api.delete({ handle })
  assert.equal(answer.status, 405)
  assert.deepEqual(answer.json, { message: 'DELETE not allowed' })
  assert.equal(answer.cacheControl, 'no-cache')
  assert.equal((await api.get({ table: 'items', offset: '0_0', handle })).status, 200)
})

test('a plain role sees what it may select, and learns nothing of the rest', async () => {
  await site.sql(`
    create role plain login; select shapefeed.grant_sidecar('plain');
    create table mixed (id int primary key, open text, closed text); insert into mixed values (1, 'o', 'hush');
    grant select on items to plain; grant select (id, open) on mixed to plain;
    call shapefeed.track('items'); call shapefeed.track('others'); call shapefeed.track('mixed');`)
  const { api, sidecar } = await site.another({ databaseUrl: site.database.urlAs('plain'), env: { SHAPEFEED_AUTO_TRACK: 'false' } })
  const denied = async (params) => {
    const answer = await api.get({ offset: '-1', ...params })
    assert.equal(answer.status, 400, JSON.stringify(params))
    assert.match(answer.json.errors.table[0], /permission denied/)
    assert.doesNotMatch(answer.text, /hush/)
  }
  assert.deepEqual((await api.start({ table: 'items' })).operations.map(({ value }) => value), [{ id: '1', title: 'a' }])
  assert.deepEqual((await api.start({ table: 'mixed', columns: 'id,open' })).operations.map(({ value }) => value), [{ id: '1', open: 'o' }])
  await denied({ table: 'others' })
  await denied({ table: 'others', columns: 'id' })
  await denied({ table: 'others', where: "word = 'hush'" })
  await denied({ table: 'mixed' })
  await denied({ table: 'mixed', columns: 'id,closed' })
  await denied({ table: 'mixed', columns: 'id,open', where: "closed = 'hush'" })
  await denied({ table: 'mixed', columns: 'id,open', where: "true or closed = 'hush'" })
  // The handle of somebody who may is no key to it.
  const { handle } = await site.api.start({ table: 'others' })
  await denied({ table: 'others', handle, offset: '0_0' })
  await denied({ table: 'others', handle, offset: '0_0', live: 'true' })

  // Rights that are taken away end what is served, live requests included.
  const follower = await api.follow({ table: 'items' })
  const nosy = await api.get({ table: 'items', handle: follower.handle, offset: follower.offset, live: 'true', wake: 'others' })
  assert.equal(nosy.status, 400)
  assert.match(nosy.json.errors.wake[0], /permission denied/)
  await site.sql('revoke select on items from plain;')
  await site.sql("update items set title = 'hush' where id = 1;")
  await waitFor(async () => {
    const answer = await api.get({ table: 'items', handle: follower.handle, offset: follower.offset, live: 'true' })
    assert.doesNotMatch(answer.text, /hush/)
    return answer.status === 400
  }, { timeoutMs: 15_000, intervalMs: 200, what: 'the role gets nothing' })
  await denied({ table: 'items' })
  assert.doesNotMatch(sidecar.log(), /hush/)
})

test('row-level security without a policy for the role lets nothing pass', async () => {
  await site.sql(`
    create role bounded login; select shapefeed.grant_sidecar('bounded');
    create table owned (id int primary key); insert into owned values (1);
    grant select on owned to bounded; call shapefeed.track('owned');
    alter table owned enable row level security;`)
  const { api } = await site.another({ databaseUrl: site.database.urlAs('bounded'), env: { SHAPEFEED_AUTO_TRACK: 'false' } })
  const answer = await api.get({ table: 'owned', offset: '-1' })
  assert.deepEqual([answer.status, answer.operations], [200, []])
})

test('metrics count', async () => {
  const value = async (line) => {
    const { text } = await ask('/metrics')
    assert.match(text, /# EOF\s*$/)
    return Number(text.split('\n').find((it) => it.startsWith(line))?.split(' ').at(-1) ?? 0)
  }
  const refused = await value('shapefeed_requests_total{class="refused",status="400"}')
  const initial = await value('shapefeed_requests_total{class="initial",status="200"}')
  await site.api.get('')
  await site.api.get({ table: 'items', offset: '-1' })
  assert.equal(await value('shapefeed_requests_total{class="refused",status="400"}'), refused + 1)
  assert.equal(await value('shapefeed_requests_total{class="initial",status="200"}'), initial + 1)
  const follower = await site.api.follow({ table: 'others' })
  const held = site.api.get({ table: 'others', handle: follower.handle, offset: follower.offset, live: 'true' })
  await waitFor(async () => await value('shapefeed_live_requests') === 1)
  assert.ok(await value('shapefeed_head') > 0)
  await held
  await waitFor(async () => await value('shapefeed_live_requests') === 0)
})

test('without a database: not healthy, 503 with retry-after, and it comes up by itself', async () => {
  const port = await freePort()
  const sidecar = await startSidecar({ databaseUrl: `postgresql://postgres@127.0.0.1:${port}/postgres`, ready: false })
  const api = new ShapeApi(sidecar.url)
  try {
    await waitFor(async () => (await send(sidecar.url, '/')).status === 200)
    const health = await send(sidecar.url, '/v1/health')
    assert.equal(health.status, 202)
    assert.deepEqual(health.json, { status: 'starting' })
    const answer = await api.get({ table: 'items', offset: '-1' })
    assert.equal(answer.status, 503)
    assert.ok(Number(answer.headers['retry-after']) >= 1)
    assert.equal(answer.headers['access-control-allow-origin'], '*')
    assert.equal(answer.cacheControl, 'no-store')
    assert.equal(typeof answer.json.message, 'string')
    assert.equal((await api.get('table=items')).status, 400)
  } finally {
    api.close()
    await sidecar.stop()
  }
})
