// Those that are behind: clients that come back after a while, and snapshots as of a position that is long gone.
import { waitFor } from '../lib/index.mjs'
import { untilSequenced } from './lib/log.mjs'
import { startLoad } from './lib/load.mjs'
import { clusterCpu, cpuMs, cpuSeconds } from './lib/processes.mjs'
import { check, figure, remark } from './lib/report.mjs'
import { median, quantile } from './lib/statistics.mjs'

const suite = 'serving'

const table = `create table items (id int primary key, company_id int, n int, title text);
  create index on items (company_id);`
const rows = (count, companies) => `insert into items
  select i, i % ${companies}, -1, 'Title of item number ' || i from generate_series(0, ${count - 1}) i;`

const transactions = 300_000
const companies = 1000
const shapeOf = (k) => ({ table: 'items', where: `company_id = ${k}` })

/** 5,000 clients of one shape are away while 300,000 transactions pass, ten minutes at 500 a second; others stay and are looked at. */
export const comeBack = (site) => awayAndBack(site, 'clients', [shapeOf(7)])

/** The same of 500 shapes with ten clients each. */
export const comeBackToMany = (site) => awayAndBack(site, 'clients of 500 shapes', Array.from({ length: 500 }, (_, k) => shapeOf(k)))

async function awayAndBack(site, who, shapes) {
  const [count, perSecond, staying] = [5000, 50, 20]
  await site.database.psql(`${table} ${rows(10 * companies, companies)}`)
  await site.clients.call('open', site.sidecar.url, count, shapes)
  await site.clients.call('toTheEnd')
  await pass(site, transactions, 10 * companies)

  const [stayers, writer] = [startLoad('clients'), startLoad('writer')]
  await stayers.call('open', site.sidecar.url, staying, [shapeOf(companies - 1)])
  await stayers.call('goLive')
  const write = (first, count) => writer.call('write', site.database.url, [`update items set n = $1::int where id = ${companies - 1}`], { perSecond, count, first })
  /** Latencies of those that stay while writes go on for as long as `until` takes. */
  const latencies = async (first, until) => {
    const acknowledged = []
    let over = false
    const done = until().finally(() => { over = true })
    do {
      acknowledged.push(...await write(first + acknowledged.length, 3 * perSecond))
    } while (!over)
    const came = []
    await waitFor(async () => {
      came.push(...(await stayers.call('take', 'n')).flatMap(({ at, values }) => values.map((n) => ({ at, n }))))
      return came.length >= acknowledged.length * staying
    }, { timeoutMs: 60_000, what: 'those that stayed have everything' })
    check(suite, `${staying} clients that stay: changes that they got`, came.length, acknowledged.length * staying)
    return { result: await done, writes: acknowledged.length, p99: quantile(came.map(({ at, n }) => at - acknowledged[n - first]), 0.99) }
  }
  const before = await latencies(0, async () => {})
  const started = serverCpuMs(site)
  const during = await latencies(1_000_000, () => site.clients.call('returnAtOnce'))
  const { ms, operations, different } = during.result
  check(suite, `${count} ${who} that come back: operations of each`, operations.join(), `${transactions / companies}`)
  check(suite, `${count} ${who} that come back: those with others than the rest of their shape`, different, 0)
  figure({ suite, name: `${count} ${who} back after ${transactions} transactions, the last`, value: ms / 1000, unit: ' s', at: '<=', target: 20, absolute: true,
    note: `server CPU ${(serverCpuMs(site) - started).toFixed(0)} ms, with that of ${during.writes} writes meanwhile` })
  figure({ suite, name: `${who} come back: p99 of those that stay meanwhile, of before`, value: during.p99 / before.p99, at: '<=', target: 3, absolute: true,
    note: `${before.p99.toFixed(1)} -> ${during.p99.toFixed(1)} ms` })
  await stayers.stop()
  await writer.stop()
}

const serverCpuMs = ({ cluster, sidecar }) => clusterCpu(cluster.pid).total * 1000 + cpuMs(sidecar.pid)

/** `count` transactions of a row each, as fast as they can be made. */
async function pass({ database }, count, items) {
  const sessions = 3
  const one = async (k) => {
    const client = await database.connect()
    await client.query('set synchronous_commit = off')
    await client.query(`do $$ begin
      for i in 0..${count / sessions - 1} loop
        update items set n = n + 1 where id = (i * ${sessions} + ${k}) % ${items};
        commit;
      end loop;
    end $$`)
    await client.end()
  }
  await Promise.all(Array.from({ length: sessions }, (_, k) => one(k)))
  await untilSequenced(database.client)
}

/** A chunk of a snapshot with many changes after its position, and with few. */
export async function asOf({ database }) {
  const [items, few, many, rounds] = [100_000, 1000, 1_000_000, 3]
  await database.psql(`${table} ${rows(items, 1)} call shapefeed.track('items');`)
  const { client } = database
  const change = async (count) => {
    await client.query('update items set n = n + 1 where id < $1', [count])
    await untilSequenced(client)
  }
  const pin = async () => (await client.query('select head from shapefeed._head()')).rows[0].head
  await untilSequenced(client)
  const old = await pin()
  for (let changed = 0; changed < many; changed += items) await change(items)
  const recent = await pin()
  await change(few)
  await client.query('vacuum analyze items')
  const costs = { few: [], many: [] }
  const firsts = []
  for (let round = 0; round < rounds; round++) {
    const [of, then] = [await read(database, recent), await read(database, old)]
    check(suite, 'rows of a snapshot as of a position', `${of.rows} ${then.rows}`, `${items} ${items}`)
    costs.few.push(of.chunkMs)
    costs.many.push(then.chunkMs)
    firsts.push(then.firstMs)
  }
  figure({ suite, name: `chunk of 1000 rows as of ${many} changes ago, of ${few}`, value: median(costs.many) / median(costs.few), at: '<=', target: 2,
    note: `${median(costs.few).toFixed(2)} -> ${median(costs.many).toFixed(2)} ms of CPU` })
  remark({ suite, name: `reading ${many} changes once, before the first chunk`, value: median(firsts), unit: ' ms of CPU' })
}

/** A snapshot, read chunk by chunk: rows, CPU up to the end of the first chunk, and of 1000 rows after that. */
async function read(database, position) {
  const client = await database.connect()
  const { rows: [{ pid, definition }] } = await client.query(`select pg_backend_pid() as pid,
    shapefeed._define('{public,items}', null, null, null, 'default', 'full', null)::text as definition`)
  const backendMs = () => cpuSeconds(pid) * 1000
  await client.query('begin')
  const literal = client.escapeLiteral(definition)
  const began = backendMs()
  await client.query(`declare pieces no scroll cursor for
    select piece from (select shapefeed._snapshot(${literal}, ${position}, 100000, null) as piece) p`)
  const counts = { first: 0, all: 0 }
  let firstMs
  for (let ended = false; !ended;) {
    const { rows: [{ piece }] } = await client.query('fetch pieces')
    const kind = String.fromCharCode(piece[0])
    if (kind === 'D') counts.all += piece.toString().split('"operation":"').length - 1
    else if (firstMs === undefined) [firstMs, counts.first] = [backendMs() - began, counts.all]
    ended = kind === 'E'
  }
  const chunkMs = (backendMs() - began - firstMs) * 1000 / (counts.all - counts.first)
  await client.query('rollback')
  await client.end()
  return { rows: counts.all, firstMs, chunkMs }
}
