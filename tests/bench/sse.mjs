// Streams of events to thousands of clients on one shape; and what a fresh sync into PGlite costs the server.
import { startSidecar, waitFor } from '../lib/index.mjs'
import { benchDatabase } from './lib/cluster.mjs'
import { columns, values } from './lib/items.mjs'
import { startLoad } from './lib/load.mjs'
import { clusterCpu, cpuMs, memoryKiB } from './lib/processes.mjs'
import { check, figure } from './lib/report.mjs'
import { quantile } from './lib/statistics.mjs'

const suite = 'sse'

const parts = { streams, pglite }

/** Those whose name has a match of `only`, a regular expression. */
export async function sse(cluster, only = '') {
  for (const [name, part] of Object.entries(parts)) {
    if (!new RegExp(only).test(name)) continue
    const database = await benchDatabase(cluster)
    const sidecar = await startSidecar({ databaseUrl: database.url, env: { SHAPEFEED_SSE_TIMEOUT_MS: '600000' } })
    try {
      await part({ cluster, database, sidecar })
    } finally {
      await sidecar.stop()
      await database.client.end()
      await database.drop()
    }
  }
}

/** The query of a stream of events that begins where the shape is now. */
async function streamQuery({ sidecar }, table) {
  const answer = await fetch(`${sidecar.url}/v1/shape?table=${table}&offset=now`)
  const [handle, offset] = ['handle', 'offset'].map((name) => answer.headers.get(`electric-${name}`))
  return new URLSearchParams({ table, handle, offset, live: 'true', live_sse: 'true', cursor: '' }).toString()
}

async function streams(site) {
  const { cluster, database, sidecar } = site
  const [count, perSecond, seconds] = [5000, 20, 20]
  const writes = perSecond * seconds
  await database.psql('create table items (id int primary key, n int, title text); insert into items select i, -1, $$Title of item $$ || i from generate_series(0, 499) i')
  const query = await streamQuery(site, 'items')
  const [crowd, writer] = [startLoad('streams'), startLoad('writer')]
  await crowd.call('open', sidecar.url, query, 1)
  const one = memoryKiB(sidecar.pid).now
  await crowd.call('open', sidecar.url, query, count - 1)
  await waitFor(async () => (await sidecar.metric('shapefeed_streams')) === count, { timeoutMs: 60_000, what: `${count} streams are open` })
  const perStream = () => ((memoryKiB(sidecar.pid).now - one) / (count - 1)) * 1.024
  const idle = perStream()
  const server = () => clusterCpu(cluster.pid).total * 1000 + cpuMs(sidecar.pid)
  const [before, client] = [server(), await crowd.cpuMs()]
  const acknowledged = await writer.call('write', database.url, ['update items set n = $1::int where id = $1::int % 500'], { perSecond, count: writes })
  await waitFor(async () => (await crowd.call('complete', count)) === writes, { timeoutMs: 60_000, intervalMs: 100, what: 'every change is everywhere' })
  const arrivals = new Map(await crowd.call('arrivals'))
  const [used, clients] = [server() - before, await crowd.cpuMs() - client]
  check(suite, `${count} streams: changes that came to each, once`, [...arrivals.values()].filter((arrival) => arrival.count === count).length, writes)
  const lasts = acknowledged.map((at, number) => arrivals.get(number).at - at)
  figure({ suite, name: `commit to the last of ${count} streams, ${perSecond} writes/s, p99`, value: quantile(lasts, 0.99), unit: ' ms', at: '<=', target: 400, absolute: true,
    note: `p50 ${quantile(lasts, 0.5).toFixed(0)} ms; CPU a delivery: server ${((used * 1000) / (writes * count)).toFixed(1)} µs, clients ${((clients * 1000) / (writes * count)).toFixed(1)} µs` })
  figure({ suite, name: 'memory per stream', value: Math.max(idle, perStream()), unit: ' kB', at: '<=', target: 24, absolute: true, note: `${idle.toFixed(1)} kB before the first change` })
  await Promise.all([crowd.stop(), writer.stop()])
}

async function pglite({ cluster, database, sidecar }) {
  const rows = 100_000
  const schema = `create table items (${columns})`
  await database.psql(`${schema}; insert into items ${values(rows)}; call shapefeed.track('items')`)
  const client = startLoad('pglite')
  await client.call('start', schema)
  const server = () => clusterCpu(cluster.pid).total * 1000 + cpuMs(sidecar.pid)
  const [before, own] = [server(), await client.cpuMs()]
  const { ms, rows: came } = await client.call('sync', sidecar.url, 'items')
  const [used, clients] = [server() - before, await client.cpuMs() - own]
  check(suite, 'rows in the PGlite', came, rows)
  // Of the time that the client works; on a busy machine it also waits for a processor, which is nobody's idleness.
  figure({ suite, name: `${rows} rows into PGlite: server idle`, value: 1 - used / Math.min(ms, clients), at: '>=', target: 0.7,
    note: `${(ms / 1000).toFixed(1)} s; CPU: server ${used.toFixed(0)} ms, client ${clients.toFixed(0)} ms` })
  await client.stop()
}
