// Writers of every isolation level, their statements interleaved in every way: what committed has one position, in the
// order of commits, and what was refused or rolled back to a savepoint is nowhere.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { scale, sleep, startCluster } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'
import { replay, trackedDatabase } from '../pitfalls/setup.mjs'

const levels = ['read committed', 'repeatable read', 'serializable']
const xid = 'select pg_current_xact_id()::text xid'

/** Steps of three transactions. What they do to a row does not commute, so a wrong order shows in the old images. */
const scripts = [
  ['savepoint s; update n set v = -1 where id = 3; rollback to s; update n set v = v + 1 where id = 4',
    'savepoint s; update n set v = (v * 2 + 1) % 1000 where id = 1; release s'],
  ['savepoint s; update n set v = (v * 3 + 2) % 1000 where id = 2; release s',
    'update n set v = (v * 3 + 2) % 1000 where id = 1; insert into n select max(id) + 1, 0 from n'],
  ['savepoint s; delete from n where id = 1; savepoint t; insert into n values (1, 7); release t; release s',
    'update n set v = v + 5 where id = 2'],
]

/** All orders in which so many steps of each can be taken: lists of whose turn it is. */
function interleavings(counts) {
  if (counts.every((count) => count === 0)) return [[]]
  return counts.flatMap((count, who) => (count === 0 ? [] :
    interleavings(counts.with(who, count - 1)).map((rest) => [who, ...rest])))
}

/** Takes steps in the order of `turns`; one that waits for a lock is left waiting. Returns the transactions. */
async function run(turns, sessions, chosen, clock) {
  const transactions = chosen.map((level, who) => ({ level, who, steps: [`begin isolation level ${level}`, ...scripts[who], 'commit'] }))
  // The first statement goes along with BEGIN: that is when the snapshot is taken.
  for (const { steps } of transactions) steps.splice(0, 2, `${steps[0]}; ${steps[1]}; ${xid}`)
  const tails = chosen.map(() => Promise.resolve())
  for (const who of turns) {
    let settled = false
    tails[who] = tails[who].then(() => step(transactions[who], sessions[who].client, clock)).finally(() => { settled = true })
    while (!settled && !await sessions.isBlocked(who)) await sleep(0)
    if (!settled) transactions[who].waited = true
  }
  await Promise.all(tails)
  return transactions
}

async function step(transaction, client, clock) {
  const text = transaction.steps.shift()
  if (text === 'commit') transaction.sent = clock.now++
  try {
    const result = await client.query(text)
    if (Array.isArray(result)) transaction.xid ??= result.at(-1).rows[0]?.xid
    if (text === 'commit') transaction.committed = result.command === 'COMMIT'
    if (transaction.committed) transaction.ended = clock.now++
  } catch (error) {
    if (text === 'commit') await client.query('rollback')
    transaction.refused ??= error.code
  }
}

async function openSessions(database) {
  const sessions = await Promise.all(scripts.map(async () => {
    const client = await database.connect()
    return { client, pid: (await client.query('select pg_backend_pid() pid')).rows[0].pid }
  }))
  sessions.isBlocked = async (who) => (await database.query('select pg_blocking_pids($1) pids', [sessions[who].pid]))[0].pids.length > 0
  return sessions
}

/** Schedules: all of two writers at all pairs of levels, and some of three. */
function schedules() {
  const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? Date.now() % 1e6)
  console.log(`SHAPEFEED_TEST_SEED=${seed}`)
  const random = randomFrom(seed)
  const two = interleavings([3, 3, 0]).flatMap((turns) => levels.flatMap((a) => levels.map((b) => [turns, [a, b]])))
  const three = interleavings([3, 3, 3])
  return [...two, ...Array.from({ length: 150 * scale }, () => [random.pick(three), scripts.map(() => random.pick(levels))])]
}

test('every interleaving of writers at every isolation level is in the log in the order of its commits', async (t) => {
  const cluster = await startCluster({ conf: ['deadlock_timeout=10ms'] })
  t.after(() => cluster.stop())
  const database = await trackedDatabase(cluster, 'create table n (id int primary key, v int)', ['n'])
  await database.query('insert into n select g, 0 from generate_series(1, 4) g')
  const sessions = await openSessions(database)
  const clock = { now: 0 }
  const all = []
  for (const [turns, chosen] of schedules()) all.push(...await run(turns, sessions, chosen, clock))

  const log = await database.sequenced()
  assert.deepEqual(replay(log, 'n'), await database.query('select * from n order by id'))
  const committed = all.filter((transaction) => transaction.committed)
  const positions = new Map(log.map(({ xid: id, position }) => [id, BigInt(position)]))
  assert.deepEqual(log.slice(-committed.length).map(({ xid: id }) => id).sort(), committed.map(({ xid: id }) => id).sort(), 'what committed, and nothing else')
  const wrong = committed.flatMap((a) => committed.filter((b) => a.ended < b.sent && positions.get(a.xid) > positions.get(b.xid)).map((b) => [a, b]))
  assert.deepEqual(wrong, [], 'what ended before another one was to commit has the lower position')

  const count = (condition) => all.filter(condition).length
  const seen = { committed: committed.length, waited: count(({ waited }) => waited), deadlocks: count(({ refused }) => refused === '40P01'),
    notSerializable: count(({ refused }) => refused === '40001'), others: count(({ refused }) => refused && !/^40/.test(refused)),
    later: count((one) => one.committed && committed.some((other) => positions.get(other.xid) < positions.get(one.xid) && BigInt(other.xid) > BigInt(one.xid))) }
  console.log(seen)
  assert.ok(seen.waited > 100 && seen.deadlocks > 10 && seen.notSerializable > 100 && seen.later > 10 && seen.committed > 300, 'enough was to be seen')
})
