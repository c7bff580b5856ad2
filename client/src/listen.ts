import type { PGliteInterface } from '@electric-sql/pglite'
import type { Unsubscribe } from './types.js'

/**
 * LISTEN, in a transaction of its own. PGlite has a lock for transactions and one for listeners: its live queries take them in this
 * order, `pglite.listen` by itself in the other one, and then both wait for ever.
 */
export async function listen(pglite: PGliteInterface, channel: string, callback: (payload: string) => void): Promise<Unsubscribe> {
  const unlisten = await pglite.transaction((tx) => pglite.listen(channel, callback, tx))
  return async () => { await pglite.transaction((tx) => unlisten(tx)) }
}
