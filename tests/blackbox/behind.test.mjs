// Requests that are far behind share one pass over the log, and get just what each of them would have read by itself.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `
    create table items (id int primary key, company_id int, n int, title text);
    insert into items select i, i % 5, 1, 'title ' || i from generate_series(1, 50) i;
    create table bare (a int, b text);`,
  env: { SHAPEFEED_CHUNK_BYTES: '3000', SHAPEFEED_SHARED_READ_BEHIND: '0' },
})

const byItself = () => site.another({ env: { SHAPEFEED_SHARED_READ_BEHIND: `${2n ** 62n}` } })
const passes = () => site.sidecar.metric('shapefeed_shared_passes_total')

const shapes = [
  { table: 'items' },
  ...[0, 1, 2, 3, 4].map((k) => ({ table: 'items', where: `company_id = ${k}` })),
  { table: 'items', where: 'company_id = 1', replica: 'full' },
  { table: 'items', where: "title like '%7%' and n > 2", columns: 'id,n' },
  { table: 'items', where: 'company_id = 77' },
  { table: 'bare', where: 'a > 1' },
]

const work = `do $$ begin
  for i in 1..300 loop
    update items set n = n + 1, title = 'title ' || i where id = 1 + i % 50;
    if i % 7 = 0 then update items set company_id = (company_id + 1) % 5 where id % 9 = i % 9; end if;
    if i % 11 = 0 then delete from items where id = 1 + i % 13; insert into items values (1000 + i, i % 5, 5, 'new 7'); end if;
    insert into bare values (i % 3, 'b' || i % 4);
    if i % 5 = 0 then delete from bare where a = 2 and b = 'b1'; end if;
    commit;
  end loop;
end $$`

/** Answers of one sidecar from a place to the end of the log; what tells of the end apart. */
async function walk(api, params, offset) {
  const answers = []
  for (let done = false; !done;) {
    const answer = await api.get({ ...params, offset })
    assert.equal(answer.status, 200, answer.text)
    done = answer.upToDate
    offset = answer.offset
    answers.push({ offset: answer.operations.length ? offset : '', operations: answer.operations, text: done ? '' : answer.text })
  }
  return answers
}

test('the same chunks as read by itself, for many shapes at once', async () => {
  const alone = await byItself()
  const followers = await Promise.all(shapes.map((shape) => site.api.follow(shape)))
  const starts = followers.map(({ handle, offset }) => ({ handle, offset }))
  await site.sql(work)
  await site.sql("update items set title = 'the end' where id = 50")
  await followers[0].until(({ rows }) => [...rows.values()].some(({ title }) => title === 'the end'))
  const before = await passes()
  const all = (api) => Promise.all(shapes.map((shape, i) => walk(api, { ...shape, handle: starts[i].handle }, starts[i].offset)))
  const together = await all(site.api)
  const made = await passes() - before
  const each = await all(alone.api)
  assert.deepEqual(together, each)
  const requests = together.reduce((sum, answers) => sum + answers.length, 0)
  assert.ok(together[0].length > 5 && together.some((answers) => answers.every(({ operations }) => !operations.length)), 'long ones and empty ones')
  assert.ok(made > 0 && made < requests / 2, `${made} passes for ${requests} requests`)
  assert.equal(await alone.sidecar.metric('shapefeed_shared_passes_total'), 0)
  // From all of these places at once, some of them inside a transaction.
  const inside = together[0].flatMap(({ offset }) => offset || [])
  assert.ok(inside.some((offset) => !offset.endsWith('_0')), 'a chunk ends inside a transaction')
  const params = { ...shapes[0], handle: starts[0].handle }
  const onwards = (api) => Promise.all(inside.map((offset) => walk(api, params, offset)))
  assert.deepEqual(await onwards(site.api), await onwards(alone.api))
})

test('clients at one place join in one pass', async () => {
  const shape = { table: 'items', where: 'company_id = 2' }
  const { handle, offset } = await site.api.follow(shape)
  await site.sql('update items set n = n + 1')
  await waitFor(async () => (await site.api.get({ ...shape, handle, offset })).operations.length > 0, { what: 'the change is there' })
  const before = await passes()
  const answers = await Promise.all(Array.from({ length: 30 }, () => site.api.get({ ...shape, handle, offset })))
  assert.deepEqual([...new Set(answers.map(({ operations }) => JSON.stringify(operations)))].length, 1)
  assert.ok(answers[0].operations.length > 0)
  const made = await passes() - before
  assert.ok(made >= 1 && made <= 5, `${made} passes`)
})

test('a where clause that fails ends what it concerns, and nothing else', async () => {
  const alone = await byItself()
  await site.sql('create table parts (id int primary key, n int); insert into parts values (1, 1)')
  const [failing, other] = [{ table: 'parts', where: '10 / n > 1' }, { table: 'parts', where: 'n < 100' }]
  const [a, b] = [await site.api.follow(failing), await site.api.follow(other)]
  await site.sql('insert into parts values (2, 0)')
  const from = ({ handle, offset }) => ({ handle, offset })
  await waitFor(async () => (await alone.api.get({ ...other, ...from(b) })).operations.length === 1, { what: 'the row is there' })
  const [refused, served] = await Promise.all([site.api.get({ ...failing, ...from(a) }), site.api.get({ ...other, ...from(b) })])
  const expected = await alone.api.get({ ...failing, ...from(a) })
  assert.equal(expected.status, 400)
  assert.deepEqual([refused.status, refused.text], [expected.status, expected.text])
  assert.deepEqual(served.operations.map(({ value }) => value.id), ['2'])
})
