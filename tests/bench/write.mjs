// Transactions of clients through POST /v1/write, beside the same by SQL; and from sending one to its arrival at another client.
import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { startSidecar } from '../lib/index.mjs'
import { bearer, token } from '../lib/jwt.mjs'
import { pgBin, scratchDir } from '../lib/paths.mjs'
import { benchDatabase } from './lib/cluster.mjs'
import { startLoad } from './lib/load.mjs'
import { clusterCpu, cpuMs } from './lib/processes.mjs'
import { check, figure, remark } from './lib/report.mjs'
import { median, quantile } from './lib/statistics.mjs'

const run = promisify(execFile)
const suite = 'write'
const secret = 'a secret of the benchmarks, long enough for HS256'
const CLIENTS = 8
const TRANSACTIONS = 250
const ROUNDS = 3
const PER_SECOND = 50
const WRITES = 500

const schema = `create role writer;
  create table items (id int primary key, n int, title text, owner text not null default current_setting('request.jwt.claims')::json ->> 'sub');
  alter table items enable row level security;
  create policy own on items using (owner = current_setting('request.jwt.claims', true)::json ->> 'sub');
  grant select, insert, update, delete on items to writer;
  call shapefeed.track('items'); call shapefeed.allow_writes('items');`

// What a server of one's own would do for the same: the role and claims, the row, a record that it was done.
const bySql = `begin;
  set local role writer;
  select set_config('request.jwt.claims', '{"sub": "1", "role": "writer"}', true);
  insert into items (id, n, title) values (nextval('numbers'), 1, 'Title of a new item');
  reset role;
  insert into done values (gen_random_uuid(), 1);
  commit;`

export async function write(cluster) {
  const database = await benchDatabase(cluster)
  await database.psql(`${schema} create sequence numbers start 100000000; create table done (client uuid, seq int, primary key (client, seq)); grant usage on numbers to writer;`)
  const sidecar = await startSidecar({ databaseUrl: database.url, env: { SHAPEFEED_JWT_SECRET: secret, SHAPEFEED_ROLES: 'writer', SHAPEFEED_WRITE_RATE: '0', SHAPEFEED_WRITE_POOL_SIZE: String(CLIENTS) } })
  const headers = bearer(token({ role: 'writer', sub: '1' }, secret))
  await throughput(cluster, database, sidecar, headers)
  await latency(sidecar, headers)
  await sidecar.stop()
  await database.client.end()
  await database.drop()
}

async function throughput(cluster, database, sidecar, headers) {
  const poster = startLoad('poster')
  const script = join(scratchDir('pgbench'), 'write.sql')
  writeFileSync(script, bySql)
  const viaSql = () => run(join(pgBin, 'pgbench'), ['-n', '-M', 'prepared', '-c', String(CLIENTS), '-j', '1', '-t', String(TRANSACTIONS), '-f', script, database.url])
  let first = 0
  const viaHttp = async () => {
    await poster.call('write', sidecar.url, headers, { clients: CLIENTS, count: TRANSACTIONS, first })
    first += CLIENTS * TRANSACTIONS
  }
  const measured = { sql: [], http: [] }
  for (let round = 0; round <= ROUNDS; round++) {
    for (const [name, perform] of round % 2 ? [['sql', viaSql], ['http', viaHttp]] : [['http', viaHttp], ['sql', viaSql]]) {
      const before = { at: Date.now(), postgres: clusterCpu(cluster.pid).total, sidecar: cpuMs(sidecar.pid) }
      await perform()
      const seconds = (Date.now() - before.at) / 1000
      const postgresMs = (clusterCpu(cluster.pid).total - before.postgres) * 1000
      const count = CLIENTS * TRANSACTIONS
      if (round) measured[name].push({ tps: count / seconds, postgres: postgresMs / count, sidecar: (cpuMs(sidecar.pid) - before.sidecar) / count })
    }
  }
  const of = (name, what) => median(measured[name].map((it) => it[what]))
  const { rows } = await database.client.query('select count(*)::int as n from items where id < 100000000')
  check(suite, 'transactions that are there', rows[0].n, first)
  remark({ suite, name: `${CLIENTS} clients by SQL`, value: of('sql', 'tps'), unit: ' tx/s' })
  remark({ suite, name: `${CLIENTS} clients by POST /v1/write`, value: of('http', 'tps'), unit: ' tx/s', note: 'each waits for its position' })
  remark({ suite, name: 'CPU of the sidecar', value: of('http', 'sidecar'), unit: ' ms a transaction' })
  remark({ suite, name: 'CPU of Postgres by SQL', value: of('sql', 'postgres'), unit: ' ms a transaction' })
  remark({ suite, name: 'CPU of Postgres by POST', value: of('http', 'postgres'), unit: ' ms a transaction' })
  figure({ suite, name: 'CPU of Postgres, POST / SQL', value: of('http', 'postgres') / of('sql', 'postgres'), at: '<=', target: 2.5 })
  await poster.stop()
}

async function latency(sidecar, headers) {
  const [follower, poster] = ['follower', 'poster'].map(startLoad)
  await follower.call('connect', sidecar.url, { table: 'items', where: 'id >= 500000000' }, headers)
  await follower.call('catchUp')
  const following = follower.call('follow', WRITES, 'n')
  const first = 500_000_000
  const [sent] = await poster.call('write', sidecar.url, headers, { count: WRITES, first, perSecond: PER_SECOND })
  const arrivals = (await following).flatMap(({ at, values }) => values.map((value) => ({ at, n: Number(value) - first })))
  check(suite, 'writes that came', new Set(arrivals.map(({ n }) => n)).size, WRITES)
  const latencies = arrivals.map(({ at, n }) => at - sent[n]).slice(50)
  const [p50, p99] = [0.5, 0.99].map((q) => quantile(latencies, q))
  figure({ suite, name: `POST to another client at ${PER_SECOND} writes/s, p50`, value: p50, unit: ' ms', at: '<=', target: 5, absolute: true })
  figure({ suite, name: `POST to another client at ${PER_SECOND} writes/s, p99`, value: p99, unit: ' ms', at: '<=', target: 25, absolute: true })
  await Promise.all([follower.stop(), poster.stop()])
}
