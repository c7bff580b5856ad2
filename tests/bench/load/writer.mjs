// A writer at a fixed rate that notes when each of its commits was acknowledged.
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { nowMs, serveLoad } from '../lib/load.mjs'

serveLoad({
  /**
   * `statements` in turn, `perSecond`, until `count` are done; $1 is the number of the write, from `first` on.
   * Returns the instants of the acknowledgements.
   */
  write: async (connectionString, statements, { perSecond, count, first = 0 }) => {
    const client = new pg.Client({ connectionString })
    await client.connect()
    const acknowledged = []
    const began = nowMs()
    for (let number = 0; number < count; number++) {
      const wait = began + (number * 1000) / perSecond - nowMs()
      if (wait > 0) await sleep(wait)
      const which = number % statements.length
      await client.query({ name: `write ${which}`, text: statements[which], values: [first + number] })
      acknowledged.push(nowMs())
    }
    await client.end()
    return acknowledged
  },
})
