// Three clients, random writes, cuts, lost replies, reloads and kills: in the end all have what Postgres has, and nothing is left to send.
// SHAPEFEED_LOCAL_SEEDS: how many runs; SHAPEFEED_LOCAL_SEED: the first one.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { randomFrom } from '../lib/random.mjs'
import { scratchDir, waitFor } from '../lib/index.mjs'
import { lists, tables, visible } from './lib/site.mjs'

const seeds = Number(process.env.SHAPEFEED_LOCAL_SEEDS ?? 2)
const firstSeed = Number(process.env.SHAPEFEED_LOCAL_SEED ?? randomBytes(3).readUIntBE(0, 3))
const steps = 60
const site = lists()

/** A client that can be killed and started again on what it had. */
class Tab {
  #asked = new Map()
  #next = 0
  isNew = true

  constructor(user, number) {
    Object.assign(this, { user, number, dataDir: join(scratchDir('local'), 'data') })
  }

  async start() {
    const { user, dataDir, isNew } = this
    this.thread = new Worker(new URL('./lib/fuzz-client.mjs', import.meta.url), { workerData: { url: site.sidecar.url, user: String(user), token: site.tokenOf(user), dataDir, isNew } })
    this.isNew = false
    await new Promise((resolve, reject) => {
      this.thread.once('error', reject)
      this.thread.on('message', ({ ready, id, value, error }) => {
        if (ready) return resolve()
        const { resolve: done, reject: fail } = this.#asked.get(id)
        this.#asked.delete(id)
        if (error) fail(new Error(error))
        else done(value)
      })
    })
  }

  ask(command, argument) {
    const id = ++this.#next
    this.thread.postMessage({ id, command, argument })
    return new Promise((resolve, reject) => this.#asked.set(id, { resolve, reject }))
  }

  async kill() {
    await this.thread.terminate()
    this.#asked.clear()
  }

  async reload() {
    await this.ask('close')
    await this.kill()
    await this.start()
  }
}

let ids = 100_000

function diceOf(seed) {
  const { below, pick } = randomFrom(seed)
  return { pick, int: (from, to) => from + below(to - from + 1) }
}

/** A random statement on what a user may see, and now and then on what he may not write. */
function statement({ int, pick }, marker) {
  const id = pick([int(1, 30), int(1, 90), ids - int(0, 5)])
  return pick([
    () => `insert into todos (id, list, title, rank) values (${++ids}, ${int(1, 2)}, '${marker}', ${pick(['null', int(1, 99)])})`,
    () => `update todos set title = '${marker}' where id = ${id}`,
    () => `update todos set body = '${marker}', done = not done where id between ${id} and ${id + int(0, 6)}`,
    () => `update todos set rank = ${int(1, 99)} where id = ${id}`,
    () => `update todos set list = ${int(1, 3)} where id = ${id}`,
    () => `update todos set title = '' where id = ${id}`,
    () => `delete from todos where id = ${id}`,
    () => `delete from todos where id between ${id} and ${id + 2}`,
    () => `update lists set name = '${marker}', color = '${pick(['red', 'blue'])}' where id = ${int(1, 2)}`,
    () => `insert into members values (${int(1, 2)}, ${int(3, 6)}) on conflict do nothing`,
    () => `delete from members where list = ${int(1, 2)} and user_id = ${int(3, 6)}`,
    () => `delete from todos where id = ${id}; insert into todos (id, list, title) values (${id}, 1, '${marker}') on conflict do nothing`,
  ])()
}

async function step(dice, tabs, marker) {
  const tab = dice.pick(tabs)
  const what = dice.int(1, 100)
  if (what <= 70) await tab.ask('write', Array.from({ length: dice.pick([1, 1, 1, 2, 4]) }, () => statement(dice, marker))).catch(duplicate)
  else if (what <= 78) await tab.ask('cut')
  else if (what <= 88) await tab.ask('join')
  else if (what <= 91) await tab.ask('lose', dice.pick([0, 0.5]))
  else if (what <= 93) await tab.reload()
  else if (what <= 95) {
    await tab.kill()
    await tab.start()
  } else if (what <= 97) await site.sql(`update todos set body = 'server ${marker}' where id = ${dice.int(1, 90)}`)
  else if (what <= 98) await site.sql('delete from members where user_id = 1 and list = 2; insert into members values (2, 1)')
  else await site.sql(`alter table members add column c${ids++} int; alter table members drop column c${ids - 1}`)
}

/** What the local database itself refuses was not written. */
const duplicate = (error) => assert.match(error.message, /duplicate key|violates/)

async function quiet(tab) {
  await tab.ask('lose', 0)
  await tab.ask('join')
  let state
  try {
    await waitFor(async () => (state = await tab.ask('state')).outbox === 0 && state.shadow === 0, { timeoutMs: 60_000, what: 'nothing is left' })
  } catch (error) {
    throw new Error(`client ${tab.number}: ${JSON.stringify(state)}`, { cause: error })
  }
}

async function same(tab, table) {
  const query = `select to_jsonb(t)::text as t from ${table} t where ${visible[table]} order by to_jsonb(t)::text collate "C"`
  let here, there
  try {
    await waitFor(async () => {
      there = (await site.client.query(query)).rows.map(({ t }) => t)
      here = await tab.ask('lines', [table])
      return here.join('\n') === there.join('\n')
    }, { timeoutMs: 60_000, what: 'the same' })
  } catch (error) {
    const state = JSON.stringify(await tab.ask('state'))
    throw new Error(`client ${tab.number}, ${table}: missing ${there.filter((t) => !here.includes(t))}, too many ${here.filter((t) => !there.includes(t))}; ${state}`, { cause: error })
  }
}

for (let seed = firstSeed; seed < firstSeed + seeds; seed++) {
  test(`seed ${seed}`, async () => {
    const dice = diceOf(seed)
    const tabs = [1, 2, 1].map((user, number) => new Tab(user, number))
    await Promise.all(tabs.map((tab) => tab.start()))
    try {
      for (let i = 0; i < steps; i++) await step(dice, tabs, `${seed}.${i}`)
      for (const tab of tabs) await quiet(tab)
      for (const tab of tabs) for (const table of tables) await same(tab, table)
    } finally {
      await Promise.all(tabs.map((tab) => tab.kill()))
    }
  })
}
