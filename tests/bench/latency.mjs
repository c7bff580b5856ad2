// From the acknowledgement of a commit to its arrival at a client that waits, one write at a time.
import { startSidecar, waitFor } from '../lib/index.mjs'
import { benchDatabase } from './lib/cluster.mjs'
import { startLoad } from './lib/load.mjs'
import { fsyncMedianMs } from './lib/machine.mjs'
import { check, figure, remark } from './lib/report.mjs'
import { quantile } from './lib/statistics.mjs'

const suite = 'latency'
const PER_SECOND = 50
const WRITES = 1000
const ROWS = 1000
/** Those that the client may still be waking up for. */
const UNCOUNTED = 50

const schema = `create table items (id int primary key, n int, title text, changed timestamptz);
  insert into items select i, -1, 'Title of item number ' || i, now() from generate_series(1, ${ROWS}) i;`
const statements = [
  `update items set n = $1::int, changed = now() where id = 1 + $1::int % ${ROWS}`,
  `insert into items values (${ROWS} + 1 + $1::int, $1::int, 'Title of a new item', now())`,
]

export async function latency(cluster) {
  const database = await benchDatabase(cluster)
  await database.psql(schema)
  const sidecar = await startSidecar({ databaseUrl: database.url })
  const [plain, stock, writer] = ['follower', 'stock', 'writer'].map(startLoad)
  await plain.call('connect', sidecar.url, { table: 'items' })
  await plain.call('catchUp')

  const following = plain.call('follow', WRITES, 'n')
  const acknowledged = await writer.call('write', database.url, statements, { perSecond: PER_SECOND, count: WRITES })
  const arrivals = (await following).flatMap(({ at, values }) => values.map((value) => ({ at, value })))
  report('plain HTTP', acknowledged, arrivals, { isTarget: true })
  remark({ suite, name: 'CPU of writer and client', value: (await writer.cpuMs() + await plain.cpuMs()) / WRITES, unit: ' ms a write' })

  await stock.call('catchUp', sidecar.url, { table: 'items' }, 'n')
  const again = await writer.call('write', database.url, statements, { perSecond: PER_SECOND, count: WRITES / 2, first: WRITES })
  const came = await waitFor(async () => {
    const seen = await stock.call('arrivals')
    return seen.length >= WRITES / 2 && seen
  }, { what: 'the stock client has everything' })
  report('@electric-sql/client', again, came, { first: WRITES })

  await Promise.all([plain, stock, writer].map((load) => load.stop()))
  await sidecar.stop()
  await database.client.end()
  await database.drop()
}

function report(client, acknowledged, arrivals, { isTarget = false, first = 0 }) {
  const numbers = arrivals.map(({ value }) => Number(value) - first)
  check(suite, `${client}: writes that came`, new Set(numbers).size, acknowledged.length)
  check(suite, `${client}: writes that came more than once`, numbers.length - new Set(numbers).size, 0)
  const latencies = arrivals.map(({ at }, i) => at - acknowledged[numbers[i]]).slice(UNCOUNTED)
  const fsync = fsyncMedianMs()
  const note = `fsync ${fsync.toFixed(2)} ms; least ${quantile(latencies, 0).toFixed(2)}, most ${quantile(latencies, 1).toFixed(2)} ms`
  const entry = { suite, unit: ' ms', absolute: true, latencies }
  const [p50, p99] = [0.5, 0.99].map((q) => quantile(latencies, q))
  if (isTarget) {
    figure({ ...entry, name: `commit to client at ${PER_SECOND} writes/s, p50`, value: p50, at: '<=', target: 1.5 + fsync, note })
    figure({ ...entry, name: `commit to client at ${PER_SECOND} writes/s, p99`, value: p99, at: '<=', target: 12 })
  } else {
    remark({ ...entry, name: `${client}, p50`, value: p50, note })
    remark({ ...entry, name: `${client}, p99`, value: p99 })
  }
}
