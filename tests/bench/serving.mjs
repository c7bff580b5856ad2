// Many clients and many shapes on one sidecar: what a delivery costs, and how long the last one waits.
import { startSidecar, waitFor } from '../lib/index.mjs'
import { asOf, comeBack, comeBackToMany } from './behind.mjs'
import { benchDatabase } from './lib/cluster.mjs'
import { nowMs, startLoad } from './lib/load.mjs'
import { clusterCpu, cpuMs, memoryKiB } from './lib/processes.mjs'
import { check, figure, remark } from './lib/report.mjs'
import { median, quantile } from './lib/statistics.mjs'

const suite = 'serving'

/** Each with a database, a sidecar and clients of its own. */
const parts = { stampede, 'one shape': oneShape, idle, 'many shapes': manyShapes, 'wide transaction': wideTransaction, 'come back': comeBack, 'come back to many': comeBackToMany, 'as of': asOf }

/** No live request ends by itself while something is measured, and none is put off: there are more than usually may be. */
const settings = { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '300000', SHAPEFEED_MAX_CONCURRENT_INITIAL: '5000', SHAPEFEED_MAX_CONCURRENT_EXISTING: '20000' }

/** Those whose name has a match of `only`, a regular expression. */
export async function serving(cluster, only = '') {
  for (const [name, part] of Object.entries(parts)) {
    if (!new RegExp(only).test(name)) continue
    const database = await benchDatabase(cluster)
    const sidecar = await startSidecar({ databaseUrl: database.url, env: settings })
    const clients = startLoad('clients')
    try {
      await part({ cluster, database, sidecar, clients })
    } finally {
      await clients.stop()
      await sidecar.stop()
      await database.client.end()
      await database.drop()
    }
  }
}

const metric = async ({ sidecar }, name) => {
  const text = await (await fetch(`${sidecar.url}/metrics`)).text()
  const found = [...text.matchAll(new RegExp(`^shapefeed_${name}(?:\\{[^}]*\\})? (\\d+)`, 'mg'))]
  return found.reduce((sum, [, value]) => sum + Number(value), 0)
}

const untilHeld = (site, count) =>
  waitFor(async () => await metric(site, 'live_requests') === count, { timeoutMs: 60_000, what: `${count} requests are held` })

/** CPU in milliseconds that database and sidecar have used. */
const serverCpu = ({ cluster, sidecar }) => ({ cluster: clusterCpu(cluster.pid).total * 1000, sidecar: cpuMs(sidecar.pid) })

const itemsTable = (rows, companies) => `create table items (id int primary key, company_id int, n int, title text);
  insert into items select i, i % ${companies}, -1, 'Title of item number ' || i from generate_series(0, ${rows - 1}) i;`

async function stampede(site) {
  const [count, rows] = [2000, 500]
  await site.database.psql(itemsTable(rows, 1))
  const shape = { table: 'items' }
  await site.clients.call('open', site.sidecar.url, count, [shape])
  const [before, client] = [await metric(site, 'snapshots_total'), await site.clients.cpuMs()]
  const { ms, bytes, rows: came } = await site.clients.call('startAtOnce')
  check(suite, `${count} clients at once: snapshots taken`, await metric(site, 'snapshots_total') - before, 1)
  check(suite, `${count} clients at once: rows of a client, lengths of all answers`, `${came} ${bytes.length}`, `${rows} 1`)
  figure({ suite, name: `${count} clients at once for a shape of ${rows} rows`, value: ms / 1000, unit: ' s', at: '<=', target: 1.5, absolute: true,
    note: `${(bytes[0] * count / 2 ** 20).toFixed(0)} MiB; clients' CPU ${(await site.clients.cpuMs() - client).toFixed(0)} ms` })
}

async function oneShape(site) {
  const [count, changes] = [5000, 10]
  await site.database.psql(itemsTable(500, 1))
  await site.clients.call('open', site.sidecar.url, 1, [{ table: 'items' }])
  await site.clients.call('goLive')
  await untilHeld(site, 1)
  const one = memoryKiB(site.sidecar.pid).now
  const crowd = startLoad('clients')
  await crowd.call('open', site.sidecar.url, count, [{ table: 'items' }])
  await crowd.call('goLive')
  await untilHeld(site, count + 1)
  const perClient = (memoryKiB(site.sidecar.pid).now - one) / count
  const lasts = []
  const [before, client] = [serverCpu(site), await crowd.cpuMs()]
  for (let change = 0; change < changes; change++) {
    await site.database.client.query('update items set n = $1 where id = 7', [change])
    const committed = nowMs()
    await waitFor(async () => await crowd.call('waiting') === count, { intervalMs: 5, what: `change ${change} is everywhere` })
    const answers = await crowd.call('take', 'n')
    check(suite, `${count} clients on a shape: those that got change ${change}`, answers.filter(({ values }) => values.join() === `${change}`).length, count)
    lasts.push(Math.max(...answers.map(({ at }) => at)) - committed)
    await untilHeld(site, count + 1)
  }
  const after = serverCpu(site)
  const deliveries = changes * count
  const [cluster, sidecar] = ['cluster', 'sidecar'].map((who) => (after[who] - before[who]) * 1000 / deliveries)
  const generator = (await crowd.cpuMs() - client) * 1000 / deliveries
  figure({ suite, name: `a change to the last of ${count} live clients`, value: median(lasts), unit: ' ms', at: '<=', target: 300, absolute: true, lasts })
  figure({ suite, name: 'server CPU per delivery', value: cluster + sidecar, unit: ' µs', at: '<=', target: 40,
    note: `sidecar ${sidecar.toFixed(1)}; the clients' own ${generator.toFixed(1)}` })
  figure({ suite, name: 'memory per live client', value: perClient * 1.024, unit: ' kB', at: '<=', target: 24, absolute: true })
  await crowd.stop()
}

async function idle(site) {
  const count = 10_000
  await site.database.psql(itemsTable(500, 1))
  await site.clients.call('open', site.sidecar.url, count, [{ table: 'items' }])
  await site.clients.call('goLive')
  await untilHeld(site, count)
  figure({ suite, name: `memory with ${count} idle live requests`, value: memoryKiB(site.sidecar.pid).now * 1.024 / 1000, unit: ' MB', at: '<=', target: 250,
    absolute: true })
}

/** The writer by turns: where each of its changes has a client that waits for it, in a database where nobody does, and on a table there that is not tracked. */
async function manyShapes(site) {
  const [count, writes, rounds] = [1000, 2000, 3]
  const quiet = await benchDatabase(site.cluster)
  for (const { psql } of [site.database, quiet]) await psql(`${itemsTable(10 * count, count)} call shapefeed.track('items');`)
  const writer = startLoad('writer')
  await quiet.psql('create table untracked (like items including all); insert into untracked select * from items;')
  const statement = (table) => [`update ${table} set n = $1::int where id = $1::int % ${10 * count}`]
  const write = ({ url }, first, table = 'items') => writer.call('write', url, statement(table), { perSecond: Infinity, count: writes, first })
  const shapes = Array.from({ length: count }, (_, k) => ({ table: 'items', where: `company_id = ${k}` }))
  await site.clients.call('open', site.sidecar.url, count, shapes)
  await site.clients.call('goLive')
  await untilHeld(site, count)
  const sum = { alone: [], all: [], latencies: [], lasts: [], server: 0, sidecar: 0, writer: 0, clients: 0, untracked: 0, tracked: 0 }
  for (let round = 0; round < rounds; round++) {
    const bare = serverCpu(site).cluster
    await write(quiet, round * writes, 'untracked')
    const tracked = serverCpu(site).cluster
    sum.alone.push(tps(await write(quiet, round * writes)))
    sum.untracked += tracked - bare
    sum.tracked += serverCpu(site).cluster - tracked
    const [before, client, own] = [serverCpu(site), await site.clients.cpuMs(), await writer.cpuMs()]
    const acknowledged = await write(site.database, round * writes)
    const came = await arrived(site, writes)
    const after = serverCpu(site)
    const right = came.filter(({ number, n }) => n % count === number)
    check(suite, `${count} shapes: changes at the client whose shape it is`, new Set(right.map(({ n }) => n)).size, writes)
    check(suite, `${count} shapes: changes elsewhere or twice`, came.length - writes, 0)
    sum.all.push(tps(acknowledged))
    sum.latencies.push(...came.map(({ at, n }) => at - acknowledged[n - round * writes]))
    sum.lasts.push(Math.max(...came.map(({ at }) => at)) - acknowledged.at(-1))
    sum.sidecar += after.sidecar - before.sidecar
    sum.server += after.sidecar - before.sidecar + after.cluster - before.cluster
    sum.clients += await site.clients.cpuMs() - client
    sum.writer += await writer.cpuMs() - own
  }
  const perChange = (who) => sum[who] * 1000 / (writes * rounds)
  const ratios = sum.all.map((all, round) => all / sum.alone[round])
  figure({ suite, name: `commit to client, ${count} shapes, full speed, p99`, value: quantile(sum.latencies, 0.99), unit: ' ms', at: '<=', target: 30, absolute: true,
    note: `p50 ${quantile(sum.latencies, 0.5).toFixed(2)} ms` })
  figure({ suite, name: 'the last change after the writer has stopped', value: median(sum.lasts), unit: ' ms', at: '<=', target: 30, absolute: true, lasts: sum.lasts })
  figure({ suite, name: 'writer\'s tps of alone', value: median(ratios), at: '>=', target: 0.8, ratios,
    note: `${median(sum.alone).toFixed(0)} -> ${median(sum.all).toFixed(0)} tps; ` +
      `load generators' CPU a change: writer ${perChange('writer').toFixed(0)} µs, clients ${perChange('clients').toFixed(0)} µs` })
  figure({ suite, name: 'server CPU per change', value: perChange('server'), unit: ' µs', at: '<=', target: 150,
    note: `sidecar ${perChange('sidecar').toFixed(0)} µs; the statement where nobody listens ${perChange('tracked').toFixed(0)} µs, on a table that is not tracked ${perChange('untracked').toFixed(0)} µs` })
  await writer.stop()
  await quiet.client.end()
  await quiet.drop()
}

/**
 * What the clients of a site get once these are so many changes: [{ number of the client, at, n }]. Read when all are there: while the
 * clients' process reads a thousand answers, it takes no other, and the last one seems to be late.
 */
async function arrived(site, count) {
  await waitFor(async () => await site.clients.call('told') >= count, { intervalMs: 5, what: 'every change is there' })
  const answers = await site.clients.call('take', 'n')
  return answers.flatMap(({ client: number, at, values }) => values.map((n) => ({ number, at, n })))
}

const tps = (acknowledged) => ((acknowledged.length - 1) * 1000) / (acknowledged.at(-1) - acknowledged[0])

async function wideTransaction(site) {
  const [count, rows, rounds] = [1500, 50, 5]
  await site.database.psql(itemsTable(rows, 1))
  const shapes = Array.from({ length: count }, (_, k) => ({ table: 'items', where: `id > ${-1 - k}` }))
  await site.clients.call('open', site.sidecar.url, count, shapes)
  await site.clients.call('goLive')
  await untilHeld(site, count)
  const lasts = []
  const before = serverCpu(site)
  for (let round = 0; round < rounds; round++) {
    await site.database.client.query('update items set n = $1', [round])
    const committed = nowMs()
    await waitFor(async () => await site.clients.call('waiting') >= count, { intervalMs: 5, what: `round ${round} is everywhere` })
    const answers = await site.clients.call('take', 'n')
    check(suite, `${count} shapes: those that got all ${rows} rows`, answers.filter(({ values }) => values.length === rows && values.every((n) => n === round)).length, count)
    lasts.push(Math.max(...answers.map(({ at }) => at)) - committed)
    await untilHeld(site, count)
  }
  const after = serverCpu(site)
  figure({ suite, name: `${rows} rows into ${count} shapes, to the last`, value: median(lasts), unit: ' ms', at: '<=', target: 150, absolute: true, lasts,
    note: `CPU a transaction: database ${((after.cluster - before.cluster) / rounds).toFixed(0)} ms, sidecar ${((after.sidecar - before.sidecar) / rounds).toFixed(0)} ms` })
  remark({ suite, name: 'deliveries of these transactions', value: count * rows * rounds })
}
