// Named shapes over HTTP: `shape=<name>` is the shape that is kept under the name, with its handles.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ShapeApi, served, waitFor } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'

const site = served({
  schema: `
    create table items (id int primary key, owner text, done bool not null default false, v text);
    insert into items select g, case when g % 2 = 0 then 'ann' else 'bob' end, g % 3 = 0, 'v' || g from generate_series(1, 20) g;
    select shapefeed.create_shape('open', 'items', 'not done', columns => '{id,owner,v}');
    select shapefeed.create_shape('whole ü', 'items', replica => 'full');
    create role reader;
    create role stranger login;
    grant select on items to reader;
    grant reader to stranger;
    select shapefeed.create_shape('mine', 'items', 'owner = current_user');
    select shapefeed.grant_sidecar('stranger');`,
})
const open = 'select id, owner, v from items where not done'

test('a stock client follows it', async () => {
  const follower = follow(site.sidecar.url, { shape: 'open' })
  await untilSame(follower, site.client, open)
  await site.sql(`
    update items set done = not done where id < 6;
    update items set v = 'new' where id = 7;
    delete from items where id = 8;
    insert into items values (30, 'ann', false, 'x')`)
  await untilSame(follower, site.client, open)
  follower.stop()
})

test('it is the same shape as one that is asked for in so many words, from any sidecar', async () => {
  const named = await site.api.start({ shape: 'open' })
  const words = await site.api.start({ table: 'items', where: 'not done', columns: 'id,owner,v' })
  assert.equal(named.handle, words.handle)
  const { api } = await site.another()
  const { handle } = named
  for (const [base, params] of [[api, { shape: 'open' }], [api, { table: 'items', where: 'not done', columns: 'id,owner,v' }]]) {
    assert.equal((await base.get({ ...params, handle, offset: '0_0' })).status, 200)
  }
  const full = await site.api.follow({ shape: 'whole ü' })
  assert.equal(full.handle, (await site.api.start({ table: 'items', replica: 'full' })).handle)
  await site.sql(`update items set v = 'newer' where id = 7`)
  await full.until(({ seen }) => seen.some(({ value }) => value.v === 'newer' && 'done' in value && 'owner' in value))
  const asked = await site.api.start({ shape: 'open', replica: 'full' })
  assert.notEqual(asked.handle, named.handle)
})

test('what is wrong with a request is said', async () => {
  const errors = async (params) => {
    const answer = await site.api.get({ offset: '-1', ...params })
    assert.equal(answer.status, 400, answer.text)
    return answer.json.errors
  }
  assert.deepEqual(await errors({ shape: 'nothing' }), { shape: ['shape "nothing" does not exist'] })
  assert.deepEqual(await errors({ shape: 'open', table: 'items' }), { shape: ["can't be given with table"] })
  assert.deepEqual(await errors({ shape: 'open', where: 'true' }), { where: ["can't be given with shape"] })
  assert.deepEqual(await errors({ shape: 'open', columns: 'id' }), { columns: ["can't be given with shape"] })
  assert.deepEqual(await errors({ shape: 'open', 'params[1]': 'x' }), { params: ['"1" is not a parameter of the shape'] })
  assert.deepEqual(await errors({ shape: ' ' }), { table: ["can't be blank"] })
  assert.deepEqual(await errors({ shape: `'; select 1; --` }), { shape: [`shape "'; select 1; --" does not exist`] })
})

test('it is evaluated for the role of the sidecar', async () => {
  const role = await site.another({ databaseUrl: site.database.urlAs('stranger'), flags: ['--role', 'reader'], env: { SHAPEFEED_AUTO_TRACK: 'false' } })
  await site.sql(`insert into items values (40, 'reader', false, 'mine')`)
  const mine = await role.api.follow({ shape: 'mine' })
  assert.deepEqual(mine.values.map(({ id }) => id), ['40'])
  await site.sql('revoke select on items from reader; grant select (id, owner, v) on items to reader')
  const refused = await role.api.get({ shape: 'mine', offset: '-1' })
  assert.equal(refused.status, (await role.api.get({ table: 'items', offset: '-1' })).status)
  assert.equal(refused.status, 400, refused.text)
  await site.sql('grant select on items to reader')
})

test('replaced under its name it is another shape; dropped, none', async () => {
  await site.sql(`select shapefeed.create_shape('changing', 'items', 'id < 5')`)
  const follower = await site.api.follow({ shape: 'changing' })
  await site.sql(`select shapefeed.drop_shape('changing'); select shapefeed.create_shape('changing', 'items', 'id < 3')`)
  const { handle, offset } = follower
  const refused = await site.api.get({ shape: 'changing', handle, offset })
  assert.equal(refused.status, 409, refused.text)
  const again = await site.api.get({ shape: 'changing', offset: '-1', handle: refused.handle })
  assert.equal(again.operations.length, 2)
  // Live requests are told, although they go on without asking what the shape is.
  const stays = follow(site.sidecar.url, { shape: 'changing' }, { onError: () => {} })
  await untilSame(stays, site.client, 'select * from items where id < 3')
  await site.sql(`select shapefeed.drop_shape('changing')`)
  assert.equal((await site.api.get({ shape: 'changing', offset: '-1' })).status, 400)
  await waitFor(async () => {
    await site.sql(`update items set v = v || '.' where id = 1`)
    return stays.stream.error?.status === 400
  }, { what: 'the client is told', intervalMs: 200 })
  stays.stop()
})

test('deleted by its name', async () => {
  const { handle } = await site.api.start({ shape: 'open' })
  assert.equal((await site.api.delete({ shape: 'open' })).status, 202)
  assert.equal((await site.api.get({ shape: 'open', handle, offset: '0_0' })).status, 409)
})
