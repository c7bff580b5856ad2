// What a subquery may not be, whose rights count, what ends a shape that has one, and what explain_shape says.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served, waitFor } from '../lib/index.mjs'
import { fewRows, followed, foundation, visibleTo } from './setup.mjs'

const site = served({
  schema: `${foundation}${fewRows}
    create table keyless (a int);
    create view a_view as select * from users;
    create table items (id int primary key, tag int);
    create table tags (id int primary key, name text);
    insert into items select i, i % 3 from generate_series(1, 30) i;
    insert into tags values (1, 'one');
    create role regress_member login;
    grant select on workspaces, companies to regress_member;
    grant select (company_id) on company_members to regress_member;
    select shapefeed.grant_sidecar('regress_member');`,
})

const M = 'company_members'
const refused = {
  [`company_id in (select max(company_id) from ${M})`]: /^At location 22: aggregate max\(integer\) in a subquery cannot be maintained$/,
  [`exists (select count(*) from ${M})`]: /^At location 15: aggregate count\(\) in a subquery cannot be maintained$/,
  [`company_id in (select rank() over () from ${M})`]: /window function rank\(\) in a subquery cannot be maintained$/,
  [`company_id in (select company_id from ${M} limit 1)`]: /^At location 0: LIMIT in a subquery cannot be maintained$/,
  [`company_id in (select company_id from ${M} offset 1)`]: /OFFSET in a subquery cannot be maintained$/,
  [`company_id in (select company_id from ${M} group by 1)`]: /GROUP BY in a subquery cannot be maintained$/,
  [`company_id in (select distinct on (user_id) company_id from ${M})`]: /DISTINCT ON in a subquery cannot be maintained$/,
  [`company_id in (with m as (select * from ${M}) select company_id from m)`]: /WITH in a subquery cannot be maintained$/,
  [`company_id in (with recursive m as (select 1 as n union select n + 1 from m) select n from m)`]: /WITH in a subquery cannot be maintained$/,
  [`company_id in (select company_id from ${M} for update)`]: /FOR UPDATE or FOR SHARE in a subquery cannot be maintained$/,
  [`company_id in (select generate_series(1, user_id) from ${M})`]: /a set-returning function in a subquery cannot be maintained$/,
  [`company_id in (select company_id from ${M} where random() > 0.5)`]: /^At location \d+: function random\(\) is volatile$/,
  [`company_id in (select company_id from ${M} where now() > '2000-01-01')`]: /^At location \d+: the value of function now\(\) changes while no row does$/,
  [`company_id in (select company_id from ${M} intersect select id from companies)`]: /INTERSECT and EXCEPT in a subquery are not supported$/,
  [`company_id in (select m.company_id from ${M} m left join users u on u.id = m.user_id)`]: /an outer join in a subquery is not supported$/,
  'company_id in (select id from a_view)': /FROM in a subquery may name tables only$/,
  'company_id in (select id from (select id from companies) c)': /FROM in a subquery may name tables only$/,
  'company_id in (select a from keyless)': /table "keyless" in a subquery needs a primary key$/,
  'company_id in (select oid::int from pg_class)': /is a system catalog/,
  [`company_id = (select company_id from ${M} where user_id = 1)`]: /must find one row of one table by a unique key$/,
  'name = (select c.name from companies c where c.name = workspaces.name)': /must find one row of one table by a unique key$/,
  'name || (select c.name from companies c where c.id = company_id) = name': /^At location \d+: a condition on more than one table must compare a value of one with a value of another$/,
  [`company_id = any (array(select company_id from ${M}))`]: /ARRAY\(SELECT …\) is not supported, write = ANY \(SELECT …\)$/,
  [`(company_id, id) < (select company_id, user_id from ${M})`]: /write IN \(SELECT …\)$/,
  [`exists (select 1 from ${M} m where m.company_id + workspaces.id > m.user_id)`]: /^At location \d+: a condition on more than one table must compare a value of one with a value of another$/,
  [`exists (select 1 from ${M} m join users u on u.id = m.user_id where m.company_id = workspaces.company_id and u.id = workspaces.id)`]:
    /columns of more than one table of a subquery are compared with the outer row$/,
  [`exists (select 1 from ${M} m where exists (select 1 from users u where u.id = m.user_id and u.id = workspaces.id))`]:
    /a reference over more than one level of subqueries is not supported$/,
}

test('what cannot be maintained is refused, by name and place', async () => {
  for (const [where, expected] of Object.entries(refused)) {
    const { status, json } = await site.api.get({ table: 'workspaces', where, offset: '-1' })
    assert.equal(status, 400, where)
    assert.match(json.errors.where[0], expected, where)
  }
  const { json } = await site.api.get({ table: 'keyless', where: 'a in (select id from users)', offset: '-1' })
  assert.match(json.errors.where[0], /need a table with a primary key/)
})

test('the caller needs the right to each column that is read, at any depth', async () => {
  const { sidecar, api } = await site.another({ databaseUrl: site.database.urlAs('regress_member'), env: { SHAPEFEED_AUTO_TRACK: 'false' } })
  await site.sql("call shapefeed.track('workspaces'); call shapefeed.track('companies'); call shapefeed.track('company_members')")
  const get = (where) => api.get({ table: 'workspaces', where, offset: '-1' })
  const allowed = await get('company_id in (select company_id from company_members)')
  assert.equal(allowed.status, 200, allowed.text)
  for (const where of [
    'company_id in (select company_id from company_members where user_id = 1)', visibleTo.workspaces.replace('$1', '1'),
    'company_id in (select id from companies where id in (select company_id from company_members where role = $$a$$))',
  ]) {
    const { status, text } = await get(where)
    assert.equal(status, 400, text)
    assert.match(text, /permission denied for column \\"(user_id|role)\\" of table \\"public\\".\\"company_members\\"/)
  }
  for (const where of ['exists (select from users)', 'exists (select 1 from users u)']) {
    assert.match((await get(where)).text, /permission denied for table \\"public\\".\\"users\\"/)
  }
  // A right that is taken away ends the shape.
  const follower = await followed(site, { table: 'workspaces', where: 'company_id in (select company_id from company_members)' }, api)
  await site.sql('create index on company_members (role); insert into company_members values (4, 1)')
  await follower.until(({ seen }) => seen.length === 2)
  const live = api.get({ ...follower.params, handle: follower.handle, offset: follower.offset, live: 'true' })
  await site.sql('revoke select (company_id) on company_members from regress_member; insert into company_members values (4, 2)')
  const { status, text } = await live
  assert.notEqual(status, 200, text)
  void sidecar
})

test('TRUNCATE of an inner table ends the shape, by one 409 with another handle', async () => {
  const shape = { table: 'items', where: 'tag in (select id from tags)' }
  const follower = await followed(site, shape)
  const live = site.api.get({ ...follower.params, handle: follower.handle, offset: follower.offset, live: 'true' })
  await site.sql('truncate tags')
  const { status, handle } = await live
  assert.equal(status, 409)
  assert.notEqual(handle, follower.handle)
  const next = await waitFor(async () => {
    const answer = await site.api.get({ ...shape, offset: '-1' })
    return answer.status === 200 && answer
  }, { what: 'the shape begins anew' })
  assert.deepEqual(next.operations, [])
  assert.notEqual(next.handle, follower.handle)
})

test('shapes with the same table and text are one, those with other values are not', async () => {
  const hash = async (params) => (await site.api.start(params)).handle.split('-')[0]
  const at = (user) => hash({ table: 'workspaces', where: visibleTo.workspaces, 'params[1]': user })
  assert.equal(await at('1'), await at('1'))
  assert.equal(await at('1'), await hash({ table: 'workspaces', where: visibleTo.workspaces.replace('$1', '1') }))
  assert.notEqual(await at('1'), await at('2'))
})

test('explain_shape and the log of the server name the index that a membership lacks', async () => {
  await site.sql('insert into tags values (1, $$one$$)')
  await waitFor(async () => (await site.sql('select pending from shapefeed.status')).trim() === '0', { what: 'all is sequenced' })
  const { rows } = await site.client.query("select step, condition, result from shapefeed.explain_shape('items', 'tag in (select id from tags)', key => '{1}')")
  assert.deepEqual(rows.find(({ step }) => step === 'missing index').condition, 'create index on "public"."items" ("tag")')
  assert.deepEqual(rows.find(({ step }) => step === 'set').condition, '"public"."tags"')
  assert.match(site.cluster.log(), /this would help: create index on "public"."items" \("tag"\)/)
  await site.sql('create index on items (tag)')
  const again = await site.client.query("select step from shapefeed.explain_shape('items', 'tag in (select id from tags)')")
  assert.ok(!again.rows.some(({ step }) => step === 'missing index'))
})
