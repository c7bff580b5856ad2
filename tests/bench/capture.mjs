// What capturing costs writers: the same work on a table with our trigger and on its twin without, by turns.
import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { pgBin, scratchDir } from '../lib/index.mjs'
import { benchDatabase, sequencerOf } from './lib/cluster.mjs'
import { columns, values } from './lib/items.mjs'
import { countLogged, untilSequenced } from './lib/log.mjs'
import { clusterCpu } from './lib/processes.mjs'
import { check, figure, remark } from './lib/report.mjs'
import { median } from './lib/statistics.mjs'

const run = promisify(execFile)
const ROUNDS = 5
const BULK_ROUNDS = 9
const ROWS = 100_000
const CLIENTS = 4
const TWINS = ['plain', 'tracked']

const filled = (fillfactor) => TWINS.map((twin) => `create table ${twin} (${columns}) with (fillfactor = ${fillfactor});
  insert into ${twin} ${values(ROWS)};`).join('\n')

const setUp = {
  empty: TWINS.map((twin) => `create table ${twin} (${columns}); create sequence ${twin}_ids cache 1000;`).join('\n'),
  filled: filled(100),
  roomy: filled(45),
  source: `create table source as ${values(ROWS)};
    ${TWINS.map((twin) => `create table ${twin} (${columns});`).join('\n')}`,
  counters: TWINS.map((twin) => `create table ${twin} (id int primary key, n int not null, body text);
    alter table ${twin} alter body set storage external;
    insert into ${twin} select i, 0, string_agg(md5(i::text || j), '') from generate_series(1, 20) i,
      generate_series(1, 32768) j group by i;`).join('\n'),
}

const insertOne = (twin) => `insert into ${twin} values (nextval('${twin}_ids'), 0, 42, 'Title of a new item',
  'open', 12.34, '{"who": "user7", "tags": ["a", "b", "c"]}', now());\n`
const updateOne = (twin) => `\\set id random(1, ${ROWS})\nupdate ${twin} set n = n + 1 where id = :id;\n`
const bump = (twin) => `\\set id random(1, 20)\nupdate ${twin} set n = n + 1 where id = :id;\n`

/** Single-row work by pgbench; `transactions` of each client in each round. */
const singleRow = {
  'UPDATE, synchronous_commit off': { tables: 'filled', script: updateOne, kind: 'U', commit: 'off', transactions: 8000, cpu: 1.4 },
  'INSERT, synchronous_commit off': { tables: 'empty', script: insertOne, kind: 'I', commit: 'off', transactions: 10000, cpu: 1.8 },
  'UPDATE, synchronous_commit on': { tables: 'filled', script: updateOne, kind: 'U', commit: 'on', transactions: 800, tps: 0.85 },
  'INSERT, synchronous_commit on': { tables: 'empty', script: insertOne, kind: 'I', commit: 'on', transactions: 800, tps: 0.85 },
  'counter beside 1 MB': { tables: 'counters', script: bump, kind: 'U', commit: 'off', transactions: 2000, cpu: 2, wal: 2048 },
}

/** One statement over 100,000 rows; `after` puts the table back, unmeasured. */
const bulk = {
  'bulk INSERT of 100k rows': {
    tables: 'source', kind: 'I', cpu: 1.4,
    statement: (twin) => `insert into ${twin} select * from source`, after: (twin) => `truncate ${twin}` },
  'bulk UPDATE of 100k rows': {
    tables: 'filled', kind: 'U', cpu: 1.9,
    statement: (twin) => `update ${twin} set n = n + 1`, after: (twin) => `vacuum ${twin}` },
  'bulk UPDATE of 100k rows, room for HOT': {
    tables: 'roomy', kind: 'U',
    statement: (twin) => `update ${twin} set n = n + 1`, after: (twin) => `vacuum ${twin}` },
}

/** Those whose name has a match of `only`, a regular expression. */
export async function capture(cluster, only = '') {
  const chosen = (works) => Object.entries(works).filter(([name]) => new RegExp(only).test(name))
  for (const [name, work] of chosen(singleRow)) await compare(cluster, name, { rounds: ROUNDS, ...work }, pgbench)
  for (const [name, work] of chosen(bulk)) await compare(cluster, name, { rounds: BULK_ROUNDS, ...work }, oneStatement)
}

/** Rounds by turns, twin after twin and then in the other order, after one that does not count. */
async function compare(cluster, name, work, perform) {
  const database = await benchDatabase(cluster)
  await database.psql(setUp[work.tables])
  await database.psql('call shapefeed.track($$tracked$$); vacuum analyze; checkpoint;')
  await untilSequenced(database.client)
  const rounds = []
  for (let round = 0; round <= work.rounds; round++) {
    const order = round % 2 ? TWINS : [...TWINS].reverse()
    const results = {}
    for (const twin of order) results[twin] = await measured(cluster, database, () => perform(database, work, twin))
    if (round > 0) rounds.push(results)
  }
  report(name, work, rounds)
  await checkLog(database, name, work)
  await database.client.end()
  await database.drop()
}

/** Does the work, then waits for its backends to end and for the sequencer, so that the account is complete. */
async function measured(cluster, database, perform) {
  const { client } = database
  const sequencer = await sequencerOf(database)
  const wal = async () => (await client.query(`select pg_current_wal_insert_lsn() - '0/0' as at`)).rows[0].at
  const [cpu, at] = [clusterCpu(cluster.pid, sequencer), Number(await wal())]
  const { tps, rows, after } = await perform()
  await untilSequenced(client)
  const [cpuAfter, atAfter] = [clusterCpu(cluster.pid, sequencer), Number(await wal())]
  await after()
  const [total, ofSequencer] = [cpuAfter.total - cpu.total, cpuAfter.sequencer - cpu.sequencer]
  return {
    tps,
    cpuUs: ((total - ofSequencer) / rows) * 1e6,
    sequencerUs: (ofSequencer / rows) * 1e6,
    walBytes: (atAfter - at) / rows,
  }
}

const dir = scratchDir('pgbench')

async function pgbench(database, { script, commit, transactions }, twin) {
  const file = join(dir, 'script.sql')
  writeFileSync(file, script(twin))
  const { stdout } = await run(join(pgBin, 'pgbench'),
    ['-n', '-M', 'prepared', '-c', String(CLIENTS), '-j', '1', '-t', String(transactions), '-f', file, database.url],
    { env: { ...process.env, PGOPTIONS: `-c synchronous_commit=${commit}` } })
  await untilAlone(database.client)
  const tps = Number(stdout.match(/tps = ([\d.]+) \(without/)[1])
  return { tps, rows: CLIENTS * transactions, after: () => database.psql('vacuum;') }
}

/** Backends that pgbench leaves end a moment after it. */
async function untilAlone(client) {
  const others = `select count(*) from pg_stat_activity
                  where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()`
  while ((await client.query(others)).rows[0].count !== '0') await new Promise((resolve) => setTimeout(resolve, 5))
}

async function oneStatement(database, { statement, after }, twin) {
  await database.client.query('set synchronous_commit = off')
  const { rowCount } = await database.client.query(statement(twin))
  return { rows: rowCount, after: () => database.client.query(after(twin)) }
}

function report(name, work, rounds) {
  const suite = 'capture'
  const ratio = (of) => median(rounds.map(({ plain, tracked }) => of(tracked) / of(plain)))
  const of = (twin, field) => median(rounds.map((round) => round[twin][field]))
  const writers = ratio(({ cpuUs }) => cpuUs)
  if (work.tps) {
    const note = `${of('plain', 'tps').toFixed(0)} -> ${of('tracked', 'tps').toFixed(0)} tps`
    figure({ suite, name: `${name}: tps of no trigger`, value: ratio(({ tps }) => tps), at: '>=', target: work.tps, note, rounds })
  }
  const all = ratio(({ cpuUs, sequencerUs }) => cpuUs + sequencerUs)
  const note = `${of('plain', 'cpuUs').toFixed(1)} -> ${of('tracked', 'cpuUs').toFixed(1)} µs a row, sequencer ` +
    `${of('tracked', 'sequencerUs').toFixed(1)} more: ${all.toFixed(2)}x with it`
  const cpu = { suite, name: `${name}: server CPU`, value: writers, unit: 'x', note, withSequencer: all, rounds }
  if (work.cpu) figure({ ...cpu, at: '<=', target: work.cpu })
  else remark(cpu)
  if (work.wal) {
    const note = `${of('plain', 'walBytes').toFixed(0)} without`
    figure({ suite, name: `${name}: WAL`, value: of('tracked', 'walBytes'), unit: ' B', at: '<=', target: work.wal, note })
  }
}

/** Every change is in the log, once, and nothing else. */
async function checkLog(database, name, { kind, rounds, transactions }) {
  const logged = await countLogged(database.client, 'tracked')
  const changes = (rounds + 1) * (transactions ? CLIENTS * transactions : ROWS)
  const others = { U: 'I', I: 'U' }
  check('capture', `${name}: changes in the log`, logged[kind], changes)
  check('capture', `${name}: others in the log`, logged[others[kind]] + logged.D, 0)
  if (transactions) check('capture', `${name}: positions`, logged.transactions, changes + 1) // and that of track()
}
