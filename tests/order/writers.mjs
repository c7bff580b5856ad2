// A worker thread: writers that do everything that a transaction can do, until it is sent a message. Posts what they did
// so far now and then, and at the end with `ended`: see `done` below.
import { setTimeout as sleep } from 'node:timers/promises'
import { parentPort, workerData } from 'node:worker_threads'
import pg from 'pg'

const { url, writers, seed } = workerData
let stopping = false
const done = {
  committed: [], rolledBack: [], // xids
  commits: 0, rollbacks: 0, deadlocks: 0, violations: 0, long: 0,
  savepointsRolledBack: 0, savepointsReleased: 0, prepared: 0, preparedRolledBack: 0,
}

/** A small generator, so that a run can be had again. */
function randomOf(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

class Writer {
  constructor(number) {
    this.number = number
    this.random = randomOf(seed * 1000 + number)
    this.transactions = 0
  }

  upTo(n) {
    return 1 + Math.floor(this.random() * n)
  }

  /** Mostly one of the hot rows. */
  item() {
    return this.random() < 0.7 ? this.upTo(40) : this.upTo(500)
  }

  statement() {
    const mark = `w${this.number}-${this.transactions}-${this.upTo(1e6)}`
    const choices = [
      [50, () => ['update item set v = v + 1, t = $2 where id = $1', [this.item(), mark]]],
      [14, () => [`insert into item (id, v, t) values ($1, 0, 'new') on conflict (id) do update set v = item.v + 100`, [this.item()]]],
      [14, () => ['delete from item where id = $1', [this.item()]]],
      [10, () => ['update item set id = $2 where id = $1', [this.item(), this.upTo(500)]]],
      [6, () => ['insert into child (parent_id, v) values ($1, 0)', [this.upTo(30)]]],
      [4, () => ['update child set v = v + 1 where parent_id = $1', [this.upTo(30)]]],
      [2, () => ['insert into parent (id, v) values ($1, 0) on conflict (id) do update set v = parent.v + 1', [this.upTo(30)]]],
      [2, () => ['delete from parent where id = $1', [this.upTo(30)]]], // its children go along
      [2, () => ['update parent set id = $2 where id = $1', [this.upTo(30), this.upTo(30)]]], // its children follow
    ]
    let at = this.random() * choices.reduce((sum, [weight]) => sum + weight, 0)
    return choices.find(([weight]) => (at -= weight) < 0)[1]()
  }

  async run() {
    this.client = new pg.Client({ connectionString: url })
    await this.client.connect()
    while (!stopping) await this.transaction()
    await this.client.end()
  }

  async transaction() {
    this.transactions++
    this.xid = null
    try {
      await this.client.query('begin')
      const statements = [1, 1, 1, 2, 3, 8, 30][this.upTo(7) - 1]
      for (let i = 0; i < statements; i++) await this.one()
      if (this.random() < 0.004) {
        done.long++
        await sleep(this.random() * 2000)
      }
      await this.finish()
    } catch (error) {
      if (error.code === '40P01') done.deadlocks++
      else if (error.code?.startsWith('23')) done.violations++
      else throw error
      await this.client.query('rollback')
      if (this.xid) done.rolledBack.push(this.xid)
    }
  }

  async one() {
    const savepoint = this.random() < 0.25
    if (savepoint) await this.client.query('savepoint s')
    await this.client.query(...this.statement())
    if (savepoint) await this.endSavepoint()
    if (this.random() < 0.004) await sleep(this.random() * 20)
  }

  async endSavepoint() {
    if (this.random() < 0.5) {
      await this.client.query('rollback to s')
      done.savepointsRolledBack++
    } else {
      await this.client.query('release s')
      done.savepointsReleased++
    }
  }

  /** Ends the transaction by `command`, and notes its xid first: an error may come with the commit. */
  async end(command) {
    const found = await this.client.query('select pg_current_xact_id_if_assigned()::text xid')
    this.xid = found.rows[0].xid
    await this.client.query(command)
  }

  async finish() {
    const how = this.random()
    if (how < 0.1) {
      await this.end('rollback')
      done.rollbacks++
      done.rolledBack.push(this.xid)
    } else if (how < 0.2) {
      const name = `'g${this.number}_${this.transactions}'`
      await this.end(`prepare transaction ${name}`)
      await sleep(this.random() * 20)
      const commits = this.random() < 0.8
      await this.client.query(`${commits ? 'commit' : 'rollback'} prepared ${name}`)
      done[commits ? 'prepared' : 'preparedRolledBack']++
      done[commits ? 'committed' : 'rolledBack'].push(this.xid)
    } else {
      await this.end('commit')
      done.commits++
      done.committed.push(this.xid)
    }
  }
}

parentPort.once('message', () => { stopping = true })
const progress = setInterval(() => parentPort.postMessage({ ...done, committed: null, rolledBack: null }), 250)
await Promise.all(Array.from({ length: writers }, (_, number) => new Writer(number).run()))
clearInterval(progress)
parentPort.postMessage({ ...done, ended: true })
