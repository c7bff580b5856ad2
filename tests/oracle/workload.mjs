// Writers: random transactions over random tables, several at the same time, that go on whatever happens to the server.
import { sleep } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'
import { statementFor } from './statements.mjs'

/** What the writers did. */
export const newCounts = () => ({ committed: 0, rolledBack: 0, prepared: 0, preparedRolledBack: 0, savepoints: 0, undone: 0, refused: {}, broken: 0 })

// Violated constraints, deadlocks, and a row that ON CONFLICT or MERGE would change twice or that went to another partition.
const expected = ['23502', '23503', '23505', '23514', '40P01', '40001', '21000']

export class Writer {
  constructor({ number, seed, database, tables, counts }) {
    Object.assign(this, { number, database, tables, counts, random: randomFrom(seed * 1009 + number), transactions: 0 })
  }

  /** Commits until `goal()` is false. */
  async run(goal) {
    while (goal()) {
      try {
        if (!this.client) await this.connect()
        await this.transaction()
      } catch (error) {
        if (error.fatal) throw error
        this.note(error)
        if (!this.connected(error)) await this.reconnect()
        else await this.client.query('rollback').catch(() => this.reconnect())
      }
    }
  }

  /** What it had prepared when the server went away is still there, with its locks. */
  async connect() {
    this.client = await this.database.connect()
    const { rows } = await this.client.query('select gid from pg_prepared_xacts where gid like $1', [`g${this.number}\\_%`])
    for (const { gid } of rows) await this.client.query(`${this.random.chance(0.5) ? 'commit' : 'rollback'} prepared '${gid}'`)
  }

  connected(error) {
    return error.code && !error.code.startsWith('57') && !error.code.startsWith('08') && !error.code.startsWith('E')
  }

  async reconnect() {
    this.counts.broken++
    this.client?.end().catch(() => {})
    this.client = undefined
    await sleep(50)
  }

  note(error) {
    const what = error.code ?? error.message
    this.counts.refused[what] = (this.counts.refused[what] ?? 0) + 1
  }

  async transaction() {
    const { random, client } = this
    this.transactions++
    await client.query('begin')
    if (random.chance(0.3)) await client.query('set constraints all deferred')
    if (random.chance(0.1)) await client.query('set local synchronous_commit = off')
    const statements = random.pick([1, 1, 1, 2, 3, 5, 9])
    let depth = 0
    for (let i = 0; i < statements; i++) {
      if (random.chance(0.25)) {
        depth++
        this.counts.savepoints++
        await client.query(`savepoint s${depth}`)
      }
      await this.statement()
      if (depth > 0 && random.chance(0.3)) {
        const to = 1 + random.below(depth)
        const undo = random.chance(0.6)
        await client.query(`${undo ? 'rollback to' : 'release'} s${to}`)
        if (undo) this.counts.undone++
        depth = undo ? to : to - 1
      }
    }
    await this.end()
  }

  /** One statement; when it is refused, nothing of it stays. */
  async statement() {
    const { client, random } = this
    const { text, copy } = statementFor(random, random.pick(this.tables))
    await client.query('savepoint one')
    try {
      await (copy ? copyIn(client, text, copy) : client.query(text))
      await client.query('release one')
    } catch (error) {
      if (!this.connected(error)) throw error
      if (!expected.includes(error.code)) throw Object.assign(error, { message: `${error.message}: ${text}`, fatal: true })
      this.note(error)
      await client.query('rollback to one')
    }
  }

  async end() {
    const { client, random, counts } = this
    const how = random.next()
    if (how < 0.1) {
      await client.query('rollback')
      counts.rolledBack++
    } else if (how < 0.2) {
      const name = `'g${this.number}_${this.transactions}_${random.below(1e9)}'`
      await client.query(`prepare transaction ${name}`)
      await sleep(random.below(30))
      const commits = random.chance(0.75)
      await client.query(`${commits ? 'commit' : 'rollback'} prepared ${name}`)
      counts[commits ? 'prepared' : 'preparedRolledBack']++
      if (commits) counts.committed++
    } else {
      await client.query('commit')
      counts.committed++
    }
  }
}

/** COPY … FROM STDIN over a client of `pg`, which knows the messages but has no method for them. */
function copyIn(client, text, data) {
  return new Promise((resolve, reject) => {
    client.query({
      submit: (connection) => connection.query(text),
      handleCopyInResponse: (connection) => {
        connection.sendCopyFromChunk(Buffer.from(data))
        connection.endCopyFrom()
      },
      handleCommandComplete: () => {},
      handleReadyForQuery: () => resolve(),
      handleError: (error) => reject(error),
    })
  })
}
