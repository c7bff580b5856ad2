// A transaction that stays open holds nobody up: while a thousand others commit each second, what they wrote is at the
// client as soon as before, and the sequencer works no harder for each of them. SHAPEFEED_TEST_OPEN_SECONDS: for how long.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { freshDatabase, pgBin, scale, scratchDir, sleep, startCluster, startSidecar, waitFor, ShapeApi } from '../lib/index.mjs'
import { sequencerOf } from '../bench/lib/cluster.mjs'

const openMs = Number(process.env.SHAPEFEED_TEST_OPEN_SECONDS ?? 30 * scale) * 1000
const windowMs = 8_000
const perSecond = 1000

/** pgbench at a steady rate, until it is stopped. */
function startLoad(database) {
  const script = join(scratchDir('load'), 'script.sql')
  writeFileSync(script, '\\set id random(1, 10000)\nupdate busy set n = n + 1 where id = :id;\n')
  const child = spawn(join(pgBin, 'pgbench'), ['-n', '-c', '4', '-R', String(perSecond), '-T', '100000', '-f', script, database.url], { stdio: 'ignore' })
  return () => child.kill('SIGTERM')
}

/** CPU seconds of a process so far. */
function cpuSeconds(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')
  return (Number(fields[11]) + Number(fields[12])) / 100
}

/** Writes a row now and then and measures how long after its commit the client has it; and what sequencing costs. */
async function measure({ client, follower, worker }) {
  const latencies = []
  const before = { cpu: cpuSeconds(worker), ...(await commits(client)) }
  const end = Date.now() + windowMs
  while (Date.now() < end) {
    const { rows: [{ n }] } = await client.query('update probe set n = n + 1 returning n')
    const committed = performance.now()
    await follower.until(({ values }) => Number(values[0].n) >= n)
    latencies.push(performance.now() - committed)
    await sleep(20)
  }
  const after = { cpu: cpuSeconds(worker), ...(await commits(client)) }
  latencies.sort((a, b) => a - b)
  const transactions = after.count - before.count
  return { p50: latencies[latencies.length >> 1], p90: latencies[Math.floor(latencies.length * 0.9)], transactions,
    cpuUsEach: ((after.cpu - before.cpu) * 1e6) / transactions }
}

const commits = async (client) => ({ count: Number((await client.query('select count(*) from shapefeed.commit')).rows[0].count) })

test('a writing transaction that stays open changes nobody\'s latency', async (t) => {
  const cluster = await startCluster({ conf: ['autovacuum=off'] })
  t.after(() => cluster.stop())
  const database = await freshDatabase(cluster)
  await database.psql(`create table busy (id int primary key, n int not null); create table probe (id int primary key, n int not null);
    insert into busy select i, 0 from generate_series(0, 10000) i; insert into probe values (1, 0);`)
  const sidecar = await startSidecar({ databaseUrl: database.url })
  t.after(() => sidecar.stop())
  const api = new ShapeApi(sidecar.url)
  t.after(() => api.close())
  await database.psql("call shapefeed.track('busy')")
  const follower = await api.follow({ table: 'probe' })
  const client = await database.connect()
  const worker = await sequencerOf({ ...database, client })
  const stopLoad = startLoad(database)
  t.after(stopLoad)
  const from = (await commits(client)).count
  await waitFor(async () => (await commits(client)).count > from + perSecond, { what: 'the load runs' })

  const alone = await measure({ client, follower, worker })
  const open = await database.connect()
  await open.query('begin isolation level repeatable read')
  await open.query('update busy set n = -1 where id = 0')
  const opened = Date.now()
  const early = await measure({ client, follower, worker })
  await sleep(Math.max(0, opened + openMs - windowMs - Date.now()))
  const late = await measure({ client, follower, worker })
  await open.query('insert into probe values (2, 0)')
  await open.query('commit')
  await follower.until(({ rows }) => rows.size === 2)
  console.log({ alone, early, late })

  for (const seen of [alone, early, late]) assert.ok(seen.transactions > 0.5 * perSecond * (windowMs / 1000), `${seen.transactions} transactions in ${windowMs} ms`)
  for (const seen of [early, late]) {
    assert.ok(seen.p50 < 3 * alone.p50 + 5, `p50 ${seen.p50} ms instead of ${alone.p50}`)
    assert.ok(seen.cpuUsEach < 1.5 * alone.cpuUsEach, `sequencing costs ${seen.cpuUsEach} µs instead of ${alone.cpuUsEach}`)
  }
})
