// Thousands of clients: a connection each, each with a shape that it starts, or follows by one live request after another.
import { header, RawConnection } from '../lib/raw.mjs'
import { nowMs, serveLoad } from '../lib/load.mjs'

/** How many connect, or start, at the same time. */
const AT_ONCE = 100

let clients = []
let answers = []
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

function next(shape, { head }) {
  const [handle, offset, cursor] = ['handle', 'offset', 'cursor'].map((name) => header(head, `electric-${name}`))
  const live = header(head, 'electric-up-to-date') !== undefined
  return { ...shape, handle, offset, ...(live && { live: 'true' }), ...(live && cursor && { cursor }) }
}

async function caughtUp(connection, shape) {
  let request = { ...shape, offset: '-1' }
  while (!request.live) request = next(shape, await connection.get(encode(request)))
  return request
}

async function follow({ connection, shape, request }, number) {
  for (;;) {
    const answer = await connection.get(encode(request))
    answers.push({ client: number, at: answer.at, body: answer.body })
    request = next(shape, answer)
  }
}

serveLoad({
  /** Connects `count` clients; shapes are dealt out in turn. */
  open: async (base, count, shapes) => {
    clients = Array.from({ length: count }, (_, i) => ({ shape: shapes[i % shapes.length] }))
    await each(clients, async (client) => { client.connection = await RawConnection.connect(base) })
  },

  /** All ask for the start of their shape at once: { ms, bytes: distinct lengths, rows: of one }. */
  startAtOnce: async () => {
    const began = nowMs()
    const all = await Promise.all(clients.map(({ connection, shape }) => connection.get(encode({ ...shape, offset: '-1' }))))
    const rows = JSON.parse(all[0].body).filter((message) => 'key' in message).length
    return { ms: Math.max(...all.map(({ at }) => at)) - began, bytes: [...new Set(all.map(({ body }) => body.length))], rows }
  },

  /** Each reads to the end of its log, those of one shape together, and sends its live request. */
  goLive: async () => {
    const starts = new Map()
    await each(clients, async (client) => {
      const key = encode(client.shape)
      if (!starts.has(key)) starts.set(key, caughtUp(client.connection, client.shape))
      client.request = await starts.get(key)
    })
    clients.forEach((client, number) => follow(client, number).catch((error) => { failure ??= error }))
  },

  /** Number of answers that `take` would return. */
  waiting: () => {
    if (failure) throw failure
    return answers.length
  },

  /** The answers to live requests since it was asked last: [{ client, at, values }], `values` those of a column. */
  take: (column) => {
    if (failure) throw failure
    const taken = answers
    answers = []
    return taken.map(({ client, at, body }) => ({
      client, at, values: JSON.parse(body).filter((message) => 'key' in message).map(({ value }) => Number(value[column])),
    }))
  },
})
