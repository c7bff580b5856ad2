// Where clauses with subqueries over HTTP: what comes in and goes out as memberships come and go, and in which words.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ok, served, startSidecar, waitFor } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'
import { startProxy } from '../lib/proxy.mjs'
import { fewRows, followed, foundation, same, visibleTo } from './setup.mjs'

const site = served({
  schema: `${foundation}${fewRows}
    create table words (id int primary key, word text);
    create table stops (id int primary key, word text);
    insert into words values (1, 'a'), (2, 'b'), (3, null);`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '2000' },
})

const ofUser = (table, user) => ({ table, where: visibleTo[table], params: [user] })
const summary = (messages) => messages.map(({ headers, value }) => `${headers.operation} ${value.id}`)

/** Runs SQL and follows until what it did to the shape has come; returns the messages. */
async function after(follower, sql, count) {
  const before = follower.seen.length
  await site.sql(sql)
  await follower.until(({ seen }) => seen.length >= before + count)
  const messages = follower.seen.slice(before)
  assert.equal(messages.length, count, JSON.stringify(messages))
  return messages
}

test("each user's companies, workspaces and folders: live and from the log they are what SELECT gives", async () => {
  const shapes = ['companies', 'workspaces', 'folders'].flatMap((table) => [1, 2].map((user) => ofUser(table, user)))
  const followers = await Promise.all(shapes.map((shape) => followed(site, shape)))
  const steps = [
    'insert into company_members values (4, 1)',
    'delete from company_members where (company_id, user_id) = (1, 1)',
    'update company_members set company_id = 1 where (company_id, user_id) = (2, 2)',
    'update workspaces set company_id = 4 where id = 1',
    'update folders set workspace_id = 3 where id = 1',
    "insert into folders values (100, 7, null, 'new'); insert into workspaces values (9, 4, 'w'); insert into folders values (101, 9, null, 'x')",
    'delete from workspaces where id = 2',
    'update company_members set user_id = 3 - user_id where user_id in (1, 2) and company_id in (1, 4)',
    'delete from company_members; insert into company_members values (2, 1), (2, 2)',
    "update folders set name = name || '!'",
  ]
  for (const step of steps) {
    await site.sql(`begin; ${step}; commit`)
    for (const [i, shape] of shapes.entries()) {
      const isSame = () => same(site, followers[i], shape).then(() => true, () => false)
      const read = i % 2 ? () => followers[i].sync() : () => followers[i].live()
      await waitFor(async () => (await isSame()) || (await read(), await isSame()), { what: `${shape.table} after ${step}` })
    }
  }
  await site.sql('delete from company_members; insert into company_members values (1, 1), (2, 2), (3, 2)')
})

test('a flip is told in the words of its transaction, behind what it touched, in the order of keys', async () => {
  const shape = ofUser('folders', 3)
  const follower = await followed(site, shape)
  assert.equal(follower.rows.size, 0)
  const came = await after(follower, `begin; insert into folders values (203, 5, null, 'touched');
    insert into company_members values (3, 3); commit`, follower.rows.size + 7)
  assert.equal(came[0].value.id, '203')
  assert.deepEqual(summary(came.slice(1)), ['insert 13', 'insert 14', 'insert 15', 'insert 16', 'insert 17', 'insert 18'])
  assert.deepEqual(Object.keys(came[1].value), ['id', 'workspace_id', 'parent_id', 'name'], 'the whole row')
  const [{ headers }] = came
  for (const message of came) {
    assert.deepEqual([message.headers.lsn, message.headers.txids], [headers.lsn, headers.txids])
    assert.deepEqual(Object.keys(message.headers).filter((name) => /tag|move|event|condition/.test(name)), [])
  }
  assert.deepEqual(came.map(({ headers }) => headers.last ?? false), [false, false, false, false, false, false, true])
  const went = await after(follower, 'delete from company_members where user_id = 3', 7)
  assert.deepEqual(new Set(went.map(({ headers }) => headers.operation)), new Set(['delete']))
  assert.deepEqual(Object.keys(went[0].value), ['id'])
  await site.sql('delete from folders where id = 203')
})

test('a row that moves from one visible place to another is an update; out and in within one transaction is nothing', async () => {
  await site.sql('update workspaces set company_id = 1 where id = 1; insert into company_members values (1, 3), (2, 3)')
  const follower = await followed(site, ofUser('workspaces', 3))
  assert.deepEqual(summary(await after(follower, 'update workspaces set company_id = 2 where id = 1', 1)), ['update 1'])
  const messages = await after(follower, `begin; delete from company_members where user_id = 3 and company_id = 2;
    insert into company_members values (2, 3); update workspaces set name = 'once more' where id = 1; commit`, 1)
  assert.deepEqual(summary(messages), ['update 1'])
  // The row leaves by its own change what at the same time becomes invisible.
  const both = await after(follower, `begin; update workspaces set company_id = 4 where id = 1;
    delete from company_members where user_id = 3 and company_id = 2; insert into company_members values (4, 3); commit`, 6)
  assert.deepEqual(summary(both), ['update 1', 'delete 3', 'delete 4', 'insert 7', 'insert 8', 'insert 9'])
  await site.sql('delete from company_members where user_id = 3; update workspaces set company_id = 1 where id = 1')
})

test('NOT IN as SQL has it: a NULL in the set lets nothing in, an empty set everything', async () => {
  const shape = { table: 'words', where: 'word not in (select word from stops)' }
  const follower = await followed(site, shape)
  const rows = () => follower.values.map(({ id }) => id).sort().join()
  assert.equal(rows(), '1,2,3', 'an empty set: NULL NOT IN () is true')
  for (const [sql, count, expected] of [
    ["insert into stops values (1, 'a')", 2, '2'],
    ['insert into stops values (2, null)', 1, ''],
    ["insert into words values (4, 'x')", 0, ''],
    ['delete from stops where id = 2', 2, '2,4'],
    ["insert into stops values (3, 'a'), (4, 'x')", 1, '2'],
    ['delete from stops where id = 1', 0, '2'],
    ['delete from stops', 3, '1,2,3,4'],
  ]) {
    if (count > 0) await after(follower, sql, count)
    else await site.sql(sql)
    assert.equal(rows(), expected, sql)
    const { rows: truth } = await site.client.query(`select id from words where ${shape.where} order by id`)
    assert.equal(truth.map(({ id }) => id).join(), expected, sql)
  }
})

test('a table within itself, EXISTS with correlation, rows, UNION, joins and scalars', async () => {
  await site.sql("insert into folders values (301, 1, null, 'root'), (302, 1, 301, 'child'), (303, 1, 302, 'grandchild')")
  const clauses = [
    ['folders', "parent_id in (select id from folders where name = 'root')"],
    ['folders', "parent_id in (select id from folders where parent_id in (select id from folders where name = 'root'))"],
    ['folders', 'exists (select 1 from folders c where c.parent_id = folders.id and c.name <> $1)', 'gone'],
    ['workspaces', '(company_id, id) in (select w.company_id, w.id from workspaces w where w.name like $1)', '%3'],
    ['workspaces', `id in (select w.id from workspaces w join company_members m on m.company_id = w.company_id
      where m.user_id = $1 union select workspace_id from folders where name = 'child')`, 2],
    ['workspaces', 'company_id = (select company_id from workspaces w where w.id = $1)', 5],
    ['workspaces', "(select c.name from companies c where c.id = workspaces.company_id) = 'company 2'"],
    ['workspaces', "not ((select c.name from companies c where c.id = company_id) < 'company 3')"],
    ['folders', '(select p.workspace_id from folders p where p.id = folders.parent_id) = workspace_id'],
    ['folders', '(select p.name from folders p where p.id = folders.parent_id) is null and id > 300'],
    ['folders', "coalesce((select p.name from folders p where p.id = folders.parent_id and p.workspace_id = 1), 'none') <> 'root' and id > 20"],
    ['workspaces', 'not exists (select from company_members m where m.company_id = workspaces.company_id)'],
    ['companies', 'id = any (select company_id from workspaces) and id <> all (select company_id from company_members)'],
  ]
  const followers = []
  for (const [table, where, ...params] of clauses) {
    const shape = { table, where, params }
    followers.push([await followed(site, shape), shape])
  }
  const steps = [
    "update folders set name = 'root' where id = 302", "update folders set name = 'gone' where id = 303",
    "update workspaces set name = 'workspace 33' where id = 1", 'delete from company_members where user_id = 2',
    'update workspaces set company_id = 1 where id = 5', 'delete from workspaces where id = 5',
    'insert into company_members values (1, 2), (4, 2)', 'update folders set workspace_id = 3 where id = 301',
    "update companies set name = 'company 2' where id = 1", 'delete from folders where id = 301',
  ]
  for (const step of steps) {
    await site.sql(step)
    for (const [follower, shape] of followers) {
      const isSame = () => same(site, follower, shape).then(() => true, () => false)
      await waitFor(async () => (await isSame()) || (await follower.sync(), await isSame()), { what: `${shape.where} after ${step}` })
    }
  }
})

test('an unmodified client, and one that loads on demand', async () => {
  await site.sql('delete from company_members; insert into company_members values (1, 1), (2, 2)')
  const query = `select id::text, company_id::text, name from workspaces where ${visibleTo.workspaces.replace('$1', '1')}`
  const params = { table: 'workspaces', where: visibleTo.workspaces, params: ['1'] }
  const client = follow(site.sidecar.url, params)
  await untilSame(client, site.client, query)
  await site.sql('insert into company_members values (2, 1), (4, 1)')
  await untilSame(client, site.client, query)
  await site.sql('delete from company_members where (company_id, user_id) = (1, 1)')
  await untilSame(client, site.client, query)
  client.stop()
  const subset = await site.api.get({
    table: 'workspaces', where: visibleTo.workspaces, 'params[1]': '1', log: 'changes_only', offset: 'now',
    subset__where: 'id > 1', subset__order_by: 'id desc', subset__limit: '2',
  })
  assert.deepEqual(subset.json.data.map(({ value }) => value.id), ['9', '8'])
})

test('snapshots in chunks, read while memberships change', async () => {
  const sidecar = await site.another({ env: { SHAPEFEED_CHUNK_BYTES: '300' } })
  const follower = await followed(site, ofUser('folders', 2), sidecar.api)
  const chunks = follower.answers.length
  assert.ok(chunks > 2, `${chunks} answers`)
  await same(site, follower, ofUser('folders', 2))
  const params = { table: 'folders', where: visibleTo.folders, 'params[1]': '2' }
  const first = await sidecar.api.start(params)
  await site.sql('update company_members set company_id = 1 where user_id = 2')
  const rest = await sidecar.api.follow({ ...params })
  await same(site, rest, ofUser('folders', 2))
  const second = await sidecar.api.get({ ...params, handle: first.handle, offset: first.offset })
  const old = [...first.operations, ...second.operations].map(({ value }) => value.workspace_id)
  assert.deepEqual([...new Set(old)].filter((id) => !['3', '4'].includes(id)), [], 'a later chunk is as of the same position')
})

/** Commits SQL that gets no position until `meanwhile` is over. */
async function unsequenced(sql, meanwhile) {
  const holder = await site.database.connect()
  await holder.query('begin')
  await holder.query(`comment on extension shapefeed is 'no step now'`) // conflicts with the sequencing lock
  try {
    await site.client.query(sql)
    return await meanwhile()
  } finally {
    await holder.query('commit')
    await holder.end()
  }
}

test('what has committed and has no position yet is in no snapshot, no subset and no set that a feed begins with', async () => {
  await site.sql(`insert into users select i, 'new' from generate_series(11, 14) i; insert into company_members values (2, 14)`)
  const chunked = await site.another({ env: { SHAPEFEED_CHUNK_BYTES: '100' } })
  const shapes = [['workspaces', 11], ['workspaces', 12], ['folders', 13], ['workspaces', 14]].map(([table, user]) => ofUser(table, user))
  const apis = [site.api, chunked.api, chunked.api, chunked.api]
  await followed(site, shapes[2]) // the table is tracked by then
  const known = await followed(site, shapes[3])
  await known.until(({ rows }) => rows.size === 2) // all up to here has a position
  const change = 'insert into company_members select 1, i from generate_series(11, 14) i; delete from company_members where (company_id, user_id) = (2, 14)'
  const followers = await unsequenced(`begin; ${change}; commit`, async () => {
    const subset = ok(await site.api.get({
      table: 'workspaces', where: visibleTo.workspaces, 'params[1]': '11', log: 'changes_only', offset: 'now', subset__order_by: 'id', subset__limit: '9',
    }))
    assert.deepEqual(subset.json.data, [], 'a subset')
    const followers = await Promise.all(shapes.map((shape, i) => followed(site, shape, apis[i])))
    assert.equal(followers.map(({ rows }) => rows.size).join(), '0,0,0,2', 'snapshots')
    assert.deepEqual(new Set(followers[3].values.map(({ company_id: company }) => company)), new Set(['2']))
    await Promise.all(followers.map((follower) => follower.live())) // has the feed attach them
    assert.equal(followers.map(({ seen }) => seen.length).join(), '0,0,0,0')
    return followers
  })
  for (const [i, follower] of followers.entries()) {
    const { table, where, params } = shapes[i]
    const { rowCount } = await site.client.query(`select from ${table} where ${where}`, params)
    const gone = follower.rows.size
    await follower.until(({ seen }) => seen.length >= rowCount + gone)
    const told = follower.seen.map(({ headers }) => headers.operation).sort()
    assert.deepEqual(told, [...Array(gone).fill('delete'), ...Array(rowCount).fill('insert')], `${table} of ${params}`)
    await same(site, follower, shapes[i])
  }
})

test('after a killed sidecar and a crash of Postgres a client goes on, and starts over never', async () => {
  await site.sql('delete from company_members; insert into company_members values (2, 2)')
  const sidecar = await startSidecar({ databaseUrl: site.database.url })
  const proxy = await startProxy(sidecar.url)
  const client = follow(proxy.url, { table: 'workspaces', where: visibleTo.workspaces, params: ['2'] })
  const query = `select id::text, company_id::text, name from workspaces where ${visibleTo.workspaces.replace('$1', '2')}`
  await untilSame(client, site.client, query)
  await sidecar.kill9()
  await site.sql('insert into company_members values (4, 2)')
  const next = await startSidecar({ databaseUrl: site.database.url })
  proxy.setTarget(next.url)
  await untilSame(client, site.client, query)
  await site.cluster.stopImmediate()
  await site.cluster.start()
  const again = await site.database.connect()
  await again.query('delete from company_members where (company_id, user_id) = (4, 2)')
  await again.query('insert into company_members values (3, 2)')
  await untilSame(client, again, query)
  await again.end()
  client.stop()
  assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 1 })
  await proxy.stop()
  await next.stop()
})
