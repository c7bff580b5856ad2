// Functions that subqueries call: a shape is over when one of them is replaced, whoever follows it and how.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served, waitFor } from '../lib/index.mjs'
import { followed } from './setup.mjs'

const named = (name, expression) =>
  `create or replace function ${name}(n int) returns int language sql immutable set search_path = pg_catalog as 'select ${expression}';`

const site = served({
  schema: `create table items (id int primary key, tag int);
    create index on items (tag);
    create table tags (id int primary key, n int not null);
    insert into items select i, i from generate_series(1, 9) i;
    insert into tags values (1, 1), (2, 2), (3, 3);
    ${named('given', 'n')} ${named('asked', 'n')} ${named('unused', 'n')}`,
  conf: ["shapefeed.allowed_functions='public.given,public.asked,public.unused'"],
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '5000' },
})

const shapes = {
  output: { table: 'items', where: 'tag in (select given(n) from tags)' },
  condition: { table: 'items', where: 'tag in (select n from tags where asked(n) < 3)' },
  plain: { table: 'items', where: 'tag in (select n from tags where n < 3)' },
}
const rows = (follower) => follower.values.map(({ id }) => id).join()

test('a function of a subquery that is replaced ends the shapes that call it, and no others', async () => {
  const followers = {}
  for (const [name, shape] of Object.entries(shapes)) followers[name] = await followed(site, shape)
  assert.deepEqual(Object.values(followers).map(rows), ['1,2,3', '1,2', '1,2'])
  await site.sql('insert into tags values (4, 4)')
  await followers.output.until(({ rows }) => rows.size === 4) // all are attached
  for (const name of ['condition', 'plain']) await followers[name].sync()
  const held = ['condition', 'plain'].map((name) => followers[name].live())
  const { params, handle, offset } = followers.output
  const live = site.api.get({ ...params, handle, offset, live: 'true' })
  await site.sql(`${named('given', '-n')} update tags set n = 5 where id = 1`)
  const { status, handle: next } = await live
  assert.equal(status, 409)
  assert.notEqual(next, handle)
  await Promise.all(held)
  await waitFor(async () => {
    const answer = await site.api.get({ ...shapes.output, offset: '-1' })
    return answer.status === 200 && answer.operations.length === 0 && answer.handle.split('-')[0] !== handle.split('-')[0]
  }, { what: 'the shape is another one, which lets no row in' })
})

test('a client that comes back after that is told so, and a function that nobody calls is nobody\'s concern', async () => {
  const before = {}
  for (const [name, shape] of Object.entries(shapes)) before[name] = await followed(site, shape)
  await site.sql(`${named('asked', 'n - 2')} ${named('unused', '0')} insert into items values (10, 2)`)
  const { api } = await site.another()
  const answers = {}
  for (const [name, { params, handle, offset }] of Object.entries(before)) {
    answers[name] = await waitFor(async () => {
      const answer = await api.get({ ...params, handle, offset })
      return answer.status !== 503 && answer
    }, { what: 'the sidecar has an answer' })
  }
  assert.deepEqual(Object.values(answers).map(({ status }) => status), [200, 409, 200])
  const begun = await followed(site, shapes.condition, api)
  const { rows: truth } = await site.client.query(`select id from items where ${shapes.condition.where} order by id::text collate "C"`)
  assert.equal(rows(begun), truth.map(({ id }) => id).join())
})
