// A client over plain HTTP: reads snapshots, and follows a shape and notes when each operation came.
import { createHash } from 'node:crypto'
import { Connection, next } from '../lib/http.mjs'
import { nowMs, serveLoad } from '../lib/load.mjs'

let connection
let params
let request

const operations = (body) => JSON.parse(body).filter((message) => 'key' in message)

/** Reads all chunks of a snapshot; `each` gets every answer, `onData` its pieces instead of a body. */
async function readSnapshot(each, onData) {
  let answer
  request = { ...params, offset: '-1' }
  do {
    answer = await connection.get(request, onData)
    request = next(params, answer)
    each(answer)
  } while (answer.offset !== '0_0')
  return answer
}

serveLoad({
  connect: (base, shape, headers) => {
    connection = new Connection(base, headers)
    params = shape
  },

  delete: () => connection.delete(params),

  /** A whole snapshot, thrown away as it comes: { ms, bytes, chunks, handle }. */
  snapshot: async () => {
    const began = nowMs()
    const total = { bytes: 0, chunks: 0 }
    const count = ({ bytes }) => {
      total.bytes += bytes
      total.chunks++
    }
    const { at, handle } = await readSnapshot(count, () => {})
    return { ...total, ms: at - began, handle }
  },

  /** A whole snapshot, looked at: { bytes, rows, keys, idSum, hash }, `hash` over all values. Not for timing. */
  inspect: async () => {
    const seen = { bytes: 0, rows: 0, idSum: 0 }
    const [keys, hash] = [new Set(), createHash('sha256')]
    await readSnapshot(({ bytes, body }) => {
      seen.bytes += bytes
      for (const { key, value, headers } of operations(body)) {
        if (headers.operation !== 'insert') throw new Error(`${headers.operation} in a snapshot`)
        seen.rows++
        seen.idSum += Number(value.id)
        keys.add(key)
        hash.update(`${Object.values(value).join('\t')}\n`)
      }
    })
    return { ...seen, keys: keys.size, hash: hash.digest('hex') }
  },

  /** Reads to the end of the log; the next request is a live one. */
  catchUp: async () => {
    await readSnapshot(() => {})
    let answer
    do {
      answer = await connection.get(request)
      request = next(params, answer)
    } while (!answer.upToDate)
  },

  /**
   * Follows until it is up to date with `count` operations: [{ at, bytes, values }, …], an element for each answer;
   * `values` are those of one column. Bodies are parsed when there is nothing to wait for.
   */
  follow: async (count, column) => {
    const answers = []
    let operationsSeen = 0
    let unread = []
    do {
      const answer = await connection.get(request)
      request = next(params, answer)
      unread.push(answer)
      if (!answer.upToDate) continue
      for (const { at, bytes, body } of unread) {
        const values = operations(body).map(({ value }) => value[column])
        operationsSeen += values.length
        answers.push({ at, bytes, values })
      }
      unread = []
    } while (operationsSeen < count)
    return answers
  },
})
