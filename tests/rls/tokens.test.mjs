// Who a caller is: tokens that are good, keys that rotate, and everything that a forger may try.
import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { ok, scratchDir, served, waitFor } from '../lib/index.mjs'
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

test('tokens that are not good get a 401 that says nothing of why', async () => {
  const pem = join(scratchDir('confusion'), 'rsa.pem')
  mkdirSync(join(pem, '..'), { recursive: true })
  writeFileSync(pem, pairs.RS256.pem)
  const strict = { ...environment, SHAPEFEED_JWT_PUBLIC_KEY: pem, SHAPEFEED_JWT_AUDIENCE: 'shapes', SHAPEFEED_JWT_ISSUER: 'https://issuer' }
  const { api } = await site.another({ env: strict })
  const claims = { role: 'app', sub: '1', aud: 'shapes', iss: 'https://issuer' }
  assert.deepEqual(idsOf(await ask(bearer(token(claims, secret)), {}, api)), ['1'])
  assert.deepEqual(idsOf(await ask(bearer(token(claims, pairs.RS256.privateKey, { alg: 'RS256' })), {}, api)), ['1'])
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
