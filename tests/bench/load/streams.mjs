// Thousands of streams of events on one shape, which note when each change had come to the last of them.
import net from 'node:net'
import { nowMs, serveLoad } from '../lib/load.mjs'

/** How many connect at the same time. */
const AT_ONCE = 100

let streams = []
let failure
/** By the number that a change wrote: how many have it, and since when the last one. */
const arrivals = new Map()
/** What was read last, and the numbers in it: most streams are sent the same. */
let last = { text: '', numbers: [] }

function numbersIn(text) {
  if (text !== last.text) last = { text, numbers: [...text.matchAll(/"n":"(\d+)"/g)].map(([, number]) => Number(number)) }
  return last.numbers
}

/** Takes what has come; a message in part waits for its rest. */
function take(stream, piece) {
  const text = stream.rest + piece.toString('latin1')
  const end = text.lastIndexOf('\n\n') + 2
  stream.rest = text.slice(end)
  const at = nowMs()
  for (const number of numbersIn(text.slice(0, end))) {
    const arrival = arrivals.get(number) ?? { count: 0 }
    arrivals.set(number, Object.assign(arrival, { count: arrival.count + 1, at }))
  }
}

function open(base, query) {
  const { hostname, port } = new URL(base)
  const stream = { rest: '', socket: net.connect({ host: hostname, port: Number(port), noDelay: true }) }
  const wrong = (why) => { failure ??= new Error(`stream ${streams.length}: ${why}`) }
  return new Promise((resolve) => {
    stream.socket.on('error', (error) => wrong(error.message)).on('close', () => wrong('it was closed'))
    stream.socket.once('connect', () => stream.socket.write(`GET /v1/shape?${query} HTTP/1.1\r\nhost: bench\r\naccept: text/event-stream\r\n\r\n`))
    stream.socket.once('data', (head) => {
      if (!head.toString('latin1').startsWith('HTTP/1.1 200')) wrong(head)
      stream.socket.on('data', (piece) => take(stream, piece))
      resolve(stream)
    })
  })
}

serveLoad({
  /** Opens `count` streams more. */
  open: async (base, query, count) => {
    for (let left = count; left > 0; left -= AT_ONCE) {
      streams.push(...await Promise.all(Array.from({ length: Math.min(AT_ONCE, left) }, () => open(base, query))))
    }
  },

  /** Numbers of changes that `count` streams have. */
  complete: (count) => {
    if (failure) throw failure
    return [...arrivals.values()].filter((arrival) => arrival.count >= count).length
  },

  /** [number, { count, at }] of each change. */
  arrivals: () => [...arrivals],
})
