// Named shapes with parameters, and the shapes of sql/examples/foundation.sql, for callers over HTTP and in SQL.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ok, served } from '../lib/index.mjs'
import { example, fewRows } from '../membership/setup.mjs'
import { as, convention, environment, followedAs, selectAs } from './setup.mjs'

const site = served({
  schema: `${convention}${example}${fewRows}
    grant select on users, companies, company_members, user_groups, user_group_members, workspaces, folders to app;
    insert into user_groups select i, i, 'group ' || i from generate_series(1, 4) i;
    insert into user_group_members select i, 1 + i % 3 from generate_series(1, 4) i;`,
  env: environment,
})

const names = ['all_users', 'my_companies', 'my_memberships', 'my_groups', 'my_group_members', 'my_workspaces', 'my_folders']
const start = (params, headers, api = site.api) => api.get({ offset: '-1', ...params }, { headers })
const lines = (rows) => rows.map((row) => JSON.stringify(Object.entries(row).map(([name, value]) => [name, value === null ? null : String(value)]).sort())).sort()

test('the seven shapes are what policies let each user select, over HTTP and by visible_rows', async () => {
  const { rows: shapes } = await site.client.query('select name, "table" from shapefeed.shapes order by name')
  assert.deepEqual(shapes.map(({ name }) => name), [...names].sort())
  const check = async () => {
    for (const { name, table } of shapes) {
      for (const sub of [1, 2, 3]) {
        const claims = { sub: String(sub) }
        const selected = lines((await selectAs(site.client, { claims }, `select * from ${table}`)))
        const served = await followedAs(site.api, as(sub), { shape: name })
        assert.deepEqual(lines(served.values), selected, `${name} of user ${sub}`)
      }
    }
  }
  await check()
  await site.sql('insert into company_members values (4, 3), (1, 2); delete from company_members where (company_id, user_id) = (2, 2)')
  await check()
  const mine = lines((await selectAs(site.client, { claims: { sub: '2' } }, 'select * from folders')))
  const visible = await selectAs(site.client, { claims: { sub: '2' } }, "select r from shapefeed.visible_rows(shape => 'my_folders') r")
  assert.deepEqual(lines(visible.map(({ r }) => r)), mine)
})

test('a parameter is of the request or of a claim, of its type, and never of the other', async () => {
  await site.sql(`
    select shapefeed.create_shape('folders_like', 'folders', 'name like :pattern and id < :below', params => '{"pattern": "text", "below": "int4"}');
    select shapefeed.create_shape('folders_of', 'folders',
      'workspace_id in (select w.id from workspaces w join company_members m on m.company_id = w.company_id where m.user_id = :user_id)',
      params => '{"user_id": {"type": "int4", "claim": "sub"}}')`)
  const ids = (answer) => ok(answer).operations.map(({ value }) => Number(value.id)).sort((a, b) => a - b)
  const like = (params, headers = as(1)) => start({ shape: 'folders_like', ...params }, headers)
  const all = ids(await like({ 'params[pattern]': 'folder %', 'params[below]': '1000' }))
  assert.ok(all.length > 1)
  assert.deepEqual(ids(await like({ 'params[pattern]': 'folder %', 'params[below]': '4' })), all.filter((id) => id < 4))
  for (const [params, why] of [
    [{ 'params[pattern]': 'x' }, /parameter \\"below\\" was not provided/],
    [{ 'params[pattern]': 'x', 'params[below]': 'many' }, /invalid input syntax for type integer/],
    [{ 'params[pattern]': 'x', 'params[below]': '1', 'params[other]': '1' }, /\\"other\\" is not a parameter/],
    [{ 'params[pattern]': 'x', 'params[below]': '1', where: 'true' }, /can't be given with shape/],
  ]) {
    const refused = await like(params)
    assert.equal(refused.status, 400, refused.text)
    assert.match(refused.text, why)
  }
  assert.deepEqual(ids(await like({ 'params[pattern]': "' or true --", 'params[below]': '1000' })), [])
  const own = await start({ shape: 'folders_of' }, as(2))
  assert.deepEqual(ids(own), (await selectAs(site.client, { claims: { sub: '2' } }, 'select id from folders order by id')).map(({ id }) => id))
  const overridden = await start({ shape: 'folders_of', 'params[user_id]': '1' }, as(2))
  assert.equal(overridden.status, 400)
  assert.match(overridden.text, /\\"user_id\\" is taken from the caller's claims/)
  const without = await start({ shape: 'folders_of' }, as(2, { sub: undefined }))
  assert.match(without.text, /the caller has no claim for \\"user_id\\"/)
  const inSql = await selectAs(site.client, { claims: { sub: '1' } },
    `select r from shapefeed.visible_rows(shape => 'folders_like', named => '{"pattern": "folder %", "below": 1000}') r`)
  assert.deepEqual(inSql.map(({ r }) => Number(r.id)).sort((a, b) => a - b), all)
  const changes = await selectAs(site.client, { claims: { sub: '1' } },
    `select operation from shapefeed.changes(shape => 'folders_like', named => '{"pattern": "folder %", "below": 1000}')`)
  assert.ok(Array.isArray(changes))
})

test('a setting makes named shapes the only ones', async () => {
  const { api } = await site.another({ env: { SHAPEFEED_NAMED_SHAPES_ONLY: 'true' } })
  assert.equal((await start({ shape: 'my_folders' }, as(1), api)).status, 200)
  const refused = await start({ table: 'folders' }, as(1), api)
  assert.equal(refused.status, 400)
  assert.match(refused.text, /only named shapes can/)
  const rows = await api.get({ table: 'folders', offset: 'now', 'subset[where]': 'true' }, { headers: as(1) })
  assert.equal(rows.status, 400)
})

test('declarations that make no sense are refused', async () => {
  for (const [params, why] of [
    [`'{"a": "no_type"}'`, /type "no_type" does not exist/],
    [`'{"a": 1}'`, /params are an object/],
    [`'{"a b": "int4"}'`, /no name of a parameter/],
  ]) await assert.rejects(site.client.query(`select shapefeed.create_shape('x', 'folders', 'id = :a', params => ${params})`), why)
  await assert.rejects(site.client.query(`select shapefeed.create_shape('x', 'folders', 'name = :a', params => '{"a": "int4"}')`), /operator does not exist/)
  await assert.rejects(site.client.query(`select * from shapefeed.visible_rows('folders', named => '{"a": 1}')`), /no shape's name/)
})
