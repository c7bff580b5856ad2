// C17: three people and four tabs; random writes, cuts, reloads, tabs that are closed and browsers that are killed. In the end all have what Postgres
// has for them, nothing is left to send, and whatever was awaited is done once or rejected.
// SHAPEFEED_BROWSER_SEEDS: how many runs (1); SHAPEFEED_BROWSER_SEED: the first one.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { scale, scratchDir, waitFor } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'
import { contents, demoSite, opened, query, startBrowser, wire } from './site.mjs'

const seeds = Number(process.env.SHAPEFEED_BROWSER_SEEDS ?? scale)
const firstSeed = Number(process.env.SHAPEFEED_BROWSER_SEED ?? 1)
const steps = 40
const site = demoSite()
const tables = ['companies', 'company_members', 'user_groups', 'user_group_members', 'workspaces', 'folders']

/** The server notes each folder that is inserted. */
const noteInserts = `
  create table if not exists inserted (id int);
  create or replace function note_inserted() returns trigger language plpgsql security definer set search_path = public, pg_temp as
    $$ begin insert into inserted values (new.id); return null; end $$;
  create or replace trigger note_inserted after insert on folders for each row execute function note_inserted()`

/** What happens in a run, all from its seed: steps of { kind, who, … }. Who is 0 has two tabs. */
function scheduleOf(seed) {
  const { below, pick } = randomFrom(seed)
  const first = 10_000_000 + seed % 1000 * 1_000_000
  let made = 0
  const folder = () => (made && below(3) ? first + below(made) : pick([1, 2, 4, 5, 6]) * 1000 + 1 + below(8))
  const workspace = () => 1 + below(7)
  const statement = (marker) => pick([
    () => `insert into folders (id, workspace_id, parent_id, name) values (${first + made++}, ${workspace()}, ${pick(['null', folder()])}, '${marker}')`,
    () => `insert into folders (id, workspace_id, parent_id, name) values (${first + made++}, ${workspace()}, null, '${marker}')`,
    () => `insert into folders (id, workspace_id, parent_id, name) values (${first + made++}, ${workspace()}, null, '${marker}')`,
    () => `update folders set name = '${marker}' where id = ${folder()}`,
    () => `update folders set name = '${marker}', parent_id = null where parent_id = ${folder()}`,
    () => `update folders set parent_id = ${folder()} where id = ${folder()}`,
    () => `update folders set workspace_id = ${workspace()} where id = ${folder()}`,
    () => `update folders set name = '' where id = ${folder()}`,
    () => `delete from folders where id = ${folder()}`,
    () => `update workspaces set name = '${marker}' where id = ${workspace()}`,
    () => `insert into user_groups (id, company_id, name) values (${first + made++}, ${1 + below(3)}, '${marker}')`,
    () => `insert into user_group_members values (${1 + below(6)}, ${1 + below(6)}) on conflict do nothing`,
    () => `delete from user_group_members where group_id = ${1 + below(6)} and user_id = ${1 + below(6)}`,
    () => `insert into company_members values (${1 + below(3)}, ${4 + below(3)}, 'member') on conflict do nothing`,
    () => `delete from company_members where company_id = ${1 + below(3)} and user_id > 3`,
  ])()
  const kinds = { write: 66, cut: 8, join: 10, reload: 3, leave: 2, kill: 2, server: 6, revoke: 3 }
  const bag = Object.entries(kinds).flatMap(([kind, weight]) => Array(weight).fill(kind))
  return Array.from({ length: steps }, (_, n) => {
    const kind = pick(bag)
    const who = below(3)
    const marker = `${seed}.${n}`
    if (kind === 'write') return { kind, who, tab: below(2), statements: Array.from({ length: pick([1, 1, 1, 2, 4]) }, () => statement(marker)) }
    if (kind === 'server') return { kind, sql: `update folders set name = 'server ${marker}' where id = ${folder()} or parent_id = ${folder()}` }
    if (kind === 'revoke') return { kind, sql: `delete from company_members where user_id = ${2 + below(2)} and company_id = 1; insert into company_members values (1, 2), (1, 3) on conflict do nothing` }
    return { kind, who }
  })
}

/** Somebody with a browser, a way to the server that can be cut, and one or two tabs. */
class Person {
  profile = scratchDir('profile')
  errors = []
  tabs = []
  isCut = false

  constructor(user, tabs) {
    Object.assign(this, { user, count: tabs })
  }

  async start() {
    this.line ??= await wire(site)
    this.browser = await startBrowser({ profile: this.profile })
    this.browser.errors = this.errors
    this.tabs = []
    while (this.tabs.length < this.count) await this.openTab()
  }

  async openTab() {
    this.tabs.push(await this.browser.open(this.line.origin, this.user, { ready: false }))
    await this.ready(this.tabs.at(-1))
  }

  /** Follows the tables whole, which the app follows in parts. */
  async ready(tab) {
    await opened(tab)
    await tab.evaluate((all) => { for (const table of all) sync.shape({ table }) }, tables)
  }

  async cut() {
    if (!this.isCut) await this.line.cut()
    this.isCut = true
  }

  async join() {
    if (this.isCut) await this.line.join()
    this.isCut = false
  }

  async reload() {
    await this.tabs[0].reload()
    await this.ready(this.tabs[0])
  }

  /** Closes the tab that leads; where there was one alone, it is as if it was opened again later. */
  async leave() {
    await this.tabs.shift().close()
    await this.openTab()
  }

  async kill() {
    await this.browser.kill()
    await this.start()
  }

  /** True if the local database has it. Where the leader changes meanwhile one does not know. */
  async write(tab, statements) {
    return this.tabs[tab % this.count].evaluate((all) => sync.db.transaction(async (tx) => {
      for (const sql of all) await tx.query(sql)
    }), statements).then(() => true, (error) => {
      assert.match(error.message, /duplicate key|violates|leader/i)
      return false
    })
  }

  async stop() {
    await this.browser?.close().catch(() => {})
    await this.line?.stop()
  }
}

/** Does a step; ids of folders that are written then go to the ledger. */
async function take(step, people, ledger) {
  if (step.sql) return site.sql(step.sql)
  const person = people[step.who]
  if (step.kind !== 'write') return person[step.kind]()
  if (!await person.write(step.tab, step.statements)) return
  for (const sql of step.statements) {
    const [, id] = /^insert into folders .* values \((\d+),/.exec(sql) ?? []
    if (id) ledger.set(Number(id), person)
  }
}

/** What a user has of a table, at the server. */
async function visible({ id }, table) {
  const claims = JSON.stringify({ role: 'app', sub: String(id) })
  const text = `begin; set local role app; select set_config('request.jwt.claims', '${claims}', true); ${contents(table)}; rollback`
  return (await site.client.query(text))[3].rows[0].text
}

async function same(person, tab, table) {
  let here, there
  await waitFor(async () => {
    there = await visible(person.user, table)
    here = (await query(tab, contents(table)))[0].text
    return here === there
  }, { timeoutMs: 60_000, intervalMs: 100, what: 'the same' }).catch(() => {
    const [a, b] = [here, there].map((text) => text?.split('\n') ?? [])
    assert.fail(`${person.user.name}, ${table}: here only ${a.filter((it) => !b.includes(it))}; there only ${b.filter((it) => !a.includes(it))}`)
  })
}

async function settle(people) {
  for (const person of people) await person.join()
  for (const { user, tabs: [tab] } of people) {
    let left
    const nothing = async () => (left = (await query(tab, 'select (select count(*) from sync.outbox)::int as outbox, (select count(*) from sync.shadow)::int as shadow'))[0], left.outbox + left.shadow === 0)
    await waitFor(nothing, { timeoutMs: 60_000, what: 'nothing is left' }).catch(() => assert.fail(`${user.name} has left ${JSON.stringify(left)}`))
  }
  for (const person of people) for (const tab of person.tabs) for (const table of tables) await same(person, tab, table)
}

/** Each folder that was written is at the server, once, or rejected; nothing else is. */
async function check(ledger, people) {
  const { rows } = await site.client.query('select id, count(*)::int as n from inserted group by id')
  const times = new Map(rows.map(({ id, n }) => [id, n]))
  const rejected = new Map()
  for (const person of people) {
    const found = await query(person.tabs[0], `select (o -> 'key' ->> 'id')::int as id from sync.rejection, jsonb_array_elements(operations) o where o ->> 'table' = 'folders' and o ->> 'operation' = 'insert'`)
    rejected.set(person, new Set(found.map(({ id }) => id)))
  }
  for (const [id, person] of ledger) assert.equal((times.get(id) ?? 0) + Number(rejected.get(person).has(id)), 1, `folder ${id} of ${person.user.name}`)
  for (const [id, n] of times) assert.equal(n, 1, `folder ${id} was inserted ${n} times`)
}

for (let seed = firstSeed; seed < firstSeed + seeds; seed++) {
  test(`seed ${seed}`, { timeout: 300_000 }, async (t) => {
    const schedule = scheduleOf(seed)
    const people = site.users.slice(0, 3).map((user, n) => new Person(user, n === 0 ? 2 : 1))
    const ledger = new Map()
    let done = 0
    try {
      await site.sql(noteInserts)
      await Promise.all(people.map((person) => person.start()))
      for (const { tabs: [tab] } of people) await tab.evaluate(() => navigator.serviceWorker.ready.then(() => undefined))
      for (const step of schedule) {
        await take(step, people, ledger)
        done++
      }
      await settle(people)
      await check(ledger, people)
      assert.deepEqual(people.flatMap(({ errors }) => errors), [])
      t.diagnostic(JSON.stringify({ seed, folders: ledger.size }))
    } catch (error) {
      t.diagnostic(`seed ${seed}, ${done} of ${steps} steps done:\n${schedule.map((step, n) => `${n} ${JSON.stringify(step)}`).join('\n')}`)
      throw error
    } finally {
      await Promise.all(people.map((person) => person.stop()))
    }
  })
}
