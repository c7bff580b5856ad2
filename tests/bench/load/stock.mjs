// The stock client: follows a shape and notes when each operation came.
import { ShapeStream } from '@electric-sql/client'
import { nowMs, serveLoad } from '../lib/load.mjs'

const arrivals = []
let upToDate = false
let column
let failure

serveLoad({
  /** Resolves when it has caught up. */
  catchUp: async (base, params, ofColumn) => {
    column = ofColumn
    const stream = new ShapeStream({ url: `${base}/v1/shape`, params })
    await new Promise((resolve, reject) => stream.subscribe((messages) => {
      const at = nowMs()
      for (const { key, value, headers } of messages) {
        if (key && upToDate) arrivals.push({ at, value: value[column] })
        if (headers.control === 'up-to-date' && !upToDate) {
          upToDate = true
          resolve()
        }
      }
    }, (error) => {
      failure = error
      reject(error)
    }))
  },

  /** What has come since. */
  arrivals: () => {
    if (failure) throw failure
    return arrivals
  },
})
