// Random tables, shapes, writers and clients, while parts are killed: at each up-to-date, each client holds what a SELECT
// at that position gives (I3), closed chunks have the same bytes everywhere (I4), and no client is made to begin again
// but where it is legal. README.md says what is true here and how this was seen to fail.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { scale } from '../lib/index.mjs'
import { kills } from './kills.mjs'
import { Site } from './site.mjs'

const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? Date.now() % 1e6)
const shapes = Number(process.env.SHAPEFEED_TEST_SHAPES ?? 200)
const rounds = Math.ceil(Number(process.env.SHAPEFEED_TEST_ROUNDS ?? 10) * scale)
const perRound = 50

test('clients hold what SELECT gives, whatever happens', async (t) => {
  console.log(`SHAPEFEED_TEST_SEED=${seed}`)
  const site = new Site(seed)
  t.after(() => site.stop())
  await site.start(shapes)
  for (let round = 0; round < rounds; round++) {
    const started = Date.now()
    await site.round(perRound, happening(round))
    const again = await site.askAgain(20)
    console.log(`round ${round}: ${Date.now() - started} ms, ${again} chunks asked for again`)
  }
  report(site)
  assert.deepEqual(tooLittle(site), [], 'enough was to be seen')
})

/** What happens in a round: something is killed; tables are altered and emptied, shapes deleted. */
function happening(round) {
  return async (site) => {
    const kill = kills[(round - 1) % kills.length]
    if (round % 10 === 2) await site.truncate(site.tables.find(({ table }) => table === 'texts'))
    if (round % 10 === 5) for (const shape of site.shapes.slice(0, 5)) await site.rotate(shape)
    if (round % 3 === 0) await site.maintain(site.random.pick(site.tables))
    if (round % 5 === 1) for (let i = 0; i < 3; i++) await site.addColumn(site.random.pick(site.tables))
    if (kill) await site.kill(kill)
  }
}

function report({ books, counts, killed, ddl, transitions }) {
  const { chunks, paths, conflicts, ...seen } = books
  console.log({ ...seen, chunks: chunks.size, conflicts: conflicts.length })
  console.log({ ...counts, transitions, ddl, killed: killed.length })
}

/** Floors that are not reached: below them the run says nothing. */
function tooLittle({ books, ddl, killed, shapes, transitions }) {
  const fair = shapes.filter(({ share }) => share >= 0.01 && share <= 0.99).length
  const floors = [
    ['shapes that select 1 to 99 % of the rows', fair, 0.3 * shapes.length],
    ...Object.entries(transitions).map(([what, seen]) => [what, seen, 100]),
    ['kills with a request in flight', killed.filter(({ inFlight }) => inFlight > 0).length, 3],
    ['answers of the standby', books.far, 5 * shapes.length],
    ['columns added', ddl['add column'] ?? 0, 3],
    ['tables rewritten', ddl['vacuum full'] ?? 0, 1],
    ['legal 409s', books.conflicts.length, 1],
    ['restarts from zero', books.restarts, 10],
    ['connections cut', books.cut, 30],
    ['chunks read more than once', books.repeated, 50],
    ['states compared', books.checked, 10 * shapes.length],
  ]
  return floors.filter(([, seen, floor]) => seen < floor).map(([what, seen, floor]) => `${what}: ${seen} of ${floor}`)
}
