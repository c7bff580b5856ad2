// @tanstack/electric-db-collection from npm, unmodified: collections, live queries and mutations in each mode of syncing.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { and, createCollection, createLiveQueryCollection, eq, gt, ilike, inArray, isNull, like, lte, not, or } from '@tanstack/db'
import { electricCollectionOptions } from '@tanstack/electric-db-collection'
import { served, startProxy, waitFor } from '../lib/index.mjs'

const tags = ['red', 'green', 'blue']
const site = served({
  schema: `create table tasks (id int primary key, title text not null, tag text, rank int8, done bool not null default false, due timestamptz, part uuid);
    create table people (id int primary key, name text not null, task int);
    insert into tasks select i, 'task ' || i, case when i % 10 > 0 then (array['${tags.join("','")}'])[1 + i % 3] end, i * 1000000000000, i % 4 = 0, '2024-01-01Z'::timestamptz + i * interval '1 h',
      ('00000000-0000-0000-0000-' || lpad((i % 5)::text, 12, '0'))::uuid from generate_series(1, 200) i;
    insert into people select i, 'person ' || i, i * 3 from generate_series(1, 20) i`,
})

const collections = []
after(() => Promise.all(collections.map((collection) => collection.cleanup())))

let names = 0

/** A collection over a shape. `write(sql)` is how its handlers reach the server; they tell the transaction. */
function collectionOf(table, { syncMode = 'eager', url = site.sidecar.url, params = {}, liveSse = false } = {}) {
  const handle = (sql) => async ({ transaction }) => ({ txid: await xid(transaction.mutations.map(sql).join(';')) })
  const literal = (value) => (value === null || value === undefined ? 'null' : `'${String(value).replaceAll("'", "''")}'`)
  const collection = createCollection(electricCollectionOptions({
    id: `${table}-${++names}`,
    syncMode,
    shapeOptions: { url: `${url}/v1/shape`, params: { table, ...params }, liveSse, parser: { timestamptz: (text) => new Date(text) } },
    getKey: ({ id }) => id,
    onInsert: handle(({ modified }) => `insert into ${table} (${Object.keys(modified)}) values (${Object.values(modified).map(literal)})`),
    onUpdate: handle(({ original, changes }) => `update ${table} set ${Object.entries(changes).map(([name, value]) => `${name} = ${literal(value)}`)} where id = ${original.id}`),
    onDelete: handle(({ original }) => `delete from ${table} where id = ${original.id}`),
  }))
  collections.push(collection)
  return collection
}

/** Runs statements in one transaction; its id as applications send it to their clients. */
async function xid(sql) {
  const client = await site.database.connect()
  try {
    await client.query('begin')
    const { rows } = await client.query('select pg_current_xact_id()::xid::text as xid')
    await client.query(sql)
    await client.query('commit')
    return Number(rows[0].xid)
  } finally {
    await client.end()
  }
}

const live = (build) => {
  const query = createLiveQueryCollection((q) => build(q))
  collections.push(query)
  return query
}
const ids = (collection) => collection.toArray.map(({ id }) => id).sort((a, b) => a - b)
const selected = async (where, table = 'tasks') => (await site.client.query(`select id from ${table} where ${where} order by id`)).rows.map(({ id }) => id)
const untilIds = async (collection, where, table) => {
  let truth
  await waitFor(async () => JSON.stringify(ids(collection)) === JSON.stringify(truth = await selected(where, table)), { what: `the rows of ${where}` })
    .catch((error) => { throw new Error(`${error.message}: ${ids(collection)} are not ${truth}`) })
  return truth.length
}

for (const liveSse of [false, true]) {
  const how = liveSse ? 'by events' : 'by long-polling'

  test(`eager: rows, mutations that wait for their transaction, and changes of others, ${how}`, async () => {
    const tasks = collectionOf('tasks', { liveSse, params: { where: 'id < 1000' } })
    await tasks.preload()
    assert.ok((await untilIds(tasks, 'id < 1000')) >= 200)
    const mutations = [
      () => tasks.insert({ id: 501, title: "it's new", tag: 'red', rank: 9007199254740993n, done: false }),
      () => tasks.update(501, (draft) => { draft.title = 'changed' }),
      () => tasks.update([1, 2, 3], (drafts) => drafts.forEach((draft) => { draft.done = true })),
      () => tasks.delete(501),
    ]
    for (const mutate of mutations) {
      const began = performance.now()
      await mutate().isPersisted.promise
      assert.ok(performance.now() - began < 3000, 'the transaction is there soon')
    }
    assert.equal(tasks.get(3).done, true)
    await site.sql("insert into tasks (id, title) values (502, 'from outside'); update tasks set id = 503 where id = 502; delete from tasks where id = 200")
    await untilIds(tasks, 'id < 1000')
    assert.equal(tasks.get(503).title, 'from outside')
    await site.sql("delete from tasks where id = 503; insert into tasks (id, title) values (200, 'task 200')")
    await tasks.cleanup()
  })

  // Which a live request is told at once if it asks to be woken.
  test(`a transaction that touched nothing of the shape is waited for, ${how}`, async () => {
    const tasks = collectionOf('tasks', { liveSse, params: { where: 'id <= 10', wake: '1' } })
    await tasks.preload()
    for (const sql of ["update tasks set title = title || '.' where id = 50", 'delete from tasks where id = 51', "insert into tasks (id, title) values (51, 'task 51')", 'update tasks set id = id where id = 60']) {
      assert.equal(await tasks.utils.awaitTxId(await xid(sql), 4000), true, sql)
    }
    const seen = await xid('update tasks set done = not done where id = 5')
    assert.equal(await tasks.utils.awaitTxId(seen, 4000), true)
    await tasks.cleanup()
  })
}

test('a transaction from before the shape is known by its snapshot', async () => {
  const before = await xid("update tasks set title = title || '' where id = 7")
  const tasks = collectionOf('tasks', { params: { where: 'id = 7' } })
  await tasks.preload()
  assert.equal(await tasks.utils.awaitTxId(before, 3000), true)
  assert.equal(await tasks.utils.awaitMatch(({ headers }) => headers.control === 'up-to-date' || headers.operation === 'update', 3000).catch(() => false), false)
  const matched = tasks.utils.awaitMatch(({ value }) => value?.title === 'matched', 5000)
  await site.sql("update tasks set title = 'matched' where id = 7")
  assert.equal(await matched, true)
})

test('eager: a truncated table is read again', async () => {
  await site.sql("create table turned (id int primary key, v text); insert into turned values (1, 'a'), (2, 'b')")
  const turned = collectionOf('turned')
  await turned.preload()
  assert.deepEqual(ids(turned), [1, 2])
  await site.sql("truncate turned; insert into turned values (3, 'c')")
  await untilIds(turned, 'true', 'turned')
  assert.equal(await turned.insert({ id: 4, v: 'd' }).isPersisted.promise.then(() => turned.get(4).v), 'd')
})

for (const liveSse of [false, true]) test(`on-demand: what live queries ask for is loaded, and followed, ${liveSse ? 'by events' : 'by long-polling'}`, async () => {
  const proxy = await startProxy(site.sidecar.url)
  const tasks = collectionOf('tasks', { syncMode: 'on-demand', url: proxy.url, liveSse })
  const queries = [
    ["tag = 'red'", (t) => eq(t.tag, 'red')],
    ['id > 150 and not done', (t) => and(gt(t.id, 150), not(t.done))],
    ["title like 'task 1_' or id <= 3", (t) => or(like(t.title, 'task 1_'), lte(t.id, 3))],
    ["title ilike 'TASK 2%'", (t) => ilike(t.title, 'TASK 2%')],
    ['tag is null', (t) => isNull(t.tag)],
    ['id in (5, 6, 7)', (t) => inArray(t.id, [5, 6, 7])],
    ['rank = 100000000000000', (t) => eq(t.rank, 100000000000000n)],
    ["due > '2024-01-08T00:00:00Z'", (t) => gt(t.due, new Date('2024-01-08T00:00:00Z'))],
    ["part = '00000000-0000-0000-0000-000000000003'", (t) => eq(t.part, '00000000-0000-0000-0000-000000000003')],
    ['done = true', (t) => eq(t.done, true)],
  ]
  for (const [where, build] of queries) {
    const query = live((q) => q.from({ t: tasks }).where(({ t }) => build(t)))
    await query.preload()
    assert.ok((await untilIds(query, where)) > 0, where)
  }
  const red = live((q) => q.from({ t: tasks }).where(({ t }) => eq(t.tag, 'red')))
  await red.preload()
  await site.sql("update tasks set title = 'followed' where id = 3; insert into tasks (id, title, tag) values (601, 'new', 'red'); delete from tasks where id = 6; update tasks set tag = 'red' where id = 1")
  await waitFor(() => red.get(3)?.title === 'followed')
  await untilIds(red, "tag = 'red'")
  await tasks.insert({ id: 602, title: 'own', tag: 'red', done: false }).isPersisted.promise
  await untilIds(red, "tag = 'red'")
  const requests = proxy.requests.filter(({ params }) => [...params.keys()].some((name) => name.startsWith('subset__')))
  assert.ok(requests.length >= queries.length && requests.every(({ status }) => status === 200), JSON.stringify(requests.map(({ status }) => status)))
  // Queries in quick succession are a loop to the client, which starts again: with changes_only that costs it nothing.
  assert.equal(proxy.refetches().conflicts, 0)
  await site.sql("delete from tasks where id > 600; insert into tasks (id, title, tag) values (6, 'task 6', 'red'); update tasks set tag = 'blue' where id = 1")
  await proxy.stop()
})

test('on-demand: a row that was not loaded and changes into a query appears, if rows come whole', async () => {
  const tasks = collectionOf('tasks', { syncMode: 'on-demand', params: { replica: 'full' } })
  const query = live((q) => q.from({ t: tasks }).where(({ t }) => eq(t.tag, 'brown')))
  await query.preload()
  await site.sql("update tasks set tag = 'brown' where id in (21, 22)")
  await untilIds(query, "tag = 'brown'")
  assert.equal(query.get(21).title, 'task 21')
  await site.sql("update tasks set tag = 'red' where id in (21, 22)")
  await untilIds(query, "tag = 'brown'")
})

test('on-demand: pages in an order, a join, and a rotation', async () => {
  const tasks = collectionOf('tasks', { syncMode: 'on-demand' })
  const people = collectionOf('people', { syncMode: 'on-demand' })
  for (const [offset, limit] of [[0, 10], [10, 10], [195, 10]]) {
    const page = live((q) => q.from({ t: tasks }).orderBy(({ t }) => t.rank, 'desc').orderBy(({ t }) => t.id).limit(limit).offset(offset))
    await page.preload()
    const { rows } = await site.client.query(`select id from tasks order by rank desc nulls first, id limit ${limit} offset ${offset}`)
    await waitFor(() => JSON.stringify(page.toArray.map(({ id }) => id)) === JSON.stringify(rows.map(({ id }) => id)), { what: `page ${offset}: ${page.toArray.map(({ id }) => id)} of ${rows.map(({ id }) => id)}` })
  }
  const joined = live((q) => q.from({ p: people }).innerJoin({ t: tasks }, ({ p, t }) => eq(p.task, t.id)).where(({ p }) => lte(p.id, 5)).select(({ p, t }) => ({ id: p.id, title: t.title })))
  await joined.preload()
  const { rows } = await site.client.query('select p.id, t.title from people p join tasks t on t.id = p.task where p.id <= 5 order by 1')
  await waitFor(() => JSON.stringify(joined.toArray.map(({ id, title }) => ({ id, title })).sort((a, b) => a.id - b.id)) === JSON.stringify(rows))
  await site.sql("call shapefeed.rotate('tasks')")
  await site.sql("update tasks set title = 'rotated' where id = 9")
  await waitFor(() => joined.toArray.find(({ id }) => id === 3)?.title === 'rotated')
})

for (const liveSse of [false, true]) test(`progressive: a query has its rows before everything is there, then all is, ${liveSse ? 'by events' : 'by long-polling'}`, async () => {
  const table = liveSse ? 'long_events' : 'long_polls'
  await site.sql(`create table ${table} (id int primary key, kind int, v text); insert into ${table} select i, i % 100, repeat(md5(i::text), 4) from generate_series(1, 20000) i`)
  const proxy = await startProxy(site.sidecar.url)
  const long = collectionOf(table, { syncMode: 'progressive', url: proxy.url, liveSse })
  const query = live((q) => q.from({ l: long }).where(({ l }) => eq(l.kind, 7)))
  await query.preload()
  assert.equal(await untilIds(query, 'kind = 7', table), 200)
  await site.sql(`update ${table} set v = 'early' where id = 7; insert into ${table} values (30007, 7, 'new'); delete from ${table} where id = 107`)
  await untilIds(query, 'kind = 7', table)
  await waitFor(() => long.size === 20_000, { timeoutMs: 20_000 })
  await waitFor(() => query.get(7)?.v === 'early')
  assert.equal(await long.insert({ id: 30008, kind: 7, v: 'own' }).isPersisted.promise.then(() => query.get(30008).v), 'own')
  assert.equal(proxy.refetches().conflicts, 0)
  assert.ok(proxy.requests.some(({ params }) => params.has('subset__where')))
  await proxy.stop()
})
