// Shapes in PGlite: what is in the local database is what the shapes have, and it comes cheaply.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served, waitFor } from '../lib/index.mjs'
import { openClient } from './lib/client.mjs'

const site = served({
  schema: `create table items (id int primary key, list int not null, name text, done boolean, amount numeric, made timestamptz, doc jsonb, tags text[]);
    insert into items select i, i % 10, 'item ' || i, i % 2 = 0, i / 3.0, '2026-01-01'::timestamptz + i * interval '1 minute',
      jsonb_build_object('i', i, 'text', 'a"b'), array['x', 'y ' || i] from generate_series(1, 2000) i;
    call shapefeed.track('items')`,
})

test('every value of every type arrives as it is', async () => {
  const client = await openClient(site)
  await client.follow({ table: 'items' })
  await client.equals('items')
  await site.sql(`update items set name = null, doc = '[1, null]', tags = '{}' where id % 7 = 0; delete from items where id % 11 = 0;
    insert into items values (5001, 1, 'new', null, 1e30, 'infinity', 'null', null)`)
  await client.equals('items')
  await client.close()
})
