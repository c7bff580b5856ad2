/** The worker's side: the database, streams and the sender of one user, in whichever tab's worker is the leader. */
import type { PGlite } from '@electric-sql/pglite'
import { MemfsFrontendFS } from '@electric-sql/pglite/memfs-frontend'
import { worker } from '@electric-sql/pglite/worker'
import { openOn } from './durable.js'
import { createSync } from './index.js'
import { IndexedDbBackend, isInIndexedDb } from './indexeddb.js'
import { hasOpfs, opfsFolder } from './opfs.js'
import { TabHost } from './tab-host.js'
import type { SyncOptions } from './types.js'

/** Options of `serveSync`: what cannot be sent to a worker, and what is the same for all users. */
export type WorkerOptions = Pick<SyncOptions, 'schema' | 'rejectIfChanged' | 'keepFor' | 'fetch'>

/** What a tab sends along. */
export interface WorkerMeta {
  id: string
  /** Its name. */
  tab: string
  url: string
  userId: string
  params?: Readonly<Record<string, string>>
}

/** A Postgres that has just been made, so that the browser need not make one. */
const newDatabase = new URL('./pgdata.tar.gz', import.meta.url)

/**
 * Makes this worker one that `connectSync` can use; call it once, at the top of the worker's own file. Of all tabs of one
 * user, one worker has the database; when its tab is closed, the next one takes over.
 */
export function serveSync(options: WorkerOptions = {}): void {
  void worker({
    init: async ({ meta }) => {
      const { id, tab, ...rest } = meta as WorkerMeta
      const host = new TabHost(id, tab)
      try {
        const pglite = await Promise.race([openDatabase(id), unhandled()])
        const sync = await createSync({ ...options, ...rest, pglite, getToken: (refused) => host.askToken(refused) } satisfies SyncOptions)
        host.serve(sync)
        return pglite as unknown as PGlite
      } catch (error) {
        host.fail(error)
        throw error
      }
    },
  })
}

/** PGlite waits for ever for a file that cannot be loaded: that is told here alone. */
function unhandled(): Promise<never> {
  const failure = new Promise<never>((_, reject) => addEventListener('unhandledrejection', ({ reason }) => reject(reason), { once: true }))
  failure.catch(() => {}) // the database may be open by then
  return failure
}

async function openDatabase(id: string) {
  const { fs, isNew } = await storageOf(id)
  return openOn(fs, isNew ? await fetchNewDatabase() : undefined)
}

/** In OPFS; where a worker cannot write there, in IndexedDB. */
async function storageOf(id: string): Promise<{ fs: MemfsFrontendFS; isNew: boolean }> {
  if (await hasOpfs() && !await isInIndexedDb(id)) return opfsFolder(id)
  const backend = new IndexedDbBackend(id)
  return { fs: new MemfsFrontendFS(backend), isNew: !(await backend.hasDatabase()) }
}

async function fetchNewDatabase(): Promise<Blob | undefined> {
  const response = await fetch(newDatabase)
  return response.ok ? response.blob() : undefined
}
