// When shapes that nobody follows are looked at, and what comes of it. The clock is the test's.
import assert from 'node:assert/strict'
import { mock, test } from 'node:test'
import { FetchError } from '../../client/node_modules/@electric-sql/client/dist/index.mjs'
import { Keeper } from '../../client/dist/keep.js'
import { newDatabase } from './lib/client.mjs'

const settled = () => new Promise(setImmediate)

/** A keeper of shapes, and what it did: { rounds: when, from its start, and up to when shapes must have been brought up to date }. */
async function kept(t, { shapes = [], catchUp = async () => {}, query, keepFor = 1 } = {}) {
  mock.timers.enable({ apis: ['setTimeout', 'Date'], now: 1e12 })
  const rounds = [], caught = [], forgotten = [], errors = []
  const keeper = new Keeper({
    pglite: {
      query: async (sql, params) => {
        rounds.push([Date.now() - 1e12, params[0] - 1e12])
        return query ? query(sql, params) : { rows: shapes.map((definition) => ({ definition, is_old: definition === 'old' })) }
      },
    },
    keepFor,
    catchUp: async (definition) => { caught.push(definition); await catchUp(definition) },
    forget: async (definition) => { forgotten.push(definition) },
    onError: (error) => errors.push(error.message),
  })
  t.after(async () => {
    await keeper.stop()
    mock.timers.reset()
  })
  keeper.start()
  /** Lets time pass, second by second. */
  const pass = async (seconds) => {
    for (let i = 0; i < seconds; i++) {
      mock.timers.tick(1000)
      await settled()
    }
  }
  return { keeper, rounds, caught, forgotten, errors, pass }
}

test('all shapes are looked at after the start and regularly, one that is released at once, all again when rights may have changed', async (t) => {
  const { keeper, rounds, pass } = await kept(t, { shapes: Array(5).fill('s') })
  await pass(1)
  assert.deepEqual(rounds, [], 'what is followed comes first')
  await pass(1)
  assert.deepEqual(rounds.splice(0), [[2000, 2000]])
  await pass(1)
  keeper.released()
  await settled()
  assert.deepEqual(rounds.splice(0), [[3000, 2000]], 'those that were looked at are not for that')
  keeper.look()
  keeper.look()
  await pass(8)
  assert.deepEqual(rounds.splice(0).filter(([, since]) => since !== 2000), [], 'five shapes have a rest of ten seconds')
  await pass(1)
  assert.deepEqual(rounds.splice(0), [[12_000, 12_000]])
  await pass(299)
  assert.deepEqual(rounds, [])
  await pass(1)
  assert.deepEqual(rounds.splice(0), [[312_000, 312_000]])
  await pass(60)
  keeper.look()
  await settled()
  assert.deepEqual(rounds, [[372_000, 372_000]], 'at once')
})

test('a shape that is released during a round is looked at after it', async (t) => {
  let go
  const { keeper, rounds, pass } = await kept(t, { shapes: ['s'], catchUp: () => new Promise((resolve) => { go = resolve }) })
  await pass(2)
  keeper.released()
  await settled()
  assert.equal(rounds.length, 1)
  go()
  await settled()
  assert.equal(rounds.length, 2)
  go()
  await settled()
  assert.equal(rounds.length, 2)
})

const error = (status, json) => new FetchError(status, 'text', json, {}, 'http://x', `it is ${status}`)

test('what the service refuses is forgotten, and what is old; other failures are told, and the next shape has its turn', async (t) => {
  const failures = { forbidden: error(403, { message: 'no' }), portal: error(403), broken: error(500, {}), moved: error(301, {}), cut: new TypeError('cut') }
  const { caught, forgotten, errors, pass } = await kept(t, {
    shapes: ['portal', 'broken', 'moved', 'cut', 'old', 'forbidden', 'fine'],
    catchUp: async (definition) => { if (failures[definition]) throw failures[definition] },
  })
  await pass(2)
  assert.deepEqual(caught, ['portal', 'broken', 'moved', 'cut', 'forbidden', 'fine'])
  assert.deepEqual(forgotten, ['old', 'forbidden'])
  assert.deepEqual(errors, ['it is 403', 'it is 500', 'it is 301', 'cut'])
})

test('it goes on after a round that failed, and ends when it is stopped', async (t) => {
  let failing = true
  const { keeper, rounds, caught, errors, pass } = await kept(t, {
    query: () => {
      if (failing) throw new Error('no database')
      return { rows: ['a', 'b'].map((definition) => ({ definition, is_old: false })) }
    },
    catchUp: async () => {
      keeper.released()
      void keeper.stop()
    },
  })
  await pass(2)
  assert.deepEqual(errors, ['no database'])
  failing = false
  keeper.released()
  await settled()
  assert.deepEqual([rounds.length, caught], [2, ['a']], 'not the next one')
  keeper.look()
  keeper.released()
  await pass(400)
  assert.equal(rounds.length, 2)
})

test('looked at are those that nobody follows and that were not up to date since they were released, or since the look', async (t) => {
  const db = await newDatabase()
  t.after(() => db.close())
  // The look is at second 2.
  const shapes = { followed: [true], never: [false], before: [false, 1], since: [false, 3], released: [false, 3, 4], 'before that as well': [false, -1, -2] }
  for (const [definition, [active, synced, released]] of Object.entries(shapes)) {
    await db.query(`insert into sync.stream (definition, active, last_synced, released) values ($1, $2, to_timestamp(1e9 + $3::float8), to_timestamp(1e9 + $4::float8))`,
      [JSON.stringify(definition), active, synced ?? null, released ?? null])
  }
  let done
  const { caught, errors, pass } = await kept(t, { query: async (...args) => { done = await db.query(...args); return done }, keepFor: 1e12 })
  await pass(2)
  while (!errors.length && (!done || caught.length < done.rows.length)) await settled()
  assert.deepEqual([caught, errors], [['never', 'before that as well', 'before', 'released'], []])
})
