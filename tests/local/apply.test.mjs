// What comes of a shape is applied whole, or is refused where it does not fit: batches by themselves, in a local database.
import assert from 'node:assert/strict'
import { after, before, beforeEach, test } from 'node:test'
import { MismatchError, applyBatch, applySnapshot, writing } from '../../client/dist/apply.js'
import { prepareTable } from '../../client/dist/tables.js'
import { newDatabase } from './lib/client.mjs'

const schema = { id: { type: 'int4', pk_index: 0 }, v: { type: 'text' }, n: { type: 'int4' } }
const row = (id, v, n) => ({ key: `"${id}"`, value: { id: String(id), v, n: n === undefined ? null : String(n) }, headers: { operation: 'insert', relation: ['public', 't'] } })
const slice = (...messages) => `[${messages.map((message) => JSON.stringify(message)).join(',\n')}]`
const change = (operation, value, lsn) => ({ key: `"${value.id}"`, value, headers: { operation, lsn: String(lsn), op_position: 0 } })
const upToDate = (lsn) => ({ headers: { control: 'up-to-date', global_last_seen_lsn: String(lsn) } })

let db, count = 0
before(async () => { db = await newDatabase() })
after(() => db.close())
beforeEach(() => db.exec('drop table if exists t cascade; truncate sync.stream, sync.shape_table, sync.shadow, sync.outbox, sync.rejection cascade'))

/** A shape of t; the later ones share the table. */
async function shape() {
  const { rows: [{ id }] } = await db.query('insert into sync.stream (definition) values ($1) returning id', [JSON.stringify({ table: 't', where: `${count++}` })])
  const { table } = await prepareTable(db, id, ['public', 't'], schema)
  return { stream: id, table, handle: 'x-5-x', offset: '0_1' }
}
const rows = async () => (await db.query(`select id || ' ' || v as t from t order by id`)).rows.map(({ t }) => t)
const offset = async ({ stream }) => (await db.query('select "offset" from sync.stream where id = $1', [stream])).rows[0].offset

test('a part of a snapshot counts once all its slices are there; what a slice has stays', async () => {
  const of = await shape()
  for (const last of [slice(row(2, 'b'), row(3, 'c', 'no number')), '[{"key":']) {
    await assert.rejects(applySnapshot(db, of, [slice(row(1, 'a')), last]))
    assert.deepEqual([await rows(), await offset(of)], [['1 a'], null])
  }
  await applySnapshot(db, of, [slice(row(1, 'a')), slice(row(2, 'b'), row(3, 'c'))])
  assert.deepEqual([await rows(), await offset(of)], [['1 a', '2 b', '3 c'], '0_1'])
})

test('between two slices there is time for others', async () => {
  let turns = 0
  const seen = []
  const tx = { query: async () => ({ rows: [{ has_rows: true, dirty: [] }] }) }
  const pglite = {
    transaction: async (work) => {
      seen.push(turns)
      setTimeout(() => turns++)
      return work(tx)
    },
  }
  await applySnapshot(pglite, { table: { name: 't', columns: [], key: ['id'], relation: 't' }, stream: 1, handle: 'x-5-x', offset: '0_1' }, ['[]', '[]', '[]'])
  assert.deepEqual(seen, [0, 1, 2])
})

test('a batch that fails leaves rows and offset as they were', async () => {
  const of = await shape()
  await applyBatch(db, of, [row(1, 'a'), row(2, 'b')])
  await assert.rejects(applyBatch(db, { ...of, offset: '7_0' }, [change('delete', { id: '1' }, 7), change('update', { id: '2', n: 'no number' }, 7)]), { code: '22P02' })
  await assert.rejects(applyBatch(db, { ...of, offset: '7_0' }, [change('delete', { id: '1' }, 7), change('update', { id: '3', v: 'x' }, 7)]), MismatchError)
  await db.exec(`insert into t values (4, 'only here')`)
  await assert.rejects(applyBatch(db, { ...of, offset: '7_0' }, [change('update', { id: '4', v: 'x' }, 7)]), MismatchError)
  assert.deepEqual([await rows(), await offset(of)], [['1 a', '2 b', '4 only here'], '0_1'])
})

test('a snapshot does not replace what another shape has brought that is newer, and replaces what is older', async () => {
  const first = await shape()
  await applyBatch(db, { ...first, offset: '9_0' }, [change('insert', { id: '1', v: 'of 9', n: null }, 9), change('insert', { id: '2', v: 'of 3', n: null }, 3), upToDate(9)])
  const second = await shape()
  await applyBatch(db, { ...first, offset: '9_1' }, [change('update', { id: '1', v: 'newer' }, 10), change('update', { id: '2', v: 'older' }, 4)])
  await applySnapshot(db, second, [slice(row(1, 'of 5'), row(2, 'of 5'), row(3, 'of 5'))])
  assert.deepEqual(await rows(), ['1 newer', '2 of 5', '3 of 5'])
  const entered = await db.query('select key ->> \'id\' as id, position::int from sync.row_shape where stream = $1 order by 1', [second.stream])
  assert.deepEqual(entered.rows, ['1', '2', '3'].map((id) => ({ id, position: 5 })))
})

test('new rows of a shape that shares its table are known to be its own, though COPY could take them', async () => {
  await applySnapshot(db, await shape(), [slice(row(1, 'a'))])
  const second = await shape()
  await applySnapshot(db, second, [slice(row(2, 'b'))])
  await db.query('select sync.forget($1)', [second.stream])
  assert.deepEqual(await rows(), ['1 a'])
})

test('what is changed of a row by two shapes, also with a local change, counts for the one that brought it', async () => {
  const [first, second] = [await shape(), await shape()]
  const update = (of, lsn, v) => applyBatch(db, { ...of, offset: `${lsn}_0` }, [change('update', { id: '1', v }, lsn)])
  for (const of of [first, second]) await applyBatch(db, of, [row(1, 'a'), row(2, 'a'), upToDate(5)])
  await update(first, 20, 'of 20')
  await update(second, 19, 'of 19')
  assert.equal((await rows())[0], '1 of 20')
  await db.query(`update t set n = 1 where id = 2`)
  await applyBatch(db, { ...second, offset: '21_0' }, [change('insert', { id: '2', v: 'of 21', n: null }, 21)])
  const positions = await db.query(`select position::int from sync.row_shape where key ->> 'id' = '2' order by stream`)
  assert.deepEqual(positions.rows.map(({ position }) => position), [5, 21])
  await applyBatch(db, { ...second, offset: '22_0' }, [change('delete', { id: '2' }, 22)])
  assert.deepEqual(await rows(), ['1 of 20', '2 of 21'], 'the first shape has it still')
  await applyBatch(db, { ...first, offset: '22_0' }, [change('delete', { id: '2' }, 22)])
  assert.deepEqual(await rows(), ['1 of 20'], 'deleted there, which the change here does not undo')
})

test('a change of columns that are not here is no change', async () => {
  const of = await shape()
  await applyBatch(db, of, [row(1, 'a'), row(2, 'b')])
  await applyBatch(db, { ...of, offset: '7_0' }, [change('update', { id: '1', other: 'x' }, 7), change('update', { id: '2', other: 'x', v: 'c' }, 7)])
  assert.deepEqual([await rows(), await offset(of)], [['1 a', '2 c'], '7_0'])
})

test('a shape is complete, and when that was is known, with its first up-to-date', async () => {
  const of = await shape()
  const state = async () => (await db.query('select position::int, last_synced is not null as synced from sync.stream where id = $1', [of.stream])).rows[0]
  await applyBatch(db, { ...of, offset: '7_0' }, [change('insert', { id: '1', v: 'a', n: null }, 7)])
  assert.deepEqual(await state(), { position: null, synced: false })
  await applyBatch(db, { ...of, offset: '8_0' }, [upToDate(9)])
  assert.deepEqual(await state(), { position: 9, synced: true })
  await applyBatch(db, { ...of, offset: '12_0' }, [change('insert', { id: '2', v: 'a', n: null }, 12)])
  assert.deepEqual(await state(), { position: 12, synced: true })
})

test('a local change is confirmed once all followed shapes of its table have it, and then no sooner than the newest says', async () => {
  const [first, second, kept] = [await shape(), await shape(), await shape()]
  await db.query('update sync.stream set active = id <> $1', [kept.stream])
  for (const of of [first, second, kept]) await applyBatch(db, of, [row(1, 'a'), upToDate(5)])
  await db.query(`update t set v = 'mine' where id = 1`)
  const reaches = async (of, lsn, ...messages) => {
    await applyBatch(db, { ...of, offset: `${lsn}_0` }, [...messages, upToDate(lsn)])
    return [await rows(), (await db.query('select ack::int from sync.outbox')).rows.map(({ ack }) => ack)]
  }
  assert.deepEqual(await reaches(first, 18), [['1 mine'], [null]], 'not answered')
  await db.query('update sync.outbox set ack = 20')
  assert.deepEqual(await reaches(first, 20, change('update', { id: '1', v: 'mine!' }, 20)), [['1 mine'], [20]])
  assert.deepEqual(await reaches(second, 19), [['1 mine'], [20]])
  assert.deepEqual(await reaches(second, 20), [['1 mine!'], []])
})

test('a shape that starts over keeps local changes of rows that it has still, and loses the others', async () => {
  const of = await shape()
  await applyBatch(db, of, [...[1, 2, 3].map((id) => row(id, 'a')), upToDate(5)])
  await db.exec(`update t set v = 'mine' where id in (1, 2); insert into t values (4, 'new')`)
  await db.query('select sync.start_over($1)', [of.stream])
  assert.deepEqual(await rows(), ['1 mine', '2 mine', '3 a', '4 new'])
  await applySnapshot(db, { ...of, handle: 'y-9-y' }, [slice(row(2, 'b'))])
  assert.deepEqual(await rows(), ['1 mine', '2 mine', '3 a', '4 new'])
  await applyBatch(db, { ...of, handle: 'y-9-y', offset: '9_0' }, [upToDate(9)])
  assert.deepEqual(await rows(), ['2 mine', '4 new'])
  assert.deepEqual((await db.query(`select key ->> 'id' as id, server ->> 'v' as v from sync.shadow order by 1`)).rows, [{ id: '1', v: null }, { id: '2', v: 'b' }, { id: '4', v: null }])
  assert.deepEqual((await db.query('select * from sync.row_shape')).rows, [])
})

test('what was rejected is written again on top of what is there now', async () => {
  const of = await shape()
  await applyBatch(db, of, [row(1, 'a', 1), row(2, 'a', 1), row(3, 'a', 1), upToDate(5)])
  await db.transaction((tx) => tx.exec(`update t set v = 'mine' where id in (1, 2); delete from t where id = 3`))
  await writing(db, (tx) => tx.query(`select sync.reject(max(tx), '42501', null, 0, 'no') from sync.outbox`))
  assert.deepEqual(await rows(), ['1 a', '2 a', '3 a'])
  await applyBatch(db, { ...of, offset: '7_0' }, [change('update', { id: '1', n: '7' }, 7), change('delete', { id: '2' }, 7)])
  await db.query('select sync.retry(id) from sync.rejection')
  assert.deepEqual((await db.query('select id, v, n from t')).rows, [{ id: 1, v: 'mine', n: 7 }], 'what is gone there stays so')
  assert.deepEqual((await db.query('select operation, value from sync.outbox order by id')).rows, [{ operation: 'update', value: { v: 'mine' } }, { operation: 'delete', value: null }])
})

test('a changed key is another row', async () => {
  const of = await shape()
  await applyBatch(db, of, [row(1, 'a', 1), upToDate(5)])
  await db.exec('update t set id = 9 where id = 1')
  assert.deepEqual((await db.query('select operation, key, value from sync.outbox order by id')).rows,
    [{ operation: 'delete', key: { id: '1' }, value: null }, { operation: 'insert', key: { id: '9' }, value: { id: '9', v: 'a', n: '1' } }])
})
