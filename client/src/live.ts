/** Live queries that outlive their tables: PGlite's, made anew when a table is made or altered. */
import { listen } from './listen.js'
import { schemaChannel } from './tables.js'
import type { LivePGlite, Unsubscribe } from './types.js'

/** "relation does not exist", "column does not exist": what a query may name before its shape has come. */
const notThereYet = new Set(['42P01', '42703', '3F000'])

/**
 * Calls back with the rows of a query, now and whenever one of its tables changes. As long as a table of it is not there it has no
 * rows. Needs PGlite alone, so that pages can use it with a `PGliteWorker`.
 */
export async function liveQuery<T>(pglite: LivePGlite, sql: string, params: unknown[] | undefined, callback: (rows: T[]) => void,
  onError: (error: Error) => void = (error) => console.error(error)): Promise<Unsubscribe> {
  let ended = false
  let current: Unsubscribe | undefined
  let turn: Promise<void> = Promise.resolve()
  const open = async () => {
    await current?.().catch(() => {})
    current = undefined
    if (ended) return
    try {
      const query = await pglite.live.query<T & object>(sql, params, ({ rows }) => {
        if (!ended) callback(rows as T[])
      })
      current = () => query.unsubscribe()
    } catch (error) {
      if (notThereYet.has((error as { code?: string }).code ?? '')) callback([])
      else onError(error as Error)
    }
  }
  const reopen = () => (turn = turn.then(open))
  const unlisten = await listen(pglite, schemaChannel, () => void reopen())
  await reopen()
  return async () => {
    ended = true
    await unlisten()
    await reopen()
  }
}
