// What a sidecar does with its database: it attaches shapes, sleeps until there is something new and reads the feed.
import pg from 'pg'
import { nowMs, serveLoad } from '../lib/load.mjs'

const FEED_BYTES = 1 << 20
const INT4_ARRAY = 1007

/** Ids of shapes stay text: there may be many, and most are only counted. */
const types = { getTypeParser: (oid, format) => (oid === INT4_ARRAY ? String : pg.types.getTypeParser(oid, format)) }

let session, sleeper, reading, failure
let operations = []
const counted = { updates: 0, told: 0, ended: 0 }

async function connect(connectionString) {
  const client = new pg.Client({ connectionString, types })
  await client.connect()
  return client
}

/** What is a shape's last in its transaction has a message of its own: a change may have two. */
function take({ ids, position, n, message, kind }, at, seen) {
  if (kind === 'end') counted.ended++
  if (kind !== 'op') return
  const change = `${position}/${n}`
  if (message.includes('"operation":"update"')) {
    counted.updates += Number(!seen.has(change))
    counted.told += ids.split(',').length
  } else operations.push({ ids, at, insert: message.includes('"operation":"insert"') })
}

/** Reads to the head. */
async function read() {
  const { rows } = await session.query('select ids, position, n, message, kind from shapefeed._feed($1)', [FEED_BYTES])
  const at = nowMs()
  const seen = new Set()
  for (const row of rows) {
    take(row, at, seen)
    seen.add(`${row.position}/${row.n}`)
  }
  return rows.at(-1).position
}

serveLoad({
  /** Opens a session; its process id. */
  open: async (connectionString) => {
    ;[session, sleeper] = [await connect(connectionString), await connect(connectionString)]
    return (await session.query('select pg_backend_pid() as pid')).rows[0].pid
  },

  attach: async (ids, definitions) => { await session.query('select shapefeed._attach($1, $2::jsonb[])', [ids, definitions]) },

  /** Begins to read. */
  start: () => {
    let stop = false
    const loop = (async () => {
      while (!stop) {
        const position = await read()
        await sleeper.query(`call shapefeed.wait(${position}, 1000)`)
      }
    })().catch((error) => { failure ??= error })
    reading = async () => {
      stop = true
      await loop
    }
  },

  stop: () => reading(),

  /** Operations other than updates since it was asked last, [{ ids, at, insert }], and how many updates, shapes that were told of them, and shapes that ended so far. */
  take: () => {
    if (failure) throw failure
    const taken = operations
    operations = []
    return { operations: taken, counted }
  },
})
