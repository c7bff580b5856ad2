// Who a caller is: tokens that are good, keys that rotate, and everything that a forger may try.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { FetchError, Shape, ShapeStream } from '@electric-sql/client'
import { openEvents, ok, scratchDir, served, startProxy, waitFor } from '../lib/index.mjs'
import { bearer, keyPair, token } from '../lib/jwt.mjs'
import { as, convention, environment, followedAs, secret } from './setup.mjs'

const site = served({
  schema: `${convention}
    create table docs (id int primary key, owner int, role_of text);
    insert into docs values (1, 1, 'app'), (2, 2, 'app'), (3, 1, 'postgres');
    grant select on docs to app, anon;
    alter table docs enable row level security;
    create policy own on docs using (owner = auth.uid() and role_of = current_user);`,
  env: environment,
})

const ask = (headers, params = {}, api = site.api) => api.get({ table: 'docs', offset: '-1', ...params }, { headers })
const idsOf = (answer) => ok(answer).operations.map(({ value }) => value.id).sort()
const soon = (seconds) => Math.floor(Date.now() / 1000) + seconds

const pairs = { RS256: keyPair('RS256', 'rsa'), ES256: keyPair('ES256', 'ec'), EdDSA: keyPair('EdDSA', 'ed') }

test('keys of each kind, from PEM files, a set in a file and a set behind a URL that rotates', async () => {
  const dir = scratchDir('keys')
  mkdirSync(dir, { recursive: true })
  const files = Object.entries(pairs).map(([alg, { pem }]) => {
    const file = join(dir, `${alg}.pem`)
    writeFileSync(file, pem)
    return file
  })
  const jwks = join(dir, 'jwks.json')
  const unknown = { kty: 'EC', crv: 'secp256k1', kid: 'x', x: 'AA', y: 'AA' }
  writeFileSync(jwks, JSON.stringify({ keys: [unknown, ...Object.values(pairs).map(({ jwk }) => jwk)] }))
  let keys = [pairs.RS256.jwk]
  const server = http.createServer((_, response) => response.end(JSON.stringify({ keys }))).listen(0, '127.0.0.1')
  after(() => server.close())
  const env = { SHAPEFEED_ROLES: 'app', SHAPEFEED_JWT_SECRET: '' }
  delete env.SHAPEFEED_JWT_SECRET
  const site2 = async (more) => (await site.another({ env: { SHAPEFEED_JWT_SECRET: undefined, ...env, ...more } })).api
  const claims = { role: 'app', sub: '1' }
  const signed = (alg, kid) => bearer(token(claims, pairs[alg].privateKey, { alg, header: kid ? { kid } : {} }))
  for (const api of [await site2({ SHAPEFEED_JWT_PUBLIC_KEY: files.join(',') }), await site2({ SHAPEFEED_JWT_JWKS: jwks })]) {
    for (const alg of Object.keys(pairs)) assert.deepEqual(idsOf(await ask(signed(alg), {}, api)), ['1'], alg)
    assert.equal((await ask(as(1), {}, api)).status, 401, 'a secret that is not configured')
  }
  const url = await site2({ SHAPEFEED_JWT_JWKS: `http://127.0.0.1:${server.address().port}/keys` })
  await waitFor(async () => (await ask(signed('RS256', 'rsa'), {}, url)).status === 200, { what: 'the set is read' })
  assert.equal((await ask(signed('ES256', 'ec'), {}, url)).status, 401)
  keys = [pairs.ES256.jwk]
  await waitFor(async () => (await ask(signed('ES256', 'ec'), {}, url)).status === 200, { what: 'the new set is read', timeoutMs: 15_000 })
  assert.equal((await ask(signed('RS256', 'rsa'), {}, url)).status, 401, 'a key that was taken out')
})

test('a set of keys comes by https from a server that is known, and rotates', async () => {
  const certificates = new URL('../transport/certificates/', import.meta.url).pathname
  const [key, cert] = ['server.key', 'server.crt'].map((name) => readFileSync(certificates + name))
  let keys = [pairs.EdDSA.jwk], asked = 0
  const server = https.createServer({ key, cert }, (_, response) => response.end(JSON.stringify({ keys }))).listen(0, '127.0.0.1')
  await once(server, 'listening')
  server.on('request', () => (asked += 1))
  after(() => server.close())
  const other = async (trusted) => {
    const env = { SHAPEFEED_JWT_SECRET: undefined, SHAPEFEED_JWT_JWKS: `https://localhost:${server.address().port}/keys`, SSL_CERT_FILE: certificates + trusted }
    return (await site.another({ env })).api
  }
  const signed = (alg, kid) => bearer(token({ role: 'app', sub: '1' }, pairs[alg].privateKey, { alg, header: { kid } }))
  const api = await other('server.crt')
  await waitFor(async () => (await ask(signed('EdDSA', 'ed'), {}, api)).status === 200, { what: 'the set is read' })
  keys = [pairs.RS256.jwk]
  await waitFor(async () => (await ask(signed('RS256', 'rsa'), {}, api)).status === 200, { what: 'the new set is read', timeoutMs: 15_000 })
  assert.equal((await ask(signed('EdDSA', 'ed'), {}, api)).status, 401, 'a key that was taken out')
  const before = asked
  const wary = await other('first.crt')
  assert.equal((await ask(signed('RS256', 'rsa'), {}, wary)).status, 401, 'a server that nobody vouches for')
  assert.equal(asked, before)
})

test('tokens that are not good get a 401 that says nothing of why', async () => {
  const pem = join(scratchDir('confusion'), 'rsa.pem')
  mkdirSync(join(pem, '..'), { recursive: true })
  writeFileSync(pem, pairs.RS256.pem)
  const strict = { ...environment, SHAPEFEED_JWT_PUBLIC_KEY: pem, SHAPEFEED_JWT_AUDIENCE: 'shapes', SHAPEFEED_JWT_ISSUER: 'https://issuer' }
  const { api } = await site.another({ env: strict })
  const claims = { role: 'app', sub: '1', aud: 'shapes', iss: 'https://issuer' }
  assert.deepEqual(idsOf(await ask(bearer(token(claims, secret)), {}, api)), ['1'])
  assert.deepEqual(idsOf(await ask(bearer(token(claims, pairs.RS256.privateKey, { alg: 'RS256' })), {}, api)), ['1'])
  for (const typ of [undefined, 'jwt', 'at+jwt', 'application/at+JWT']) assert.deepEqual(idsOf(await ask(bearer(token(claims, secret, { header: { typ } })), {}, api)), ['1'], typ)
  const good = token(claims, secret)
  const [head, body, signature] = good.split('.')
  const forged = Buffer.from(JSON.stringify({ ...claims, sub: '2', exp: soon(60) })).toString('base64url')
  const bad = {
    'another secret': token(claims, `${secret}!`),
    'no signature': token(claims, '', { alg: 'none' }),
    'no signature, in capitals': token(claims, '', { alg: 'NONE', signedBy: 'none' }),
    'the public key as a secret': token(claims, pairs.RS256.pem, { alg: 'HS256' }),
    'the public key as a secret, said to be RS256': token(claims, pairs.RS256.pem, { alg: 'RS256', signedBy: 'HS256' }),
    'a longer hash': token(claims, secret, { alg: 'HS512' }),
    'other claims': `${head}.${forged}.${signature}`,
    'without its signature': `${head}.${body}.`,
    'two parts': `${head}.${body}`,
    expired: token({ ...claims, exp: soon(-40) }, secret),
    'without an end': token({ ...claims, exp: undefined }, secret),
    'an end that is no number': token({ ...claims, exp: 'never' }, secret),
    'not yet': token({ ...claims, nbf: soon(100) }, secret),
    'another audience': token({ ...claims, aud: 'other' }, secret),
    'no audience': token({ ...claims, aud: undefined }, secret),
    'another issuer': token({ ...claims, iss: 'https://issuer.evil' }, secret),
    'a key of its own': token(claims, pairs.ES256.privateKey, { alg: 'ES256', header: { jwk: pairs.ES256.jwk } }),
    'something that must be understood': token(claims, secret, { header: { crit: ['x'], x: 1 } }),
    'nothing that must be understood, said wrongly': token(claims, secret, { header: { crit: [] } }),
    'a kind that is for something else': token(claims, secret, { header: { typ: 'logout+jwt' } }),
    'a kind that is none': token(claims, secret, { header: { typ: 7 } }),
    'too long': token({ ...claims, x: 'x'.repeat(20_000) }, secret),
    nonsense: 'x',
  }
  for (const [what, text] of Object.entries(bad)) {
    const answer = await ask(bearer(text), {}, api)
    assert.deepEqual([answer.status, answer.json], [401, { message: 'Unauthorized - Invalid token' }], what)
    assert.deepEqual([answer.headers['www-authenticate'], answer.cacheControl, answer.headers['access-control-allow-origin']], ['Bearer', 'no-store', '*'], what)
  }
  for (const authorization of ['Basic YTpi', 'Bearer', `bearer  `, good]) {
    assert.equal((await ask({ authorization }, {}, api)).status, 401, authorization)
  }
  const subset = await api.get({ table: 'docs', offset: 'now', 'subset[where]': 'true' }, { headers: bearer(bad.expired) })
  assert.equal(subset.status, 401)
})

test('a token names an allowed role or none', async () => {
  for (const role of ['postgres', 'APP', 'app ', 'none', '', 'pg_read_all_data', 5, ['app'], { app: 1 }]) {
    const answer = await ask(bearer(token({ role, sub: '1' }, secret)))
    assert.equal(answer.status, 403, JSON.stringify(role))
  }
  const headers = bearer(token({ sub: '1' }, secret))
  assert.deepEqual(idsOf(await ask(headers)), [], 'without a role it is the anonymous one')
  const nested = await site.another({ env: { ...environment, SHAPEFEED_JWT_ROLE_CLAIM: 'app_metadata.role' } })
  assert.deepEqual(idsOf(await ask(bearer(token({ app_metadata: { role: 'app' }, role: 'app_admin', sub: '1' }, secret)), {}, nested.api)), ['1'])
  await site.sql(`create policy of_admin on docs for select using (current_setting('request.jwt.claims')::json ->> 'role' = 'app_admin')`)
  const told = await ask(bearer(token({ app_metadata: { role: 'app' }, role: 'app_admin', sub: '1' }, secret)), {}, nested.api)
  await site.sql('drop policy of_admin on docs')
  assert.deepEqual(idsOf(told), ['1'], 'policies are told of the role that is acted as')
})

test('claims set what is theirs and nothing else', async () => {
  const evil = { 'x.y': 'z', search_path: 'evil', '; drop table docs': '1', "a'": "b'; set role postgres; --", row_security: 'off', session_authorization: 'postgres', '': 'x', 'ä': 'ö' }
  assert.deepEqual(idsOf(await ask(as(1, { ...evil, sub: '1' }))), ['1'])
  for (const sub of ["1' or '1'='1", '1); select 1', '\\', '1::int', ' ']) {
    const answer = await ask(as(1, { sub }))
    assert.equal(answer.status, 400, `${sub}: ${answer.text}`)
  }
  assert.deepEqual(idsOf(await ask(as(1, { sub: 1 }))), ['1'])
  assert.deepEqual(idsOf(await ask(as(1, { sub: null }))), [])
  assert.deepEqual(idsOf(await ask(as(2))), ['2'], 'nothing of a caller is left in a session')
  assert.deepEqual(idsOf(await ask({})), [])
})

test('when a token expires a held request ends with a 401, and a new token goes on at the same place', async () => {
  const strict = await site.another({ env: { ...environment, SHAPEFEED_JWT_LEEWAY: '0', SHAPEFEED_LONG_POLL_TIMEOUT_MS: '20000' } })
  const short = () => as(1, { exp: Date.now() / 1000 + 2 })
  const follower = await followedAs(strict.api, short(), { table: 'docs' })
  const place = { table: 'docs', offset: follower.offset, handle: follower.handle, live: 'true', cursor: '' }
  const held = await strict.api.get(place, { headers: short() })
  assert.equal(held.status, 401, held.text)
  assert.ok(held.ms < 5000, `held for ${held.ms} ms`)
  await site.sql("insert into docs values (4, 1, 'app')")
  const next = ok(await strict.api.get(place, { headers: as(1) }))
  assert.deepEqual(next.operations.map(({ value }) => value.id), ['4'])
})

test('when a token expires a stream ends, the next is refused, and a new token goes on at the same place', async () => {
  const { api, sidecar } = await site.another({ env: { ...environment, SHAPEFEED_JWT_LEEWAY: '0' } })
  const short = () => as(1, { exp: Date.now() / 1000 + 2 })
  const follower = await followedAs(api, short(), { table: 'docs' })
  const query = `table=docs&live=true&live_sse=true&offset=${follower.offset}&handle=${follower.handle}&cursor=`
  const headers = short()
  const began = performance.now()
  const stream = await openEvents(sidecar.url, query, { headers })
  assert.equal(stream.status, 200)
  await site.sql("insert into docs values (10, 1, 'app')")
  await stream.until((messages) => messages.some(({ value }) => value?.id === '10'))
  assert.equal(await stream.ended, 'whole')
  const lasted = performance.now() - began
  assert.ok(lasted < 5000, `it lasted ${lasted} ms`)
  await site.sql("insert into docs values (11, 1, 'app')")
  const refused = await openEvents(sidecar.url, query, { headers })
  assert.equal(refused.status, 401)
  refused.close()
  const next = await openEvents(sidecar.url, query, { headers: as(1) })
  await next.until((messages) => messages.some(({ value }) => value?.id === '11'))
  assert.deepEqual(next.messages.filter(({ value }) => value).map(({ value }) => value.id), ['10', '11'])
  next.close()
})

test('the stock client that is given a new token goes on where it was', async () => {
  const { sidecar } = await site.another({ env: { ...environment, SHAPEFEED_JWT_LEEWAY: '0' } })
  const proxy = await startProxy(sidecar.url)
  let tokens = 0
  const fresh = () => {
    tokens += 1
    return as(1, { exp: Date.now() / 1000 + 2 })
  }
  const stream = new ShapeStream({
    url: `${proxy.url}/v1/shape`,
    params: { table: 'docs' },
    headers: fresh(),
    onError: (error) => {
      if (error instanceof FetchError && error.status === 401) return { headers: fresh() }
      throw error
    },
  })
  const shape = new Shape(stream)
  after(() => {
    shape.unsubscribeAll()
    stream.unsubscribeAll()
    return proxy.stop()
  })
  const has = (id) => shape.currentRows.some((row) => row.id === id)
  await shape.rows
  proxy.reset()
  for (let id = 20; tokens < 4; id += 1) {
    await site.sql(`insert into docs values (${id}, 1, 'app')`)
    await waitFor(() => has(id), { what: `row ${id}, ${tokens} tokens` })
  }
  assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 0 })
  const { rows } = await site.client.query("select id from docs where owner = 1 and role_of = 'app' order by id")
  assert.deepEqual(shape.currentRows.map(({ id }) => id).sort((a, b) => a - b), rows.map(({ id }) => id))
})
