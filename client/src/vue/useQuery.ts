import { onScopeDispose, shallowRef, toValue, watch, type MaybeRefOrGetter, type ShallowRef } from 'vue'
import type { Unsubscribe } from '../types.js'
import { useSync } from './context.js'

/** Rows of a live query. */
export interface QueryRefs<T> {
  rows: Readonly<ShallowRef<readonly T[]>>
  /** The query has been answered, with these parameters. */
  isReady: Readonly<ShallowRef<boolean>>
  error: Readonly<ShallowRef<Error | undefined>>
}

/**
 * Runs a query on the local database, and again whenever a table of it changes, while the scope lives. When the query or its
 * parameters change, rows stay until those of the new one are there.
 */
export function useQuery<T = Record<string, unknown>>(sql: MaybeRefOrGetter<string>, params?: MaybeRefOrGetter<unknown[]>): QueryRefs<T> {
  const sync = useSync()
  const rows = shallowRef<readonly T[]>([])
  const isReady = shallowRef(false)
  const error = shallowRef<Error>()
  let stop = () => {}

  const run = ([text, values]: readonly [string, unknown[] | undefined]) => {
    stop()
    let ended = false
    isReady.value = false
    const fail = (cause: Error) => {
      if (!ended) error.value = cause
    }
    const running: Promise<Unsubscribe | undefined> = sync.live<T>(text, values, (found) => {
      if (ended) return // an answer to what was asked before
      rows.value = found
      error.value = undefined
      isReady.value = true
    }, fail).catch((cause: Error) => { fail(cause); return undefined })
    stop = () => {
      ended = true
      void running.then((unsubscribe) => unsubscribe?.())
    }
  }

  watch(() => JSON.stringify([toValue(sql), toValue(params)]), () => run([toValue(sql), toValue(params)]), { immediate: true })
  onScopeDispose(() => stop())
  return { rows, isReady, error }
}
