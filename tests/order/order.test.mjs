// Whatever the writers do, the log has each committed change once, in an order that keeps every row's history, and
// nothing that was rolled back. See invariants I1 and I2 in docs/architecture.md.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { freshDatabase, scale, sleep, startCluster, waitFor } from '../lib/index.mjs'
import { LogReader } from '../lib/log.mjs'
import { Checker } from './replica.mjs'

const tables = ['item', 'parent', 'child', 'tally']

const schema = `
  create table item (id int primary key, v int not null, t text);
  create table parent (id int primary key, v int not null);
  create table child (
    id int primary key generated always as identity,
    parent_id int not null references parent on delete cascade on update cascade,
    v int not null
  );
  create index on child (parent_id);
  create table tally (id int primary key, n int not null);

  -- Runs at the end of the transaction, when everything else is captured.
  create function count_up() returns trigger language plpgsql as $$
  begin
    update tally set n = n + 1 where id = coalesce(new.id, old.id) % 40;
    return null;
  end $$;
  create constraint trigger count_up after insert or update or delete on item
    deferrable initially deferred for each row execute function count_up();

  -- Writes another row of the same table, inside the statement.
  create function touch_sibling() returns trigger language plpgsql as $$
  begin
    if pg_trigger_depth() = 1 then update item set v = v + 1000 where id = new.id % 40 + 1; end if;
    return null;
  end $$;
  create trigger a_touch_sibling after insert or update on item
    for each row when (new.v % 5 = 1) execute function touch_sibling();
`

const rows = `
  insert into tally select g, 0 from generate_series(0, 39) g;
  insert into item select g, 0, 'first' from generate_series(1, 300) g;
  insert into parent select g, 0 from generate_series(1, 30) g;
  insert into child (parent_id, v) select g % 30 + 1, 0 from generate_series(1, 100) g;
`

/** Reads the log and the tables step by step, each step under one snapshot. */
class Consumer {
  steps = 0
  kinds = { I: 0, U: 0, D: 0, keyChange: 0 }
  transactions = []
  pendingSeen = 0

  constructor(client, head) {
    Object.assign(this, { client, head, log: new LogReader(client) })
    this.byPosition = new Checker()
    this.byXid = new Checker((a, b) => (BigInt(a.xid) < BigInt(b.xid) ? -1 : 1))
  }

  async step() {
    await this.client.query('begin isolation level repeatable read')
    const { head } = (await this.client.query('select head from shapefeed._head()')).rows[0]
    const sequenced = await this.log.sequenced(this.head, head)
    const pending = await this.log.pending(head)
    const truth = {}
    for (const table of tables) truth[table] = (await this.client.query(`select * from ${table}`)).rows
    await this.client.query('commit')

    this.head = head
    this.steps++
    this.pendingSeen += pending.length
    this.transactions.push(...sequenced)
    for (const { records } of sequenced) records.forEach((record) => this.count(record))
    const found = this.byPosition.step({ sequenced, pending, truth })
    if (found.mistakes + found.differences > 0) console.error(`bad step ${this.steps} at ${head}:`, found)
    this.byXid.step({ sequenced, pending, truth })
    return pending.length
  }

  count({ kind, old, new: made }) {
    this.kinds[kind]++
    if (kind === 'U' && old.row.id !== made.row.id) this.kinds.keyChange++
  }
}

/** A thread of writers: `done` is what they did so far; complete when `ended`. */
function startWriters(url) {
  const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? Date.now() % 1e6)
  console.log(`SHAPEFEED_TEST_SEED=${seed}`)
  const thread = new Worker(new URL('writers.mjs', import.meta.url), { workerData: { url, writers: 16, seed } })
  const writers = { done: null, stop: () => thread.postMessage('stop') }
  thread.on('message', (done) => { writers.done = done })
  thread.on('error', (error) => { writers.error = error })
  return writers
}

/** Tracks the tables, then fills them: the log has every row from the first on. */
async function setUp(database, client, sequence) {
  await database.psql(schema)
  for (const table of tables) await database.psql(`call shapefeed.track('${table}')`)
  await waitFor(async () => {
    await sequence()
    return (await client.query('select bool_and(ready) ok from shapefeed.tracked_tables')).rows[0].ok
  }, { what: 'all tables are tracked' })
  const { head } = (await client.query('select head from shapefeed._head()')).rows[0]
  await database.psql(rows)
  return head
}

/**
 * Writers and a consumer beside each other, for `seconds`, and longer on a slow machine until something is to be seen.
 * `sequence` runs before steps of the consumer.
 */
async function run(database, { seconds, share, sequence }) {
  const client = await database.connect()
  const consumer = new Consumer(client, await setUp(database, client, sequence))
  const writers = startWriters(database.url)
  const started = Date.now()
  const spent = () => (Date.now() - started) / 1000
  let stopped = false
  while (!writers.done?.ended) {
    if (writers.error) throw writers.error
    if (Math.random() < 0.5) await sequence()
    await consumer.step()
    if (!stopped && (spent() > 4 * seconds || (spent() > seconds && tooLittle(consumer, writers.done, share).length === 0))) {
      stopped = true
      writers.stop()
    }
    await sleep(Math.random() * 50)
  }
  await waitFor(async () => {
    await sequence()
    return await consumer.step() === 0
  }, { what: 'everything is sequenced' })
  const { committed, rolledBack, ...counts } = writers.done
  console.log({ steps: consumer.steps, badSteps: consumer.byPosition.badSteps, badByXid: consumer.byXid.badSteps,
    transactions: consumer.transactions.length, pendingSeen: consumer.pendingSeen, ...consumer.kinds, ...counts })
  assert.deepEqual(tooLittle(consumer, writers.done, share), [], 'enough was to be seen')
  return { consumer, client, committed, rolledBack }
}

/** Floors that are not reached: below them the run says nothing. */
function tooLittle(consumer, done, share) {
  const floors = [
    ['steps', consumer.steps, 100],
    ['transactions', consumer.transactions.length, 1000],
    ['transactions without a position', consumer.pendingSeen, 1], // truth and head were seen apart
    ['inserts', consumer.kinds.I, 100],
    ['updates', consumer.kinds.U, 100],
    ['deletes', consumer.kinds.D, 100],
    ['key changes', consumer.kinds.keyChange, 100],
    ['savepoints rolled back', done?.savepointsRolledBack ?? 0, 100],
    ['savepoints released', done?.savepointsReleased ?? 0, 100],
    ['prepared and committed', done?.prepared ?? 0, 50],
    ['prepared and rolled back', done?.preparedRolledBack ?? 0, 10],
    ['rollbacks', done?.rollbacks ?? 0, 50],
    ['deadlocks', done?.deadlocks ?? 0, 10],
    ['violated constraints', done?.violations ?? 0, 10],
  ]
  return floors.filter(([, seen, floor]) => seen < Math.max(1, floor * share)).map(([what, seen]) => `${what}: ${seen}`)
}

function assertOrder({ consumer, committed, rolledBack }) {
  assert.equal(consumer.byPosition.badSteps, 0, 'each step of the replay gives the tables')
  const positions = consumer.transactions.map(({ position }) => BigInt(position))
  assert.ok(positions.every((position, i) => i === 0 || position > positions[i - 1]), 'positions ascend')
  const xids = consumer.transactions.map(({ xid }) => xid)
  assert.equal(new Set(xids).size, xids.length, 'each transaction has one position')
  const undone = new Set(rolledBack)
  assert.deepEqual(xids.filter((xid) => undone.has(xid)), [], 'nothing that was rolled back has one')
  const kept = new Set(committed)
  const statementsOfRows = rows.match(/insert/g).length
  assert.ok(xids.slice(statementsOfRows).every((xid) => kept.has(xid)), 'whatever has a position was committed')
}

/** What a batch's snapshot sees is what has a position up to its end; all of the log has a position. */
async function assertBatches(client) {
  const wrong = await client.query(`
    with sample as (select position, snapshot from shapefeed.batch order by random() limit 30)
    select c.xid, c.position, s.position batch from shapefeed.commit c, sample s
    where pg_visible_in_snapshot(c.xid, s.snapshot) <> (c.position <= s.position)`)
  assert.deepEqual(wrong.rows, [])
  const loose = await client.query(`
    select xid from shapefeed.change except select xid from shapefeed.commit`)
  assert.deepEqual(loose.rows, [])
  const ends = await client.query(`
    select c.batch from shapefeed.commit c where not exists (select from shapefeed.batch b where b.position = c.batch)`)
  assert.deepEqual(ends.rows, [])
}

test('the worker sequences: replay gives the tables at each step', async (t) => {
  const cluster = await startCluster({ conf: ['deadlock_timeout=20ms'] })
  t.after(() => cluster.stop())
  const result = await run(await freshDatabase(cluster), { seconds: 18 * scale, share: 1, sequence: async () => {} })
  assertOrder(result)
  await assertBatches(result.client)
  // The same checker on the same run, in the order of xids: it must notice.
  assert.ok(result.consumer.byXid.badSteps > 0, 'replay in the order of xids passed for right: the checker is blind')
})

test('sequence() sequences: replay gives the tables at each step', async (t) => {
  const cluster = await startCluster({ preload: false, conf: ['deadlock_timeout=20ms'] })
  t.after(() => cluster.stop())
  const database = await freshDatabase(cluster)
  const sequencer = await database.connect()
  const sequence = () => sequencer.query('call shapefeed.sequence()')
  const result = await run(database, { seconds: 6 * scale, share: 0.25, sequence })
  assertOrder(result)
  await assertBatches(result.client)
})
