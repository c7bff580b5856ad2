// A where clause that raises an error for a row, or takes too long, once clients follow it: its shape ends with 400, no other notices.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { send, served, waitFor } from '../lib/index.mjs'

const SLEEP_S = 60

const site = served({
  schema: `
    create table items (id int primary key, n int); insert into items values (1, 1), (2, 2);
    create function slow(n int) returns bool language plpgsql immutable as
      $$ begin if n = 0 then perform pg_sleep(${SLEEP_S}); end if; return true; end $$;`,
  conf: ["shapefeed.allowed_functions='public.slow'"],
})

const metric = async (name) => Number(new RegExp(`\n${name} (\\d+)\n`).exec((await send(site.sidecar.url, '/metrics')).text)[1])

/** Live requests that are held, one for each where clause. */
async function hold(clauses) {
  const followers = await Promise.all(clauses.map((where) => site.api.follow({ table: 'items', where })))
  const before = await metric('shapefeed_live_requests')
  const held = followers.map(({ params, handle, offset }) => ({ handle, answer: site.api.get({ ...params, handle, offset, live: 'true' }) }))
  await waitFor(async () => await metric('shapefeed_live_requests') === before + clauses.length, { what: 'the requests are held' })
  return held
}

/** Of held requests the first is answered with 400 that says why, also later; the others with this operation. */
async function assertEnds([ended, ...others], where, why, operation) {
  const answer = await ended.answer
  assert.equal(answer.status, 400, answer.text)
  assert.match(JSON.stringify(answer.json), why)
  const again = await site.api.get({ table: 'items', where, handle: ended.handle, offset: '0_0', live: 'true' })
  assert.equal(again.status, 400, again.text)
  for (const { answer } of others) {
    const { status, text, operations } = await answer
    assert.equal(status, 200, text)
    assert.deepEqual(operations.map(({ headers }) => headers.operation), [operation])
  }
}

test('a division by zero after an update', async () => {
  const where = '10 / n > 0'
  const held = await hold([where, '10 / (n + 1) > 0', 'id = 1', 'n < 2'])
  await site.sql('update items set n = 0 where id = 1')
  await assertEnds(held, where, /evaluation failed with SQLSTATE 22012/, 'update')
  await site.sql('update items set n = 1 where id = 1')
})

test('one that takes too long', async () => {
  const held = await hold(['slow(n)', '10 / (n + 1) > 0', 'id = 2', 'n < 3'])
  const began = Date.now()
  await site.sql('update items set n = 0 where id = 2')
  await assertEnds(held, 'slow(n)', /takes longer than shapefeed.clause_time_limit/, 'update')
  assert.ok(Date.now() - began < SLEEP_S * 1000 / 2, 'nobody waited for it')
})
