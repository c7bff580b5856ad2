// Commands in transactions that stay open: the sequencer waits for none of them, and what they do counts once they commit.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { freshDatabase, startCluster, waitFor } from '../lib/index.mjs'

let cluster, database, client
before(async () => {
  cluster = await startCluster()
  database = await freshDatabase(cluster)
  client = await database.connect()
  await client.query("create table busy (id int primary key)")
  await client.query("call shapefeed.track('busy')")
})
after(() => cluster.stop())

const one = async (query, values) => Object.values((await client.query(query, values)).rows[0] ?? {})[0]
const since = (table) => one('select since_position from shapefeed.tracked_tables where "table" = $1::regclass', [table])
const nobodyWaits = async () => assert.equal(
  await one("select count(*)::int from pg_stat_activity where backend_type = 'shapefeed sequencer' and wait_event_type = 'Lock'"), 0)

let id = 0
/** A transaction gets its position while others are open. */
async function sequenced() {
  const { rows } = await client.query('insert into busy values ($1) returning pg_current_xact_id()::text as xid', [++id])
  await waitFor(() => one('select count(*)::int from shapefeed.commit where xid = $1::xid8', [rows[0].xid]), { what: 'a position' })
  await nobodyWaits()
}

test('a command that changed a tracked table and is not committed holds up nobody', async () => {
  await client.query('create table altered (id int primary key, x int, y int)')
  await client.query("call shapefeed.track('altered')")
  await waitFor(() => since('altered'))
  const other = await database.connect()
  await other.query('begin')
  await other.query('alter table altered add column z int, drop column x')
  await sequenced()
  // The sequencer has something to say of that table: it begins anew, as after a gap.
  await client.query("select shapefeed._note(jsonb_build_object('tracked', jsonb_build_array('altered'::regclass::oid::int8)))")
  await sequenced()
  await other.query('commit')
  const relid = await one("select 'altered'::regclass::oid")
  await waitFor(() => one(`select count(*)::int from shapefeed.commit where ends @> jsonb_build_array(jsonb_build_object('relid', $1::int8, 'columns', '["x"]'::jsonb))`, [relid]))
  await sequenced()
  await other.end()
})

test('tracking in a transaction that stays open, while the same table begins again', async () => {
  await client.query('create table begun (id int primary key)')
  await client.query("call shapefeed.track('begun')")
  await waitFor(() => since('begun'))
  const first = await since('begun')
  // The row of the table is held while the note that it begins anew is sequenced.
  const holder = await database.connect()
  await client.query("update shapefeed.tracked set since = null where relid = 'begun'::regclass")
  await holder.query('begin')
  await holder.query("select from shapefeed.tracked where relid = 'begun'::regclass for update")
  await client.query(`select shapefeed._note(jsonb_build_object('tracked', jsonb_build_array('begun'::regclass::oid::int8)))`)
  await sequenced()
  assert.equal(await since('begun'), null)
  await holder.query('commit')
  await waitFor(() => since('begun'), { what: 'it begins all the same' })
  assert.ok(BigInt(await since('begun')) > BigInt(first))
  await holder.end()
})

test('a table that is tracked in an open transaction begins when that commits', async () => {
  const other = await database.connect()
  await client.query('create table late (id int primary key)')
  await other.query('begin')
  await other.query("call shapefeed.track('late')")
  await sequenced()
  await other.query('commit')
  await waitFor(() => since('late'))
  await other.end()
})

test('what nobody told of is noticed within a moment, also when nothing is written', async () => {
  const relid = await one("select 'late'::regclass::oid")
  const ended = () => one(`select count(*)::int from shapefeed.commit where ends @> jsonb_build_array(jsonb_build_object('relid', $1::int8, 'reason', 'gap'))`, [relid])
  await client.query('alter event trigger shapefeed_ddl_command_end disable')
  const head = await one('select head from shapefeed.status')
  await client.query('alter table late disable trigger all')
  await client.query('insert into late values (1)')
  await waitFor(ended, { timeoutMs: 5000, what: 'the end of its epoch' })
  await client.query('alter event trigger shapefeed_ddl_command_end enable always')
  assert.equal(await one('select min(position) from shapefeed.commit where position > $1', [head]),
    await one(`select position from shapefeed.commit where ends @> jsonb_build_array(jsonb_build_object('relid', $1::int8, 'reason', 'gap'))`, [relid]))
})

test('the end comes before all that was written since', async () => {
  await client.query('create table unseen (id int primary key)')
  await client.query("call shapefeed.track('unseen')")
  await waitFor(() => since('unseen'))
  await client.query('alter event trigger shapefeed_ddl_command_end disable')
  const head = await one('select head from shapefeed.status')
  await client.query('alter table unseen drop constraint unseen_pkey')
  await client.query('insert into unseen values (1)')
  await client.query('insert into unseen values (2)')
  await sequenced()
  await client.query('alter event trigger shapefeed_ddl_command_end enable always')
  const { rows } = await client.query('select ends, relids from shapefeed.commit where position > $1 order by position', [head])
  assert.equal(rows[0].ends?.[0].reason, 'key', JSON.stringify(rows))
  assert.equal(rows.filter(({ ends }) => !ends).length, 3)
})

test('a reader that is the first to see it does not answer', async () => {
  await client.query('create table read (id int primary key)')
  await client.query("call shapefeed.track('read')")
  await waitFor(() => since('read'))
  const { rows: [{ definition }] } = await client.query("select shapefeed._define('{public,read}', null, null, null, 'default', 'full', null) as definition")
  const pin = async () => (await client.query('select * from shapefeed._pin($1)', [definition])).rows.length
  assert.equal(await pin(), 1)
  // The sequencer cannot say so: somebody holds the table's row.
  const holder = await database.connect()
  await holder.query('begin')
  await holder.query("select from shapefeed.tracked where relid = 'read'::regclass for update")
  await client.query('alter event trigger shapefeed_ddl_command_end disable')
  await client.query('alter table read disable trigger all')
  await client.query('alter event trigger shapefeed_ddl_command_end enable always')
  await assert.rejects(pin, { code: 'SF503', message: /has changed a moment ago/ })
  await sequenced()
  await holder.query('commit')
  await waitFor(async () => (await pin().catch((error) => error)).code === '55000', { what: 'it is tracked no longer' })
  await holder.end()
})
