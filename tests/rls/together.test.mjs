// A right that is taken away by the transaction that writes what it was the right to: a commit shows a moment before other
// sessions are told of what it did to rights. A writer on a busy machine is often interrupted in that moment.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ok, scale, served } from '../lib/index.mjs'
import { as, convention, environment, followedAs, withHeaders } from './setup.mjs'

const site = served({
  schema: `${convention}
    create table t (id serial primary key, owner int);
    grant select on t to app;
    alter table t enable row level security;
    create policy own on t using (owner = auth.uid());
    call shapefeed.track('t');`,
  env: { ...environment, SHAPEFEED_ROLES: 'app' },
})
const rounds = 10 * scale

/** Writes with one hand and takes away with the other, while a client listens who has the right until then. */
async function round(give, take) {
  await site.sql(give)
  const follower = await followedAs(site.api, as(1), { table: 't' })
  const { get } = withHeaders(site.api, as(1))
  const place = { table: 't', offset: follower.offset, handle: follower.handle }
  const held = [1, 2].map(() => get({ ...place, live: 'true', cursor: '' }))
  // Relations that the transaction has made are looked at between the two.
  const many = Array.from({ length: 40 }, (_, i) => `create temp table many${i} () on commit drop`).join('; ')
  await site.client.query(`begin; ${many}; insert into t (owner) values (99); ${take}; commit`)
  const answers = [...await Promise.all(held), await get(place)]
  for (const answer of answers) {
    assert.ok(!answer.text.includes('"99"'), `LEAK: ${answer.text}`)
    assert.ok([400, 409].includes(answer.status) || ok(answer).operations.length === 0, answer.text)
  }
}

test('what a transaction writes is for those who have the right after it', async () => {
  await site.client.query('set client_min_messages = error; do $$ begin for i in 1..2000 loop execute format($f$create table part%s ()$f$, i); end loop; end $$')
  for (let i = 0; i < rounds; i += 1) {
    await round('alter role app bypassrls', 'alter role app nobypassrls')
    await round('create policy every on t using (true)', 'drop policy every on t')
  }
})
