// A right begins when it is given: what happened before is not told to those who have it only now.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ok, served, waitFor } from '../lib/index.mjs'
import { as, convention, environment, followedAs, withHeaders } from './setup.mjs'

const site = served({
  schema: `${convention}
    create role team; create role keeper; create role bystander;
    create schema notes; grant usage on schema notes to app_admin, bystander;
    create table notes.t (id int primary key, owner int, word text);
    grant select on notes.t to app_admin, bystander;
    call shapefeed.track('notes.t');`,
  env: { ...environment, SHAPEFEED_ROLES: 'app,app_admin,bystander' },
})

const params = { table: 'notes.t' }
const admin = () => as(1, { role: 'app_admin' })
const bystander = () => as(1, { role: 'bystander' })
let words = 0

/** What somebody does whom nobody but an administrator sees; returns where the log was before, and the word. */
async function something() {
  const { handle, offset } = await followedAs(site.api, admin(), params)
  const word = `hidden${(words += 1)}`
  await site.sql(`insert into notes.t values (100, 5, '${word}')`)
  await site.sql('update notes.t set owner = 6 where id = 100')
  await site.sql('delete from notes.t where id = 100')
  await followedAs(site.api, admin(), params)
  return { pin: handle.split('-')[1], offset, word }
}

/** An answer that is none of the moment in which the sequencer has not looked yet. */
async function settled(get) {
  let answer
  await waitFor(async () => (answer = await get()).status !== 503, { what: 'an answer' })
  return answer
}

/** A caller asks with a good handle of the shape, but from a place in its past. */
async function tries(headers, past, of = params) {
  const { get } = withHeaders(site.api, headers)
  const now = ok(await get({ ...of, offset: '-1' }))
  const handle = `${now.handle.split('-')[0]}-${past.pin}-0`
  const requests = [{ offset: past.offset, handle }, { offset: '0_0', handle }, { offset: past.offset, handle: now.handle }, { offset: past.offset, handle, live: 'true', cursor: '' }]
  for (const request of requests) {
    const answer = await settled(() => get({ ...of, ...request }))
    assert.ok(!answer.text.includes(past.word), `LEAK: ${answer.text}`)
    if (request.handle === handle) assert.equal(answer.status, 409, answer.text)
  }
}

/** Those whom a change does not concern go on with what they have. */
async function undisturbed(change) {
  const follower = await followedAs(site.api, bystander(), params)
  await change()
  await site.sql("insert into notes.t values (200, 7, 'x') on conflict (id) do update set owner = notes.t.owner + 1")
  await follower.until(({ rows }) => rows.size > 0)
  await follower.sync()
}

const gives = [
  ['a right to the table', 'revoke all on notes.t from app; grant usage on schema notes to app', 'grant select on notes.t to app'],
  ['a right to a column', 'revoke all on notes.t from app; grant select (id, owner) on notes.t to app', 'grant select (word) on notes.t to app'],
  ['a right to the schema', 'revoke usage on schema notes from app', 'grant usage on schema notes to app'],
  ['a policy', 'alter table notes.t enable row level security; create policy all_of on notes.t to bystander using (true)', 'create policy more on notes.t for select to app using (true)'],
  ['another policy', 'alter policy more on notes.t using (owner = 1)', 'alter policy more on notes.t using (owner > 0)'],
  ['a restrictive policy less', 'create policy less on notes.t as restrictive to app using (owner < 3)', 'drop policy less on notes.t'],
  ['a role', 'drop policy more on notes.t; create policy of_team on notes.t to team using (true)', 'grant team to app'],
  ['what a role of its has', 'alter policy of_team on notes.t using (false)', 'alter policy of_team on notes.t using (true)'],
  ['BYPASSRLS', 'drop policy of_team on notes.t', 'alter role app bypassrls'],
]

test('a right that is given says nothing of what happened before, and leaves others alone', async () => {
  for (const [what, before, give] of gives) {
    await site.sql(before)
    await settled(() => site.api.get({ ...params, offset: '-1' }, { headers: as(1) }))
    const past = await something()
    await undisturbed(() => site.sql(give))
    await tries(as(1), past).catch((error) => { throw new Error(`${what}: ${error.message}`, { cause: error }) })
    const follower = await followedAs(site.api, as(1), params)
    await site.sql("insert into notes.t values (300, 1, 'seen')")
    await follower.until(({ rows }) => [...rows.values()].some(({ word }) => word === 'seen'))
    await site.sql('delete from notes.t where id = 300')
  }
  await site.sql('alter role app nobypassrls')
})

test('row-level security that is switched off, and an owner, have no past either', async () => {
  await site.sql('create policy none on notes.t to app using (false)')
  for (const [give, back] of [
    ['alter table notes.t disable row level security', 'alter table notes.t enable row level security'],
    ['alter table notes.t owner to app', 'alter table notes.t owner to postgres'],
  ]) {
    const past = await something()
    await site.sql(give)
    await tries(as(1), past)
    await site.sql(back)
  }
})

test('what was taken away and is given again has a gap', async () => {
  await site.sql('drop policy none on notes.t; create policy own on notes.t to app using (owner > 0); grant select on notes.t to app')
  for (const [take, give] of [
    ['revoke select on notes.t from app', 'grant select on notes.t to app'],
    ['alter policy own on notes.t using (owner = 1)', 'alter policy own on notes.t using (owner > 0)'],
  ]) {
    const follower = await followedAs(site.api, as(1), params)
    await site.sql(take)
    const past = await something()
    await site.sql(give)
    const place = { ...params, offset: follower.offset, handle: follower.handle }
    const answer = await settled(() => site.api.get(place, { headers: as(1) }))
    assert.equal(answer.status, 409, answer.text)
    assert.ok(!answer.text.includes(past.word))
  }
})

test('also what no event trigger tells of', async () => {
  await site.sql('alter event trigger shapefeed_ddl_command_end disable; revoke select on notes.t from app')
  const past = await something()
  await site.sql('grant select on notes.t to app')
  await settled(() => site.api.get({ ...params, offset: '-1' }, { headers: as(1) }))
  await tries(as(1), past)
  await site.sql('alter event trigger shapefeed_ddl_command_end enable always')
})

test('changes(), in SQL, begins where the right does', async () => {
  await site.sql('drop policy own on notes.t; alter table notes.t disable row level security; revoke select on notes.t from app')
  const past = await something()
  await site.sql('grant select on notes.t to app')
  const asked = (from) => `begin; set local role app; select changes::text from shapefeed.changes('notes.t', from_position => ${from}) changes; rollback`
  let text
  await waitFor(async () => {
    text = await site.sql(asked('null')).catch((error) => (/not here yet/.test(error.message) ? undefined : Promise.reject(error)))
    return text !== undefined
  }, { what: 'the right is in the log' })
  assert.ok(!String(text).includes(past.word), String(text))
  await assert.rejects(site.sql(asked(past.pin)), /rights/)
})
