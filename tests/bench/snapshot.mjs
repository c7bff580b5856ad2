// A whole table through the sidecar, against COPY of the same rows; and what the sidecar's memory has to do with their number.
import { join } from 'node:path'
import { pgBin, startSidecar } from '../lib/index.mjs'
import { benchDatabase } from './lib/cluster.mjs'
import { columns, values } from './lib/items.mjs'
import { runTimed, startLoad } from './lib/load.mjs'
import { clusterCpu, cpuMs, memoryKiB } from './lib/processes.mjs'
import { check, figure, remark } from './lib/report.mjs'
import { median } from './lib/statistics.mjs'

const suite = 'snapshot'
const ROWS = 1_000_000
const FEW_ROWS = 100_000
const ROUNDS = 5
const SELECTED = 'select id, n, company, title, status, amount, meta, changed from'

export async function snapshot(cluster) {
  const database = await benchDatabase(cluster)
  await database.psql(`create table few (${columns}); insert into few ${values(FEW_ROWS)};
    create table many (${columns}); insert into many ${values(ROWS)};`)
  await database.psql('vacuum analyze few; vacuum analyze many; checkpoint;')
  const sidecar = await startSidecar({ databaseUrl: database.url })
  const site = { cluster, database, sidecar }

  const few = await follower(sidecar, 'few')
  await compare(site, few, 'few', 1)
  await checkRows(database, few, 'few', FEW_ROWS)
  const peak = memoryKiB(sidecar.pid).peak

  const many = await follower(sidecar, 'many')
  const rounds = await compare(site, many, 'many', ROUNDS)
  const growth = (memoryKiB(sidecar.pid).peak - peak) / 1024
  report(rounds)
  figure({ suite, name: 'growth of the sidecar from 100k to 1M rows', value: growth, unit: ' MiB', at: '<=', target: 32, absolute: true,
    note: `${(peak / 1024).toFixed(1)} MiB with 100k rows` })
  const { bytes } = await checkRows(database, many, 'many', ROWS)
  for (const { cold, warm } of rounds) {
    check(suite, 'bytes of a timed snapshot', cold.bytes, bytes)
    check(suite, 'bytes of one that was kept', warm.bytes, bytes)
  }
  await Promise.all([few, many].map((load) => load.stop()))
  await sidecar.stop()
  await database.client.end()
  await database.drop()
}

async function follower(sidecar, table) {
  const load = startLoad('follower')
  await load.call('connect', sidecar.url, { table })
  return load
}

/**
 * By turns, after a round that does not count:
 * COPY, a snapshot that has to be taken, the same one again.
 */
async function compare(site, load, table, count) {
  const rounds = []
  await read(site, load) // there is something to delete then
  for (let round = 0; round <= count; round++) {
    await load.call('delete')
    const result = { copy: await copy(site, table), cold: await read(site, load), warm: await read(site, load) }
    check(suite, 'snapshots taken for the first and the second use', `${result.cold.taken} ${result.warm.taken}`, '1 0')
    if (round > 0) rounds.push(result)
  }
  return rounds
}

async function copy({ cluster, database }, table) {
  const before = clusterCpu(cluster.pid).total
  const script = `\\timing on\n\\copy (${SELECTED} ${table}) to '/dev/null'\n`
  const { stdout, cpuMs } = await runTimed(join(pgBin, 'psql'), ['-X', '-q', '-v', 'ON_ERROR_STOP=1', database.url], { input: script })
  return { ms: Number(stdout.match(/^Time: ([\d.]+) ms/m)[1]), client: cpuMs, server: (clusterCpu(cluster.pid).total - before) * 1000 }
}

async function read({ cluster, sidecar }, load) {
  const [server, own, taken, client] = [clusterCpu(cluster.pid).total, cpuMs(sidecar.pid), await snapshotsTaken(sidecar), await load.cpuMs()]
  const result = await load.call('snapshot')
  return {
    ...result,
    client: await load.cpuMs() - client,
    server: (clusterCpu(cluster.pid).total - server) * 1000,
    sidecar: cpuMs(sidecar.pid) - own,
    taken: await snapshotsTaken(sidecar) - taken,
  }
}

async function snapshotsTaken(sidecar) {
  const text = await (await fetch(`${sidecar.url}/metrics`)).text()
  const found = [...text.matchAll(/^shapefeed_snapshots_total(?:\{[^}]*\})? (\d+)$/mg)]
  return found.reduce((sum, [, count]) => sum + Number(count), 0)
}

function report(rounds) {
  const of = (way, field) => median(rounds.map((round) => round[way][field]))
  const rate = (way) => `${(ROWS / of(way, 'ms')).toFixed(0)}k rows/s`
  const cpu = (way) => ['server', 'sidecar', 'client'].filter((who) => rounds[0][way][who] !== undefined)
    .map((who) => `${who} ${of(way, who).toFixed(0)}`).join(', ')
  const ratio = (way) => median(rounds.map((round) => round.copy.ms / round[way].ms))
  remark({ suite, name: 'COPY of 1,000,000 rows', value: of('copy', 'ms'), unit: ' ms', note: `${rate('copy')}; CPU in ms: ${cpu('copy')}` })
  figure({ suite, name: 'snapshot of 1,000,000 rows, of COPY\'s rows/s', value: ratio('cold'), at: '>=', target: 0.5, rounds,
    note: `${rate('cold')}, ${(of('cold', 'bytes') / 2 ** 20).toFixed(0)} MiB in ${of('cold', 'chunks')} chunks; CPU in ms: ${cpu('cold')}` })
  remark({ suite, name: 'the same, kept by the sidecar', value: ratio('warm'), note: `${rate('warm')}; CPU in ms: ${cpu('warm')}` })
}

/** Every row is there once, with the values that Postgres prints. */
async function checkRows(database, load, table, count) {
  const seen = await load.call('inspect')
  check(suite, `${table}: rows`, seen.rows, count)
  check(suite, `${table}: keys`, seen.keys, count)
  check(suite, `${table}: sum of ids`, seen.idSum, (count * (count + 1)) / 2)
  const { stdout } = await runTimed('bash', ['-c', '"$0" "$@" | sha256sum', join(pgBin, 'psql'), '-X', '-q', database.url,
    '-c', `copy (${SELECTED} ${table} order by id) to stdout`])
  check(suite, `${table}: values`, seen.hash, stdout.split(' ')[0])
  return seen
}
