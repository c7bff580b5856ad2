// I7: the log is bounded whatever runs or does not run. At the hard limit writers leave changes out, and say so.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { startCluster, startSidecar, ShapeApi, waitFor } from '../lib/index.mjs'
import { database, filler, logBytes, retentionBytes, small, untilEmptied } from './setup.mjs'

let plain
before(async () => { plain = await startCluster({ preload: false, conf: small }) })
after(async () => { await plain.stop() })

const step = async ({ query }) => { await query('call shapefeed.sequence()'); await query('call shapefeed.retain()') }
const ready = async (site) => { await step(site); return site.value(`select ready from shapefeed.tracked_tables where "table" = 'big'::regclass`) }

test('H3 no worker, no sidecar: writers stop at twice the size, and say so once', async () => {
  const site = await database(plain)
  const fill = await filler(site)
  await waitFor(() => ready(site))
  await fill(3)
  await step(site)
  const definition = await site.value(`select shapefeed._define('{public,big}', 'id > 0', null, '{id}', 'default', 'full', null)`)
  const pin = Number(await site.value('select position from shapefeed._pin($1)', [definition]))
  const warnings = []
  site.client.on('notice', ({ message }) => warnings.push(message))
  await fill(60)
  const full = await logBytes(site)
  assert.ok(full > 1.8 * retentionBytes && full < 2.5 * retentionBytes, `the log has ${full} bytes`)
  assert.equal(warnings.length, 1, warnings.join())
  assert.match(warnings[0], /log is full.*public\.big/)
  await fill(10)
  for (let i = 0; i < 200; i++) await site.query(`insert into big (v) values ('x')`)
  assert.equal(await logBytes(site), full, 'a full log does not grow')
  assert.match(plain.log(), /WARNING: {2}shapefeed's log is full/)
  assert.deepEqual((await site.status()).gaps, ['big'])

  // Nothing of what was left out is shown as if it were whole.
  await site.query('call shapefeed.sequence()')
  assert.equal((await site.query('select * from shapefeed._place($1, $2, $2)', [definition, pin]))[0].reason, 'gap')
  assert.equal(await site.query('select * from shapefeed._pin($1)', [definition]).catch(({ code }) => code), 'SF503')
  await waitFor(() => ready(site), { what: 'capture begins anew once there is room' })
  assert.deepEqual((await site.status()).gaps, [])
  assert.ok(await logBytes(site) < 1.4 * retentionBytes)
  const again = Number(await site.value('select position from shapefeed._pin($1)', [definition]))
  await site.query(`delete from big where id % 100 = 0; insert into big (v) values ('y')`)
  await step(site)
  const rows = await site.value(`select count(*)::int from shapefeed.visible_rows('big', 'id > 0', null, '{id}', ${again})`)
  assert.equal(rows, 73 * 750 + 200, 'as of the new beginning everything is there')
  const operations = await site.query(`select operation, count(*)::int n from shapefeed.changes('big', null, null, '{id}', ${again}) group by 1 order by 1`)
  assert.deepEqual(operations, [{ operation: 'delete', n: Math.floor((73 * 750 + 200) / 100) }, { operation: 'insert', n: 1 }])
})

test('a gap is not closed while a transaction that left something out goes on', async () => {
  const site = await database(plain)
  const fill = await filler(site)
  await waitFor(() => ready(site))
  await fill(40)
  assert.deepEqual((await site.status()).gaps, ['big'])
  const late = await site.connect()
  await late.query(`begin; insert into big (v) values ('left out'); prepare transaction 'late ${site.name}'`)
  for (let i = 0; i < 10; i++) assert.equal(await ready(site), false)
  assert.deepEqual((await site.status()).gaps, ['big'])
  assert.ok(await logBytes(site) < 1.5 * retentionBytes, 'though there is room')
  await late.query(`commit prepared 'late ${site.name}'`)
  await waitFor(() => ready(site), { what: 'capture begins anew' })
  const rows = await site.value(`select count(*)::int from shapefeed.visible_rows('big', null, null, '{id}')`)
  assert.equal(rows, 40 * 750 + 1)
})

test('a transaction that is larger than the log ends its table\'s epoch; the write succeeds', async () => {
  const site = await database(plain)
  const fill = await filler(site)
  await waitFor(() => ready(site))
  await fill(1)
  await site.query(`insert into big (v) select v from big, generate_series(1, 30)`)
  const bytes = await logBytes(site)
  assert.ok(bytes < 2.3 * retentionBytes, `the log has ${bytes} bytes`)
  assert.deepEqual((await site.status()).gaps, ['big'])
  await waitFor(() => ready(site), { what: 'capture begins anew' })
  assert.equal(await site.value(`select count(*)::int from shapefeed.visible_rows('big', null, null, '{id}')`), 31 * 750)
})

test('not preloaded, a sidecar sequences and drops', async () => {
  const site = await database(plain)
  const fill = await filler(site)
  const sidecar = await startSidecar({ databaseUrl: site.url })
  const api = new ShapeApi(sidecar.url)
  const client = await api.follow({ table: 'big', columns: 'id' })
  for (let i = 0; i < 30; i++) {
    await fill(1, { pauseMs: 300 })
    await client.until(({ rows }) => rows.size === 750 * (i + 1))
  }
  await untilEmptied(site)
  assert.deepEqual((await site.status()).gaps, [])
  assert.ok(await logBytes(site) < 1.7 * retentionBytes)
  api.close()
  await sidecar.stop()
})
