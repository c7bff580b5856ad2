// One large transaction on a table that a client follows: until the last byte of it is there.
import { startSidecar } from '../lib/index.mjs'
import { benchDatabase } from './lib/cluster.mjs'
import { columns, values } from './lib/items.mjs'
import { nowMs, startLoad } from './lib/load.mjs'
import { clusterCpu, cpuMs } from './lib/processes.mjs'
import { check, figure } from './lib/report.mjs'
import { median } from './lib/statistics.mjs'

const suite = 'transaction'
const ROWS = 50_000
const ROUNDS = 3

const works = {
  'INSERT of 50,000 rows': `insert into items ${values(ROWS)}`,
  'UPDATE of 50,000 rows': `update items set n = n + 1, title = title || '!'`,
  'DELETE of 50,000 rows': 'delete from items',
}

export async function transaction(cluster) {
  const database = await benchDatabase(cluster)
  const { client } = database
  await database.psql(`create table items (${columns})`)
  const sidecar = await startSidecar({ databaseUrl: database.url })
  const follower = startLoad('follower')
  await follower.call('connect', sidecar.url, { table: 'items' })
  await follower.call('catchUp')
  const results = Object.fromEntries(Object.keys(works).map((name) => [name, []]))
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, statement] of Object.entries(works)) {
      results[name].push(await one(cluster, client, sidecar, follower, name, statement))
      await client.query('vacuum items')
    }
  }
  for (const [name, rounds] of Object.entries(results)) report(name, rounds)
  await follower.stop()
  await sidecar.stop()
  await client.end()
  await database.drop()
}

async function one(cluster, client, sidecar, follower, name, statement) {
  const following = follower.call('follow', ROWS, 'id')
  await client.query('begin')
  const { rowCount } = await client.query(statement)
  const before = { server: clusterCpu(cluster.pid).total * 1000, sidecar: cpuMs(sidecar.pid), client: await follower.cpuMs() }
  await client.query('commit')
  const committed = nowMs()
  const answers = await following
  const ids = answers.flatMap(({ values }) => values)
  check(suite, `${name}: operations at the client`, ids.length, rowCount)
  check(suite, `${name}: rows at the client`, new Set(ids).size, ROWS)
  return {
    ms: answers.at(-1).at - committed,
    bytes: answers.reduce((sum, { bytes }) => sum + bytes, 0),
    server: clusterCpu(cluster.pid).total * 1000 - before.server,
    sidecar: cpuMs(sidecar.pid) - before.sidecar,
    client: await follower.cpuMs() - before.client,
  }
}

function report(name, rounds) {
  const of = (field) => median(rounds.map((round) => round[field]))
  const note = `${(of('bytes') / 2 ** 20).toFixed(1)} MiB; CPU in ms: server ${of('server').toFixed(0)} from COMMIT on, ` +
    `sidecar ${of('sidecar').toFixed(0)}, client ${of('client').toFixed(0)}`
  figure({ suite, name: `${name} at the client after commit`, value: of('ms') / 1000, unit: ' s', at: '<=', target: 2, absolute: true, note, rounds })
}
