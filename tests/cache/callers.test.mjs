// A shared cache between callers: nobody is handed what another was told.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { ShapeApi, ok, served, startNginx, waitFor } from '../lib/index.mjs'
import { as, convention, environment } from '../rls/setup.mjs'

const site = served({
  schema: `${convention}
    create table notes (id int primary key, owner int);
    insert into notes select i, i % 3 from generate_series(1, 9) i;
    create table news (id int primary key);
    insert into news values (1);
    grant select on notes, news to app, anon;
    alter table notes enable row level security;
    create policy own on notes using (owner = auth.uid())`,
  env: environment,
})

const started = []
after(() => Promise.all(started.map((stop) => stop())))

/** nginx before the sidecar, and requests through it. */
async function cache(options) {
  const nginx = await startNginx([site.sidecar.port], options)
  const api = new ShapeApi(nginx.url)
  started.push(async () => {
    api.close()
    await nginx.stop()
  })
  return { nginx, api }
}

const idsOf = (answer) => ok(answer).operations.map(({ value }) => Number(value.id)).sort()

const owned = { 0: [3, 6, 9], 1: [1, 4, 7], 2: [2, 5, 8] }

test('what nginx has of one caller, no other gets; not the snapshot, the log, a 304 or a 409', async () => {
  const { api } = await cache()
  const get = (sub, params) => api.get({ table: 'notes', offset: '-1', ...params }, { headers: sub === undefined ? {} : as(sub) })
  for (const round of [1, 2, 3]) {
    for (const sub of [0, 1, 2]) assert.deepEqual(idsOf(await get(sub)), owned[sub], `user ${sub}, round ${round}`)
    assert.deepEqual(idsOf(await get()), [], 'without a token')
  }
  const mine = await get(1)
  for (const params of [{ handle: mine.handle }, { handle: mine.handle, offset: '0_0' }]) {
    const own = ok(await get(1, params))
    assert.match(own.cacheControl, /^private/)
    assert.match(own.headers.vary, /authorization/i)
    const other = await get(2, params)
    assert.deepEqual(other.operations.filter(({ value }) => value.owner === '1'), [])
    if (params.offset) assert.equal(other.status, 409, 'a handle is no right')
    assert.match(other.cacheControl, /^private/)
    const unchanged = await site.api.get({ table: 'notes', offset: '-1', ...params }, { headers: { ...as(1), 'if-none-match': own.etag } })
    assert.equal(unchanged.status, 304)
    assert.match(unchanged.cacheControl, /^private/)
  }
})

test('also a cache that knows nothing of callers keeps no answer to one', async () => {
  const { api } = await cache({ without: [' $http_authorization'] })
  for (const round of [1, 2, 3]) {
    for (const sub of [0, 1, 2]) {
      const answer = await api.get({ table: 'notes', offset: '-1' }, { headers: as(sub) })
      assert.deepEqual(idsOf(answer), owned[sub], `user ${sub}, round ${round}`)
    }
  }
})

test('what is asked for without a token is cached for all who have none', async () => {
  const { nginx, api } = await cache()
  const get = (headers) => api.get({ table: 'news', offset: '-1' }, { headers })
  const first = ok(await get({}))
  assert.match(first.cacheControl, /^public/)
  assert.match(first.headers.vary, /authorization/i)
  ok(await get({}))
  await waitFor(() => nginx.accessLog().includes(' HIT'), { what: 'the second is from the cache' })
  assert.match(ok(await get(as(1))).cacheControl, /^private/)
})

test('writes pass, with who makes them, and none is answered from the cache', async () => {
  await site.sql("grant insert on news to app; call shapefeed.allow_writes('news')")
  const { nginx } = await cache()
  const body = (seq) => JSON.stringify({ client_id: '0b4f2c7e-5f0e-4a55-9a52-7a0f4a3f6f01', transactions: [{ seq, operations: [{ operation: 'insert', table: 'news', value: { id: `${seq + 1}` } }] }] })
  const send = async (seq) => {
    const answer = await fetch(`${nginx.url}/v1/write`, { method: 'POST', headers: { ...as(1), 'content-type': 'application/json' }, body: body(seq) })
    const text = await answer.text()
    assert.equal(answer.status, 200, text)
    return JSON.parse(text).results[0].status
  }
  assert.deepEqual([await send(1), await send(2), await send(1)], ['applied', 'applied', 'applied'])
  assert.equal(await site.sql('select count(*) from news'), '3')
})
