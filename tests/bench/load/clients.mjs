// Thousands of clients: a connection each, each with a shape that it starts, or follows by one live request after another.
import { header, RawConnection } from '../lib/raw.mjs'
import { nowMs, serveLoad } from '../lib/load.mjs'

/** How many connect, or start, at the same time. */
const AT_ONCE = 100

let clients = []
let answers = []
/** Operations in them. */
let told = 0
let failure

/** Runs `work` for each item, some at a time. */
async function each(items, work) {
  const left = items[Symbol.iterator]()
  const lane = async () => {
    for (const item of left) await work(item)
  }
  await Promise.all(Array.from({ length: AT_ONCE }, lane))
}

const encode = (params) => new URLSearchParams(params).toString()

/** The request that follows on an answer: the shape's parameters and where the client is. All of that needs no encoding. */
function next(shape, head) {
  const [handle, offset, cursor] = ['handle', 'offset', 'cursor'].map((name) => header(head, `electric-${name}`))
  const at = `${shape}&handle=${handle}&offset=${offset}`
  if (header(head, 'electric-up-to-date') === undefined) return at
  return `${at}&live=true${cursor ? `&cursor=${cursor}` : ''}`
}

/** The operations of an answer as they came; how far it is up to date depends on when it was asked for. */
function withoutEnd(body) {
  const end = body.lastIndexOf('{"headers":{"control":"up-to-date"')
  return end < 0 ? body : body.subarray(0, end)
}

const isLive = (request) => request.includes('&live=true')
/** Without reading the messages: that takes longer than the server does to send them. */
function countOperations(body) {
  let count = 0
  for (let at = -1; (at = body.indexOf('"operation":"', at + 1)) >= 0;) count++
  return count
}

const operations = (body) => JSON.parse(body).filter((message) => 'key' in message)

/** Asks on from `request` until the answer is up to date; the live request that follows. `each` gets every answer. */
async function caughtUp(connection, shape, request, each = () => {}) {
  do {
    const answer = await connection.get(request)
    each(answer)
    request = next(shape, answer.head)
  } while (!isLive(request))
  return request
}

async function follow({ connection, shape, request }, number) {
  for (;;) {
    const { head, body, at } = await connection.get(request)
    answers.push({ client: number, at, body })
    told += countOperations(body)
    request = next(shape, head)
  }
}

/** Each reads to the end of its log, those of one shape and one caller together. */
async function toTheEnd() {
  const starts = new Map()
  await each(clients, async (client) => {
    const { connection, shape, caller } = client
    const name = `${caller} ${shape}`
    if (!starts.has(name)) starts.set(name, caughtUp(connection, shape, `${shape}&offset=-1`))
    client.request = await starts.get(name)
  })
}

serveLoad({
  /** Connects `count` clients; shapes are dealt out in turn, and so are `tokens`, if there are any. */
  open: async (base, count, shapes, tokens = []) => {
    const encoded = shapes.map(encode)
    const lines = tokens.map((token) => `authorization: Bearer ${token}\r\n`)
    clients = Array.from({ length: count }, (_, i) => ({ shape: encoded[i % encoded.length], lines: lines[i % lines.length], caller: i % tokens.length }))
    await each(clients, async (client) => { client.connection = await RawConnection.connect(base, client.lines) })
  },

  /** All ask for the start of their shape at once: { ms, bytes: distinct lengths, rows: of one }. */
  startAtOnce: async () => {
    const began = nowMs()
    const all = await Promise.all(clients.map(({ connection, shape }) => connection.get(`${shape}&offset=-1`)))
    return { ms: Math.max(...all.map(({ at }) => at)) - began, bytes: [...new Set(all.map(({ body }) => body.length))], rows: operations(all[0].body).length }
  },

  toTheEnd,

  /** Each reads to the end of its log and sends its live request. */
  goLive: async () => {
    await toTheEnd()
    clients.forEach((client, number) => follow(client, number).catch((error) => { failure ??= error }))
  },

  /**
   * All come back at once and ask on from where they were until they are up to date:
   * { ms, operations: distinct numbers of them by shape, different: clients that got others than the first one of their shape }.
   */
  returnAtOnce: async () => {
    const began = nowMs()
    const firsts = new Map()
    let [last, different] = [began, 0]
    await Promise.all(clients.map(async ({ connection, shape, request }) => {
      const bodies = []
      // As a client does that was away: not live, for it does not know that it is at the end.
      await caughtUp(connection, shape, request.replace(/&live=true.*/, ''), ({ body, at }) => {
        bodies.push(withoutEnd(body))
        last = Math.max(last, at)
      })
      const first = firsts.get(shape) ?? bodies
      firsts.set(shape, first)
      if (bodies.length !== first.length || bodies.some((body, i) => !body.equals(first[i]))) different++
    }))
    const count = (bodies) => bodies.reduce((sum, body) => sum + countOperations(body), 0)
    return { ms: last - began, operations: [...new Set([...firsts.values()].map(count))], different }
  },

  /** Number of answers that `take` would return. */
  waiting: () => {
    if (failure) throw failure
    return answers.length
  },

  /** Number of operations in them. */
  told: () => {
    if (failure) throw failure
    return told
  },

  /** The answers to live requests since it was asked last: [{ client, at, values }], `values` those of a column. */
  take: (column) => {
    if (failure) throw failure
    const taken = answers
    answers = []
    told = 0
    return taken.map(({ client, at, body }) => ({ client, at, values: operations(body).map(({ value }) => Number(value[column])) }))
  },
})
