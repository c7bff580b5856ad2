// POST /v1/write line by line: docs/writing.md.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Follower, served, waitFor } from '../lib/index.mjs'
import { withHeaders } from '../rls/setup.mjs'
import { Writer, as, convention, environment, insert, post, remove, update } from './setup.mjs'

const site = served({
  schema: `${convention}
    create table notes (id int primary key, owner int not null default auth.uid(), text text, done bool not null default false);
    create table closed (id int primary key);
    alter table notes enable row level security;
    create policy own on notes using (owner = auth.uid());
    grant select, insert, update, delete on notes, closed to app;
    call shapefeed.track('notes');
    call shapefeed.allow_writes('notes');`,
  env: environment,
})
const writer = (sub = 1, options) => new Writer(site.sidecar.url, as(sub), options)
const rows = async () => (await site.client.query('select id, owner, text, done from notes order by id')).rows

test('operations of a transaction are applied together, with an id and a position that clients see', async () => {
  const follower = new Follower(withHeaders(site.api, as(1)), { table: 'notes' })
  await follower.sync()
  const client = writer()
  const result = await client.apply(insert('notes', { id: 1, text: 'a' }), insert('public.notes', { id: '2', text: null }))
  assert.match(result.txid, /^\d+$/)
  assert.match(result.lsn, /^\d+$/)
  assert.deepEqual(await rows(), [{ id: 1, owner: 1, text: 'a', done: false }, { id: 2, owner: 1, text: null, done: false }])
  await client.apply(update('notes', { id: 1 }, { done: true }), remove('notes', { id: 2 }))
  assert.deepEqual(await rows(), [{ id: 1, owner: 1, text: 'a', done: true }])
})
