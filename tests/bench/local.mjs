// The client of client/ beside the stock pglite-sync, both into PGlite in Node: a first sync, and from a commit to a live query.
import { startSidecar, waitFor } from '../lib/index.mjs'
import { benchDatabase } from './lib/cluster.mjs'
import { columns, sumOf, values } from './lib/items.mjs'
import { startLoad } from './lib/load.mjs'
import { check, figure, remark } from './lib/report.mjs'
import { median, quantile } from './lib/statistics.mjs'

const suite = 'local'

// In its fastest mode the stock library cannot take a bigint.
const schema = `create table items (${columns.replace('bigint', 'int')})`
const query = 'select n from items where id = 7'

const parts = { first, live }

/** Those whose name has a match of `only`, a regular expression. */
export async function local(cluster, only = '') {
  for (const [name, part] of Object.entries(parts)) {
    if (!new RegExp(only).test(name)) continue
    const database = await benchDatabase(cluster)
    const sidecar = await startSidecar({ databaseUrl: database.url })
    try {
      await part({ database, sidecar })
    } finally {
      await sidecar.stop()
      await database.client.end()
      await database.drop()
    }
  }
}

/** A client that has the table: [its process, what `sync` said]. */
async function synced({ sidecar }, name, ...mode) {
  const client = startLoad(name)
  await client.call('start', schema, sidecar.url)
  return [client, await client.call('sync', sidecar.url, 'items', ...mode)]
}

/**
 * 100,000 rows into a new database: the stock library as it comes, which has the server take the snapshot, then by turns the
 * stock library in its fastest mode and ours.
 */
async function first(site) {
  const rows = 100_000
  await site.database.psql(`${schema}; insert into items ${values(rows)}; call shapefeed.track('items')`)
  await site.database.client.query("set timezone to 'UTC'")
  const { rows: [there] } = await site.database.client.query(sumOf('items'))
  const measure = async (who, name, ...mode) => {
    const [client, { ms, firstMs, rows: came, sum }] = await synced(site, name, ...mode)
    check(suite, `${who}: rows, and sum of all values`, `${came} ${sum}`, `${rows} ${there.sum}`)
    await client.stop()
    return { ms, firstMs }
  }
  const asItComes = await measure('stock, insert', 'pglite')
  remark({ suite, name: `${rows} rows into PGlite, stock, insert`, value: asItComes.ms / 1000, unit: ' s' })
  const [stock, ours] = [[], []]
  for (let round = 0; round < 4; round++) {
    const turns = [async () => stock.push(await measure('stock, json', 'pglite', 'json')), async () => ours.push(await measure('ours', 'local'))]
    for (const turn of round % 2 ? turns.reverse() : turns) await turn()
  }
  const [stockMs, oursMs, firstMs] = [stock.map(({ ms }) => ms), ours.map(({ ms }) => ms), ours.map((one) => one.firstMs)].map(median)
  remark({ suite, name: `${rows} rows into PGlite, stock, json`, value: stockMs / 1000, unit: ' s' })
  const best = Math.min(stockMs, asItComes.ms)
  figure({ suite, name: `${rows} rows into PGlite: stock pglite-sync at its best, to ours`, value: best / oursMs, unit: '×', at: '>=', target: 1.3 })
  figure({ suite, name: `${rows} rows into PGlite, the last`, value: oursMs / 1000, unit: ' s', at: '<=', target: 10, absolute: true })
  figure({ suite, name: `${rows} rows into PGlite, the first of a live query`, value: firstMs / 1000, unit: ' s', at: '<=', target: 2, absolute: true })
}

/** With 10,000 rows: from a commit at the server, and from a write here, to the callback of a live query. */
async function live(site) {
  const [rows, count, perSecond] = [10_000, 100, 3]
  await site.database.psql(`${schema}; insert into items ${values(rows)}; call shapefeed.track('items'); call shapefeed.allow_writes('items')`)
  const clients = {}
  for (const [who, name, ...mode] of [['stock', 'pglite', 'json'], ['ours', 'local']]) {
    clients[who] = (await synced(site, name, ...mode))[0]
    await clients[who].call('watch', query)
  }
  const writer = startLoad('writer')
  const acknowledged = await writer.call('write', site.database.url, ['update items set n = $1::int where id = 7'], { perSecond, count, first: 1000 })
  for (const [who, client] of Object.entries(clients)) {
    const all = () => client.call('seen')
    await waitFor(async () => (await all()).some(({ n }) => n === 1000 + count - 1), { what: `${who} has the last change` })
    const seen = new Map((await all()).reverse().map(({ n, at }) => [n, at]))
    // A newer value may be seen in place of an older one.
    const at = (n) => Math.min(...[...seen].filter(([newer]) => newer >= n).map(([, instant]) => instant))
    const latencies = acknowledged.map((instant, i) => at(1000 + i) - instant)
    const [p50, p95] = [0.5, 0.95].map((q) => quantile(latencies, q))
    if (who !== 'ours') {
      remark({ suite, name: `commit to a live query, ${who}, p50 and p95`, value: p50, unit: ` and ${p95.toFixed(0)} ms` })
      continue
    }
    figure({ suite, name: 'commit to a live query, p50', value: p50, unit: ' ms', at: '<=', target: 60, absolute: true })
    figure({ suite, name: 'commit to a live query, p95', value: p95, unit: ' ms', at: '<=', target: 150, absolute: true })
  }
  const own = await clients.ours.call('write', 'update items set n = $1 where id = 7', { first: 5000, count: 50 })
  figure({ suite, name: 'local write to a live query, p50', value: quantile(own, 0.5), unit: ' ms', at: '<=', target: 50, absolute: true })
  figure({ suite, name: 'local write to a live query, p95', value: quantile(own, 0.95), unit: ' ms', at: '<=', target: 150, absolute: true })
  await waitFor(async () => (await site.database.client.query(query)).rows[0].n === 5049, { what: 'the last local write is on the server' })
  check(suite, 'what the server has after local writes', (await site.database.client.query(query)).rows[0].n, 5049)
  for (const client of [writer, ...Object.values(clients)]) await client.stop()
}
