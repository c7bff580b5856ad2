// Waiting on conditions, not on sleeps; free ports.
import { createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

export { sleep }

/**
 * Waits until `condition` (may be async) returns something truthy, and returns that. An exception counts as "not yet";
 * the last one is the cause of the error at the end.
 */
export async function waitFor(condition, { timeoutMs = 10_000, intervalMs = 20, what = condition.toString() } = {}) {
  const end = Date.now() + timeoutMs
  let cause
  do {
    try {
      const value = await condition()
      if (value) return value
      cause = undefined
    } catch (error) {
      cause = error
    }
    await sleep(intervalMs)
  } while (Date.now() < end)
  throw new Error(`not within ${timeoutMs} ms: ${what}`, { cause })
}

/** A port of 127.0.0.1 that nothing listens on now. */
export function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address()
      server.close(() => resolve(port))
    })
  })
}
