/** Which `Sync` composables use. */
import { inject, type App, type InjectionKey } from 'vue'
import type { Sync } from '../types.js'

const syncKey: InjectionKey<Sync> = Symbol('shapefeed')

/** Lets all components of an application use it: `app.use(syncPlugin(sync))`. */
export function syncPlugin(sync: Sync): { install(app: App): void } {
  return { install: (app) => { app.provide(syncKey, sync) } }
}

/** The `Sync` of this application: `useSync().db.query(…)`. */
export function useSync(): Sync {
  const sync = inject(syncKey, undefined)
  if (!sync) throw new Error('no Sync: call app.use(syncPlugin(sync)) first')
  return sync
}
