import { onScopeDispose, readonly, shallowRef, type DeepReadonly, type Ref } from 'vue'
import type { SyncStatus } from '../types.js'
import { useSync } from './context.js'

/** How the client is doing: `online`, `pending`, `rejected`, `leader`, … */
export function useSyncStatus(): DeepReadonly<Ref<SyncStatus>> {
  const sync = useSync()
  const status = shallowRef(sync.status())
  onScopeDispose(sync.subscribe((now) => { status.value = now }))
  return readonly(status)
}
