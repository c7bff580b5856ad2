// Values of all types, names of all kinds, keys and tables of all kinds; and texts that would like to be SQL.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Follower, served } from '../lib/index.mjs'
import { asPrinted, columnOf, ownTypes, printedRows, rowCount, types, typesRows, typesTable } from '../lib/types.mjs'
import { withHeaders } from '../rls/setup.mjs'
import { Writer, as, convention, environment, insert, remove, update } from './setup.mjs'

const evil = `x"; drop table victims; --'$1`
const site = served({
  schema: `${convention} ${ownTypes} ${typesTable('every')} ${typesRows('every', 1)} ${typesTable('copies')}
    create schema "Schön.e""s";
    create table "Schön.e""s"."Tabelle ü" ("Schlüssel" text, "order" int, "${evil.replaceAll('"', '""')}" text, primary key ("order", "Schlüssel"));
    create table victims (id int primary key, text text);
    create table parts (id int, region text, n int, primary key (region, id)) partition by list (region);
    create table parts_a partition of parts for values in ('a');
    create table parts_b partition of parts for values in ('b');
    create table parents (id int primary key, n int); create table children (primary key (id)) inherits (parents);
    create table keyless (n int, text text);
    create collation fold (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create table folded (id text collate fold primary key, n int);
    create domain small as int check (value < 10);
    create table typed (id small primary key, d small, e small[]);
    create view viewed as select * from victims;
    do $$ declare t regclass; begin
      foreach t in array array['copies', '"Schön.e""s"."Tabelle ü"', 'victims', 'parts', 'parents', 'children', 'keyless', 'folded', 'typed']::regclass[] loop
        execute format('call shapefeed.allow_writes(%L)', t);
        execute format('grant select, insert, update, delete on %s to app', t);
      end loop;
    end $$;
    grant usage on schema "Schön.e""s" to app; grant select on every to app;`,
  env: environment,
})
const writer = () => new Writer(site.sidecar.url, as(1))
const query = async (text) => (await site.client.query(text)).rows

test('every type: what a shape shows can be written, and is the same', async () => {
  const follower = new Follower(withHeaders(site.api, as(1)), { table: 'every' })
  await follower.sync()
  const rows = follower.values
  assert.equal(rows.length, rowCount)
  const printed = await printedRows(site.client, 'every', 1, 1 + rowCount)
  const check = async (what) => {
    const copies = await printedRows(site.client, 'copies', 1, 1 + rowCount)
    for (const [n, row] of copies.entries()) {
      for (const [i, type] of types.entries()) assert.equal(asPrinted(type, row[i]), asPrinted(type, printed[n][i]), `${what}: ${type[0]}`)
    }
  }
  const client = writer()
  await client.apply(...rows.map((row) => insert('copies', row)))
  await check('insert')
  const nothing = Object.fromEntries(types.map((_, i) => [columnOf(i), null]))
  const whole = ({ id, ...rest }) => [{ id }, rest]
  await client.apply(...rows.map((row) => update('copies', { id: row.id }, nothing)))
  await client.apply(...rows.map((row) => update('copies', ...whole(row), nothing)))
  await check('update')
  await client.apply(...rows.map((row) => update('copies', { id: row.id }, {}, whole(row)[1])))
  await client.apply(...rows.map((row) => insert('copies', row))) // all there, and all the same
  await client.apply(...rows.map((row) => remove('copies', { id: row.id }, whole(row)[1])))
})

test('numbers, booleans, objects and arrays are taken as they are written', async () => {
  const text = `[{"operation":"insert","table":"copies","value":{"id":5000,"${columnOf(5)}":12345678901234567890.10,"${columnOf(11)}":true,"${columnOf(2)}":9007199254740993}}]`
  const client = writer()
  const answer = await fetch(`${site.sidecar.url}/v1/write`, { method: 'POST', headers: { 'content-type': 'application/json', ...as(1) },
    body: `{"client_id":"${client.id}","transactions":[{"seq":1,"operations":${text}}]}` })
  assert.equal((await answer.json()).results[0].status, 'applied')
  assert.deepEqual(await query(`select ${columnOf(5)}::text as a, ${columnOf(11)}::text as b, ${columnOf(2)}::text as c from copies where id = 5000`),
    [{ a: '12345678901234567890.10', b: 'true', c: '9007199254740993' }])
})

test('names of any kind, and a key of several columns', async () => {
  const client = writer()
  const table = '"Schön.e""s"."Tabelle ü"'
  const key = { Schlüssel: 'ä"\'', order: 1 }
  await client.apply(insert(table, { ...key, [evil]: '1' }))
  await client.apply(update(table, key, { [evil]: '2' }, { [evil]: '1' }))
  await client.apply(insert(table, { ...key, [evil]: '2' }))
  assert.deepEqual(await query(`select * from ${table}`), [{ ...key, [evil]: '2' }])
  await client.refuse('22023', remove(table, { Schlüssel: 'ä"\'' }))
  await client.apply(remove(table, key))
})

test('text that would like to be SQL is text, a name that would is none', async () => {
  const client = writer()
  await client.apply(insert('victims', { id: 1, text: evil }), update('victims', { id: 1 }, { text: `${evil}$$; rollback` }, { text: evil }))
  assert.deepEqual(await query('select text from victims'), [{ text: `${evil}$$; rollback` }])
  for (const name of [evil, 'id = 1 or true --', 'text" = (select 1) --', 'ctid', 'tableoid', 'xmin', 'victims', '*', '', '"text"', 'TEXT']) {
    await client.refuse('42703', insert('victims', { id: 2, [name]: '1' }))
    await client.refuse('42703', update('victims', { id: 1 }, { [name]: '1' }))
    await client.refuse('42703', remove('victims', { [name]: '1' }))
    await client.refuse('42703', remove('victims', { id: 1 }, { [name]: '1' }))
  }
  for (const key of ['1 or true', "1'; delete from victims; --", '(select 1)', '$1']) await client.refuse('22P02', remove('victims', { id: key }))
  for (const table of ['"victims; drop table victims"', '"public.victims"', '"victims where true --"']) await client.refuse('42P01', remove(table, { id: 1 }))
  await client.refuse('42501', insert('viewed', { id: 2 }))
  assert.equal((await query('select * from victims')).length, 1)
})

test("a claim with a setting's name changes no setting", async () => {
  const client = new Writer(site.sidecar.url, as(1, { 'x; reset role': '1', role_: 'postgres', 'a.b': 'c' }))
  await client.apply(insert('keyless', { n: 1 }))
  const { rows } = await site.client.query('select role, subject from shapefeed.write_client where id = $1', [client.id])
  assert.deepEqual(rows, [{ role: 'app', subject: '1' }])
})

test('partitioned tables, and tables that others inherit from', async () => {
  const client = writer()
  await client.apply(insert('parts', { id: 1, region: 'a', n: 1 }))
  await client.apply(update('parts', { id: 1, region: 'a' }, { region: 'b' }))
  assert.deepEqual(await query('select tableoid::regclass::text as t, * from parts'), [{ t: 'parts_b', id: 1, region: 'b', n: 1 }])
  await client.refuse('23514', insert('parts', { id: 2, region: 'c' }))
  await client.refuse('42501', insert('parts_a', { id: 2, region: 'a' }))
  await client.apply(remove('parts', { id: 1, region: 'b' }))
  await client.apply(insert('parents', { id: 1, n: 1 }), insert('children', { id: 1, n: 2 }))
  await client.apply(update('parents', { id: 1 }, { n: 3 }))
  assert.deepEqual(await query('select tableoid::regclass::text as t, n from parents order by n'), [{ t: 'children', n: 2 }, { t: 'parents', n: 3 }])
  await client.apply(remove('parents', { id: 1 }))
  assert.deepEqual(await query('select n from children'), [{ n: 2 }])
})

test('without a key rows can be inserted only; keys are compared as the key does; domains are checked', async () => {
  const client = writer()
  await client.apply(insert('keyless', { n: 1, text: 'a' }), insert('keyless', { n: 1, text: 'a' }), insert('keyless', {}))
  await client.refuse('0A000', remove('keyless', { n: 1 }))
  await client.refuse('0A000', update('keyless', {}, { n: 1 }))
  await client.apply(insert('folded', { id: 'Ann', n: 1 }))
  await client.refuse('23505', insert('folded', { id: 'ANN', n: 1 }))
  await client.apply(update('folded', { id: 'ANN' }, { n: 2 }))
  assert.deepEqual(await query('select * from folded'), [{ id: 'Ann', n: 2 }])
  await client.apply(insert('typed', { id: 1, d: 2, e: '{3,4}' }))
  await client.apply(update('typed', { id: 1 }, { d: 9, e: [1, 2].join(',').replace(/.*/, '{$&}') }, { d: 2, e: '{3,4}' }))
  for (const value of [{ d: 10 }, { e: '{10}' }]) await client.refuse('23514', update('typed', { id: 1 }, value))
})

test('a table that changes is written as it is now', async () => {
  const client = writer()
  await client.apply(insert('victims', { id: 10, text: 'a' }))
  await site.sql('drop view viewed; alter table victims add column more int, alter column id type bigint; alter table victims rename column text to said')
  await client.refuse('42703', update('victims', { id: 10 }, { text: 'b' }))
  await client.apply(update('victims', { id: 10 }, { said: 'b', more: 1 }), insert('victims', { id: '99999999999' }))
  await site.sql('alter table victims rename to renamed')
  await client.refuse('42P01', remove('victims', { id: 10 }))
  await client.apply(remove('renamed', { id: 10 }))
  await site.sql('drop table renamed; create table victims (id int primary key); grant all on victims to app')
  await client.refuse('42501', insert('victims', { id: 1 }))
  assert.deepEqual(await query("select count(*)::int as n from shapefeed.writable where not exists (select from pg_class where oid = relid)"), [{ n: 0 }])
})
