// What happens when two write the same, and when the database says no: the table in docs/writing.md.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Follower, root, served, waitFor } from '../lib/index.mjs'
import { example } from '../membership/setup.mjs'
import { withHeaders } from '../rls/setup.mjs'
import { Writer, as, convention, environment, insert, remove, update } from './setup.mjs'

const writes = readFileSync(join(root, 'sql/examples/foundation-writes.sql'), 'utf8')
const site = served({
  schema: `${convention}${example}${writes}
    grant select, insert, update, delete on users, companies, company_members, user_groups, user_group_members, workspaces, folders to app;
    insert into users select i, 'user ' || i from generate_series(1, 9) i;
    insert into companies select i, 'company ' || i from generate_series(1, 2) i;
    insert into company_members values (1, 1), (1, 2), (2, 3);
    insert into workspaces values (1, 1, 'w1'), (2, 2, 'w2');
    insert into folders values (1, 1, null, 'a'), (2, 1, null, 'b'), (3, 1, 1, 'a/c'), (4, 2, null, 'd');
    create table places (id int primary key, room int, during int4range, size int check (size > 0), name text not null, code text unique,
      double int generated always as (size * 2) stored, n int generated always as identity,
      exclude using gist (during with &&));
    create table nodes (id int primary key, next int references nodes deferrable initially deferred);
    create table judged (id int primary key, text text);
    create function judge() returns trigger language plpgsql as $$
      begin
        if new.text = 'custom' then raise exception using errcode = 'MY001', message = 'not that', detail = 'a secret', hint = 'another secret'; end if;
        if new.text = 'internal' then raise exception using errcode = 'XX000', message = 'oops'; end if;
        if new.text = 'skipped' then return null; end if;
        if new.text = 'become' then execute 'reset role'; end if;
        return new;
      end $$;
    create trigger judge before insert or update on judged for each row execute function judge();
    create function again() returns trigger language plpgsql as $$
      begin
        if new.text = 'late' then set constraints all deferred; update judged set text = 'later' where id = new.id; end if;
        if new.text = 'later' then raise exception using errcode = 'MY002', message = 'at the commit'; end if;
        if new.text = 'who' then raise exception using errcode = 'MY003', message = current_user || ' ' || auth.uid(); end if;
        if new.text = 'slow' then set constraints all deferred; update judged set text = 'slower' where id = new.id; end if;
        if new.text = 'slower' then perform pg_sleep(60); end if;
        return null;
      end $$;
    create constraint trigger again after insert or update on judged deferrable initially deferred for each row execute function again();
    grant select, insert, update, delete on places, nodes, judged to app;
    do $$ declare t regclass; begin
      foreach t in array '{places,nodes,judged}'::regclass[] loop execute format('call shapefeed.allow_writes(%L)', t); end loop;
    end $$;`,
  env: environment,
})
const writer = (sub = 1) => new Writer(site.sidecar.url, as(sub))
const query = async (text) => (await site.client.query(text)).rows

test('each constraint rejects with its name, and no values of rows', async () => {
  const client = writer()
  const cases = [
    ['23514', 'places_size_check', insert('places', { id: 1, size: 0, name: 'a' })],
    ['23502', undefined, insert('places', { id: 1 })],
    ['22P02', undefined, insert('places', { id: 'one', name: 'a' })],
    ['22003', undefined, insert('places', { id: '99999999999', name: 'a' })],
    ['428C9', undefined, insert('places', { id: 1, name: 'a', double: 4 })],
    ['428C9', undefined, insert('places', { id: 1, name: 'a', n: 4 })],
    ['42703', undefined, insert('places', { id: 1, name: 'a', nothing: 4 })],
    ['23503', 'folders_workspace_id_fkey', insert('workspaces', { id: 9, company_id: 1, name: 'x' }), insert('folders', { id: 9, workspace_id: 9, name: 'x' }), remove('workspaces', { id: 9 }), insert('folders', { id: 10, workspace_id: 9, name: 'x' })],
    ['23503', 'nodes_next_fkey', insert('nodes', { id: 1, next: 2 })],
    ['22023', undefined, update('places', {}, { name: 'x' })],
    ['22023', undefined, update('places', { id: 1, name: 'x' }, { name: 'x' })],
  ]
  for (const [sqlstate, constraint, ...operations] of cases) {
    const result = await client.write(...operations)
    assert.equal(result.status, 'rejected', JSON.stringify(operations))
    if (sqlstate === '23503' && constraint.startsWith('folders')) {
      assert.ok(['23503', '42501'].includes(result.sqlstate), JSON.stringify(result))
      continue
    }
    assert.deepEqual([result.sqlstate, result.constraint], [sqlstate, constraint], JSON.stringify(result))
    assert.equal(result.operation, sqlstate === '23503' ? undefined : operations.length - 1)
  }
  await client.apply(insert('places', { id: 1, name: 'a', code: 'c', during: '[1,5)', size: 2 }))
  const unique = await client.refuse('23505', insert('places', { id: 2, name: 'a', code: 'c' }))
  assert.equal(unique.constraint, 'places_code_key')
  const excluded = await client.refuse('23P01', insert('places', { id: 2, name: 'a', during: '[4,9)' }))
  assert.equal(excluded.constraint, 'places_during_excl')
  for (const result of [unique, excluded]) assert.doesNotMatch(JSON.stringify(result), /=|\[/)
  assert.deepEqual(await query('select id, double from places'), [{ id: 1, double: 4 }])
})

test('constraints that are deferred are judged at the end of the transaction', async () => {
  const client = writer()
  await client.apply(insert('nodes', { id: 10, next: 11 }), insert('nodes', { id: 11, next: 10 }))
  const refused = await client.refuse('23503', remove('nodes', { id: 10 }))
  assert.equal(refused.constraint, 'nodes_next_fkey')
  await client.apply(remove('nodes', { id: 10 }), remove('nodes', { id: 11 }))
  const trigger = await client.refuse('MY003', insert('judged', { id: 7, text: 'who' }))
  assert.equal(trigger.message, 'app 1', 'with the rights and claims of the caller')
})

test("a trigger's error is told by its code and message alone; one that skips a row is obeyed", async () => {
  const client = writer()
  const custom = await client.refuse('MY001', insert('judged', { id: 1, text: 'custom' }))
  assert.deepEqual(custom, { seq: 1, status: 'rejected', sqlstate: 'MY001', message: 'not that', operation: 0 })
  await client.refuse('XX000', insert('judged', { id: 1, text: 'internal' }))
  await client.refuse('42501', insert('judged', { id: 1, text: 'become' }))
  await client.apply(insert('judged', { id: 1, text: 'a' }))
  await client.apply(update('judged', { id: 1 }, { text: 'skipped' }))
  assert.deepEqual(await query('select * from judged'), [{ id: 1, text: 'a' }])
})

test('what fails only at the commit is rejected, too, and once', async () => {
  const client = writer()
  const late = await client.refuse('MY002', insert('judged', { id: 5, text: 'late' }))
  assert.equal(late.message, 'at the commit')
  const again = await client.post([[insert('judged', { id: 5, text: 'fine' })]], 1)
  assert.deepEqual(again.json.results, [late])
  assert.deepEqual(await query('select * from judged where id = 5'), [])
})

test('what takes too long at the commit is given up, and is not done', async () => {
  const { sidecar } = await site.another({ env: { SHAPEFEED_WRITE_TIMEOUT: '1' } })
  const client = new Writer(sidecar.url, as(1))
  const given_up = await client.post([[insert('judged', { id: 6, text: 'slow' })]], 1)
  assert.equal(given_up.status, 503, given_up.text)
  assert.equal(given_up.headers.get('retry-after'), '1')
  await client.apply(insert('judged', { id: 6, text: 'fast' }))
})

test('two who make the same membership have both made it', async () => {
  const memberOfOne = insert('company_members', { company_id: 1, user_id: 5 })
  await writer(1).apply(memberOfOne)
  await writer(2).refuse('23505', memberOfOne) // it has a role, which he does not see
  const one = writer(1)
  await one.apply(insert('user_groups', { id: 1, company_id: 1, name: 'g' }))
  const inGroup = insert('user_group_members', { group_id: 1, user_id: 5 })
  for (const result of await Promise.all([1, 2, 1, 2].map((sub) => writer(sub).write(inGroup)))) assert.equal(result.status, 'applied', JSON.stringify(result))
  assert.deepEqual(await query('select * from user_group_members'), [{ group_id: 1, user_id: 5 }])
  await site.sql('create policy own on user_group_members as restrictive for select using (user_id = (select current_user_id()))')
  await writer(2).apply(inGroup) // neither does he see this one, but the row has nothing else
  await site.sql('drop policy own on user_group_members')
})

test('a row that two delete is gone, as both want, and the rest of their transactions stays; an update of it is rejected', async () => {
  await site.sql("insert into folders values (20, 1, null, 'x'), (21, 1, null, 'y')")
  await Promise.all([1, 2].map((sub) => writer(sub).apply(remove('folders', { id: 20 }), update('folders', { id: 21 }, { name: `by ${sub}` }))))
  assert.deepEqual(await query('select id from folders where id in (20, 21)'), [{ id: 21 }])
  await writer(1).apply(remove('folders', { id: 21 }))
  await writer(2).refuse('P0002', update('folders', { id: 21 }, { name: 'z' }))
})

test('a parent that is gone rejects its new child', async () => {
  await site.sql("insert into folders values (30, 1, null, 'x')")
  await writer(1).apply(remove('folders', { id: 30 }))
  const orphan = await writer(2).refuse('23503', insert('folders', { id: 31, workspace_id: 1, parent_id: 30, name: 'y' }))
  assert.equal(orphan.constraint, 'folders_parent_id_fkey')
})

test('of two moves that close a circle together the later one is rejected', async () => {
  await site.sql("insert into folders values (40, 1, null, 'x'), (41, 1, null, 'y')")
  const results = await Promise.all([
    writer(1).write(update('folders', { id: 40 }, { parent_id: 41 })),
    writer(2).write(update('folders', { id: 41 }, { parent_id: 40 })),
  ])
  const loser = results.find(({ status }) => status === 'rejected')
  assert.deepEqual(results.map(({ status }) => status).sort(), ['applied', 'rejected'], JSON.stringify(results))
  assert.deepEqual([loser.sqlstate, loser.constraint], ['23514', 'folders_no_cycle'])
  await writer(1).refuse('23514', update('folders', { id: 1 }, { parent_id: 1 }))
})

test('nobody writes in a company that he is no member of', async () => {
  const stranger = writer(9)
  await stranger.refuse('42501', insert('folders', { id: 50, workspace_id: 1, name: 'x' }))
  await stranger.refuse('P0002', update('folders', { id: 1 }, { name: 'x' }))
  await stranger.apply(remove('companies', { id: 1 }))
  assert.deepEqual(await query('select id from companies where id = 1'), [{ id: 1 }])
  await stranger.refuse('42501', insert('company_members', { company_id: 1, user_id: 9 }))
  await stranger.apply(insert('companies', { id: 50, name: 'mine' }), insert('company_members', { company_id: 50, user_id: 9 }), insert('workspaces', { id: 50, company_id: 50, name: 'w' }))
  await writer(1).refuse('P0002', update('companies', { id: 50 }, { name: 'x' }))
  await stranger.refuse('42501', insert('users', { id: 100, name: 'x' }))
})

test('a member that is removed loses the rows with his next answer, and may not write any more', async () => {
  const api = withHeaders(site.api, as(3))
  const follower = new Follower(api, { shape: 'my_folders' })
  await follower.sync()
  assert.deepEqual(follower.values.map(({ id }) => id), ['4'])
  const client = writer(3)
  await client.apply(update('folders', { id: 4 }, { name: 'mine' }))
  await site.sql('delete from company_members where user_id = 3')
  await follower.until((it) => it.rows.size === 0)
  await client.refuse('P0002', update('folders', { id: 4 }, { name: 'still mine' }))
})

test('a deadlock, a lock for too long: the batch ends there, and is sent again', async () => {
  const { sidecar } = await site.another({ env: { SHAPEFEED_WRITE_TIMEOUT: '1' } })
  await site.sql("insert into folders values (60, 1, null, 'x')")
  const holder = await site.database.connect()
  await holder.query('begin')
  await holder.query('select from folders where id = 60 for update')
  const client = new Writer(sidecar.url, as(1))
  const batch = [[update('folders', { id: 1 }, { name: 'first' })], [update('folders', { id: 60 }, { name: 'held' })], [update('folders', { id: 1 }, { name: 'third' })]]
  const stopped = await client.post(batch, 1)
  assert.deepEqual(stopped.json.results.map(({ seq, status, sqlstate }) => [seq, status, sqlstate]), [[1, 'applied', undefined], [2, 'retry', '57014']])
  assert.equal(stopped.json.last_seq, 1)
  await holder.query('commit')
  await holder.end()
  const rest = await client.post(batch, 1)
  assert.deepEqual(rest.json.results.map(({ status }) => status), ['applied', 'applied', 'applied'])
  assert.deepEqual(await query('select name from folders where id in (1, 60) order by id'), [{ name: 'third' }, { name: 'held' }])
  assert.equal(await sidecar.metric('shapefeed_writes_total{status="retry"}'), 1)
  assert.equal(await sidecar.metric('shapefeed_writes_total{status="applied"}'), 4)
  await waitFor(async () => (await sidecar.metric('shapefeed_requests_total{class="write",status="200"}')) === 2)
})
