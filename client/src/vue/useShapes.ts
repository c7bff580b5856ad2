import { computed, shallowRef, toValue, triggerRef, watch, onScopeDispose, type ComputedRef, type MaybeRefOrGetter } from 'vue'
import type { ShapeDefinition, ShapeHandle, ShapeState, SyncError } from '../types.js'
import { useSync } from './context.js'

/** How a shape, or several together, are doing. */
export interface ShapeRefs {
  /** The least of all: loading, before waiting, before live; stopped where nothing is followed. */
  status: ComputedRef<ShapeState>
  /** All are up to date. True offline, too. */
  isUpToDate: ComputedRef<boolean>
  /** When the server last said that this is all, of the one for which that is longest ago (milliseconds since 1970). */
  lastSynced: ComputedRef<number | undefined>
  /** Why nothing comes to one of them. */
  error: ComputedRef<SyncError | undefined>
}

/**
 * Follows several shapes while the scope lives. When the definitions change, those that stay go on, those that are new are
 * followed before old ones are let go.
 */
export function useShapes(definitions: MaybeRefOrGetter<readonly ShapeDefinition[]>): ShapeRefs {
  const sync = useSync()
  const handles = shallowRef(new Map<string, { handle: ShapeHandle; end: () => void }>())

  const follow = (definition: ShapeDefinition) => {
    const handle = sync.shape(definition)
    const unsubscribe = handle.subscribe(() => triggerRef(handles))
    const end = () => {
      unsubscribe()
      handle.release()
    }
    return { handle, end }
  }
  const followAll = (wanted: readonly ShapeDefinition[]) => {
    const before = handles.value
    const now = new Map<string, { handle: ShapeHandle; end: () => void }>()
    for (const definition of wanted) {
      const key = JSON.stringify(definition)
      if (!now.has(key)) now.set(key, before.get(key) ?? follow(definition))
    }
    handles.value = now
    for (const [key, { end }] of before) if (!now.has(key)) end()
  }

  watch(() => toValue(definitions), followAll, { immediate: true, deep: true })
  onScopeDispose(() => followAll([]))

  const all = computed(() => [...handles.value.values()].map(({ handle }) => handle))
  return {
    status: computed(() => (['loading', 'waiting', 'live'] as const).find((it) => all.value.some(({ status }) => status === it)) ?? 'stopped'),
    isUpToDate: computed(() => all.value.length > 0 && all.value.every((it) => it.isUpToDate)),
    lastSynced: computed(() => oldest(all.value.map(({ lastSynced }) => lastSynced))),
    error: computed(() => all.value.find(({ error }) => error)?.error),
  }
}

/** The least of them; nothing where one is missing. */
function oldest(times: (number | undefined)[]): number | undefined {
  return times.reduce((least, time) => (least === undefined || time === undefined ? undefined : Math.min(least, time)), times[0])
}

/** Follows one shape while the scope lives, or none while the definition is undefined. */
export function useShape(definition: MaybeRefOrGetter<ShapeDefinition | undefined>): ShapeRefs {
  return useShapes(() => {
    const wanted = toValue(definition)
    return wanted ? [wanted] : []
  })
}
