// Row-level security over HTTP: each caller has the rows and columns that a SELECT gives with his role and claims.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served, waitFor } from '../lib/index.mjs'
import { as, convention, environment, followedAs, selectAs, withHeaders } from './setup.mjs'

const site = served({
  schema: `${convention}
    create table members (team int, person int, primary key (team, person));
    create table docs (id int primary key, team int, owner int, title text, salary numeric);
    create index on docs (team);
    insert into members values (1, 1), (2, 1), (2, 2);
    insert into docs select i, i % 4, i % 3, 'd' || i, i from generate_series(1, 24) i;
    grant select on members, docs to app, app_admin;
    alter table docs enable row level security;
    alter table members enable row level security;
    create policy of_owner on docs using (owner = (select auth.uid()));
    create policy of_team on docs for select to app
      using (exists (select from members m where m.team = docs.team and m.person = auth.uid()));
    create policy not_secret on docs as restrictive using (title <> 'd7');
    create policy own on members using (person = auth.uid());`,
  env: environment,
})

const docs = { table: 'docs' }
const ids = (follower) => follower.values.map(({ id }) => Number(id)).sort((a, b) => a - b)
const selected = async (sub, query = 'select id from docs') =>
  (await selectAs(site.client, { claims: { sub: String(sub) } }, `${query} order by 1`)).map(({ id }) => id)

/** Follows until the copy is what the user's SELECT gives. */
async function untilSelected(follower, sub) {
  const same = async () => JSON.stringify(ids(follower)) === JSON.stringify(await selected(sub))
  await waitFor(async () => (await same()) || (await follower.live(), await same()), { what: `the rows of user ${sub}` })
}

test('each user follows what he could select, while rows, members and owners change', async () => {
  const users = [1, 2, 3]
  const followers = await Promise.all(users.map((sub) => followedAs(site.api, as(sub), docs)))
  assert.deepEqual(followers.map((follower) => ids(follower).length > 0), [true, true, false])
  for (const step of [
    'insert into members values (3, 3), (0, 2)',
    'update docs set owner = 3 where id in (1, 2)',
    "update docs set title = 'd7' where id = 6",
    "update docs set title = 'x' where title = 'd7'",
    'delete from members where person = 1',
    'update docs set team = team + 1',
    'update docs set id = id + 100 where id < 5',
    'delete from docs where owner = 1',
    'insert into docs select i, 1, 2, i::text, 0 from generate_series(200, 210) i; insert into members values (1, 3)',
    'delete from members; delete from docs where id > 205; insert into members values (1, 1)',
  ]) {
    await site.sql(`begin; ${step}; commit`)
    for (const [i, sub] of users.entries()) await untilSelected(followers[i], sub)
  }
})

test('callers with the same rights share a shape whatever else is in their tokens, others do not', async () => {
  const handle = async (headers, params = docs) => (await site.api.get({ ...params, offset: '-1' }, { headers })).handle.split('-')[0]
  const first = await handle(as(1, { jti: 'a', iat: 1 }))
  assert.equal(await handle(as(1, { jti: 'b', iat: 2, email: 'x@y' })), first)
  assert.notEqual(await handle(as(2)), first)
  assert.notEqual(await handle(as(1, { role: 'app_admin' })), first)
})

test('a caller without policies for him sees nothing, one who bypasses them everything', async () => {
  await site.sql('grant select on docs to anon')
  assert.deepEqual(await followedAs(site.api, {}, docs).then(ids), [])
  const everything = await followedAs(site.api, as(1, { role: 'app_admin' }), docs)
  assert.equal(everything.rows.size, Number((await site.client.query('select count(*) from docs')).rows[0].count))
  await site.sql('revoke select on docs from anon')
  const denied = await site.api.get({ ...docs, offset: '-1' })
  assert.equal(denied.status, 400, denied.text)
})

test('a caller gets the columns that he may select, and may not name others', async () => {
  await site.sql('create table wages (id int primary key, name text, wage int); insert into wages values (1, $$a$$, 5); grant select (id, name) on wages to app')
  const get = (params) => site.api.get({ table: 'wages', offset: '-1', ...params }, { headers: as(1) })
  assert.equal((await get({ columns: 'id,name' })).status, 200)
  for (const params of [{}, { columns: 'id,wage' }, { columns: 'id,name', where: 'wage > 3' }]) {
    const refused = await get(params)
    assert.equal(refused.status, 400, refused.text)
    assert.match(refused.text, /permission denied for column \\"wage\\"/)
  }
})

/** Does what changes rights while a request is held; returns the answer and how long it took from then. */
async function held(headers, params, change) {
  const follower = await followedAs(site.api, headers, params)
  const request = withHeaders(site.api, headers).get({ ...params, offset: follower.offset, handle: follower.handle, live: 'true', cursor: '' })
  await waitFor(async () => (await site.sidecar.metric('shapefeed_live_requests')) > 0, { what: 'the request is held' })
  const began = performance.now()
  await site.sql(change)
  const answer = await request
  return { answer, ms: performance.now() - began, follower }
}

test('changes of policies, rights and roles end held requests within a second', async () => {
  await site.sql('create role team_two; create policy of_two on docs for select to team_two using (team = 2)')
  await site.sql(`create function least_id() returns int stable language sql return 0;
    create function is_new(id int) returns boolean stable language sql return id > least_id();
    create policy is_new on docs as restrictive using (is_new(id))`)
  for (const [what, change, after] of [
    ['a policy is added', 'create policy low on docs for select to app using (id < 10)', 200],
    ['a policy is changed', 'alter policy low on docs using (id < 5)', 200],
    ['a policy is dropped', 'drop policy low on docs', 200],
    ['a role is granted', 'grant team_two to app', 200],
    ['a role is revoked', 'revoke team_two from app', 200],
    ['a policy of an inner table is changed', 'alter policy own on members using (person = auth.uid() and team > 1)', 200],
    ['policies are switched off', 'alter table docs disable row level security', 200],
    ['policies are switched on', 'alter table docs enable row level security', 200],
    ['a right is revoked', 'revoke select on docs from app', 400],
    ['a right is granted', 'grant select on docs to app', 200],
    ['the right to the schema is revoked', 'revoke usage on schema public from public', 400],
    ['the right to the schema is granted', 'grant usage on schema public to public', 200],
    ['a function is replaced that a function of a policy calls', 'create or replace function least_id() returns int stable language sql return 3', 200],
    ['a right to an inner table is revoked', 'revoke select on members from app', 400],
    ['it is granted again', 'grant select on members to app', 200],
  ]) {
    const get = () => site.api.get({ ...docs, offset: '-1' }, { headers: as(1) })
    if ((await get()).status !== 200) {
      await site.sql(change)
      assert.equal((await get()).status, after, what)
      continue
    }
    const { answer, ms, follower } = await held(as(1), docs, change)
    assert.ok(ms < 1000, `${what}: answered after ${ms} ms`)
    assert.equal(answer.status, after === 200 ? 409 : 400, `${what}: ${answer.text}`)
    if (after === 200) assert.notEqual(answer.handle, follower.handle)
    assert.equal((await get()).status, after, what)
    if (after === 200) assert.deepEqual(await followedAs(site.api, as(1), docs).then(ids), await selected(1), what)
  }
})

// The policy costs more than the conditions: Postgres would evaluate these first if nothing kept it from that.
test("what a caller's condition might tell is asked of visible rows only", async () => {
  await site.sql(`create table pay (id int primary key, owner int, salary int); insert into pay values (1, 1, 100), (2, 2, 1000);
    alter table pay enable row level security; grant select on pay to app;
    create policy own on pay using (md5(md5(md5(md5(md5(owner::text))))) = md5(md5(md5(md5(md5(auth.uid()::text))))));
    create table chosen (id int primary key); insert into chosen values (1); grant select on chosen to app`)
  const tricks = [
    '1 / (salary - 1000) < 1',
    "(case when salary = 1000 then 'x' else '1' end)::int = 1",
    '1 / (salary - 1000) <= 1 and id in (select id from chosen)',
    '1 / (salary - 1000) in (select id - 1 from chosen)',
    '(id in (select id from chosen)) is not null or 1 / (salary - 1000) < 1',
  ]
  for (const where of tricks) {
    const follower = await followedAs(site.api, as(1), { table: 'pay', where })
    await site.sql('update pay set salary = salary + 0; insert into pay values (3, 3, 1000); delete from pay where id = 3')
    await site.sql('insert into chosen values (2), (1001); delete from chosen where id > 1')
    await site.sql('update pay set salary = salary + 1 where id = 1')
    await follower.sync()
    await follower.sync()
    await site.sql('update pay set salary = 100 where id = 1')
    await follower.sync()
    const subset = await site.api.get({ table: 'pay', offset: 'now', 'subset[where]': where.includes('select') ? 'id > 0' : where }, { headers: as(1) })
    assert.equal(subset.status, 200, subset.text)
    const own = await site.api.get({ table: 'pay', offset: '-1', where: where.replaceAll('1000', '100') }, { headers: as(1) })
    if (where.startsWith('1 /')) assert.match(own.text, /SQLSTATE 22012/, 'of a visible row the error comes')
  }
})

test('what cannot be maintained is refused by name, and never served without it', async () => {
  await site.sql('create table odd (id int primary key, at timestamptz, n int); grant select on odd to app; alter table odd enable row level security')
  for (const [using, why] of [
    ['at > now()', /policy \\"p\\" cannot be maintained: .*now\(\) changes/],
    ['n > random()', /policy \\"p\\" cannot be maintained: .*random\(\) is volatile/],
    ['n in (select count(*) from members)', /policy \\"p\\" cannot be maintained: .*count\(\)/],
    ['id in (select id from odd)', /infinite recursion detected in policy for relation/],
  ]) {
    await site.sql(`drop policy if exists p on odd; create policy p on odd using (${using})`)
    const refused = await site.api.get({ table: 'odd', offset: '-1' }, { headers: as(1) })
    assert.equal(refused.status, 400, refused.text)
    assert.match(refused.text, why)
  }
})
