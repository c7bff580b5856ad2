/** The page's side of a worker: a `Sync` that asks the leader, and asks again when there is another one. */
import { live } from '@electric-sql/pglite/live'
import { PGliteWorker } from '@electric-sql/pglite/worker'
import { received, sharedChannel, tabChannel, tabLock } from './channel.js'
import type { LeaderCalls, ToLeader, ToTab, ToTabs } from './channel.js'
import type {
  Database, LivePGlite, Rejection, ShapeDefinition, ShapeHandle, ShapeStatus, Sync, SyncError, SyncOptions, SyncStatus, Unsubscribe,
} from './types.js'
import type { WorkerMeta } from './worker.js'

/** Options of `connectSync`. */
export interface ConnectOptions extends Pick<SyncOptions, 'url' | 'userId' | 'getToken' | 'params'> {
  /** Makes a worker whose file calls `serveSync`: `() => new Worker(new URL('./sync.worker.ts', import.meta.url), { type: 'module' })`. */
  worker: () => Worker
}

type Query = { sql: string; params: unknown[] | undefined; callback: (rows: never[]) => void; onError: (error: Error) => void }

/**
 * Connects a page to the database of its user, which the tabs of a browser share. Resolves when the database is open; rejects
 * when it cannot be opened.
 */
export async function connectSync({ worker: makeWorker, getToken, ...rest }: ConnectOptions): Promise<Sync> {
  const id = databaseName(rest.url, rest.userId)
  const tab = new TabSync(id, getToken)
  const meta: WorkerMeta = { id, tab: tab.name, ...rest }
  const worker = makeWorker()
  // Nothing may come between the two: the worker says once that it is there, and only who listens then hears it.
  const connected = PGliteWorker.create(worker, { id, meta, extensions: { live } })
  try {
    await tab.hold()
    const pglite = await Promise.race([connected, tab.failed])
    // Until somebody asks the database, nothing tells that it is open.
    await Promise.race([pglite.query('select 1'), tab.failed])
    tab.use(pglite, worker)
  } catch (error) {
    worker.terminate()
    tab.end()
    throw error
  }
  return tab
}

/** One database for each user of each server. */
function databaseName(url: string, userId: string): string {
  return `shapefeed-${encodeURIComponent(`${userId}@${new URL(url).host}`)}`
}

class TabSync implements Sync {
  readonly failed: Promise<never>
  readonly name = crypto.randomUUID()
  readonly #shared: BroadcastChannel
  readonly #own: BroadcastChannel
  readonly #shapes = new Map<number, TabShape>()
  readonly #queries = new Map<number, Query>()
  readonly #calls = new Map<number, { message: ToLeader; resolve: (value: never) => void; reject: (error: Error) => void }>()
  readonly #callbacks = new Set<(status: SyncStatus) => void>()
  #status: SyncStatus = { online: true, pending: 0, rejected: 0, leader: false, unauthorized: false }
  #refs = 0
  #pglite: PGliteWorker & LivePGlite | undefined
  #worker: Worker | undefined
  #release: () => void = () => {}

  constructor(id: string, private readonly getToken: SyncOptions['getToken']) {
    this.#shared = new BroadcastChannel(sharedChannel(id))
    this.#own = new BroadcastChannel(tabChannel(this.name))
    this.failed = new Promise((_, reject) => {
      this.#shared.onmessage = ({ data }) => this.#takeShared(data as ToTabs, reject)
    })
    this.failed.catch(() => {}) // it may fail after nobody waits any more
    this.#own.onmessage = ({ data }) => this.#takeOwn(data as ToTab)
  }

  /** Takes the lock by which the leader sees that this tab lives. */
  hold(): Promise<void> {
    return new Promise((held) => {
      void navigator.locks.request(tabLock(this.name), () => new Promise<void>((release) => {
        this.#release = release
        held()
      }))
    })
  }

  use(pglite: PGliteWorker & LivePGlite, worker: Worker): void {
    this.#pglite = pglite
    this.#worker = worker
    addEventListener('online', this.#wakeUp)
    document.addEventListener('visibilitychange', this.#wakeUp)
    this.#introduce()
  }

  /** Says all that this tab wants; to a new leader, or to one that may have heard it. */
  #introduce(): void {
    this.#send({ type: 'hello', tab: this.name })
    for (const [ref, { definition }] of this.#shapes) this.#send({ type: 'follow', tab: this.name, ref, definition })
    for (const [ref, { sql, params }] of this.#queries) this.#send({ type: 'query', tab: this.name, ref, sql, params })
    for (const { message } of this.#calls.values()) this.#send(message)
  }

  #send(message: ToLeader): void {
    this.#shared.postMessage(message)
  }

  readonly #wakeUp = (): void => {
    if (document.visibilityState === 'visible') this.wake()
  }

  #takeShared(message: ToTabs, fail: (error: Error) => void): void {
    if (message.type === 'leader') this.#introduce()
    else if (message.type === 'failed') fail(received(message.error))
    else if (message.type === 'askToken') void this.#answerToken(message)
  }

  async #answerToken({ ask, refused }: Extract<ToTabs, { type: 'askToken' }>): Promise<void> {
    this.#send({ type: 'token', ask, token: await this.getToken?.(refused) })
  }

  #takeOwn(message: ToTab): void {
    if (message.type === 'status') this.#setStatus(message.status)
    else if (message.type === 'shape') this.#shapes.get(message.ref)?.set(message.status)
    else if (message.type === 'rows') this.#queries.get(message.ref)?.callback(message.rows as never[])
    else if (message.type === 'queryError') this.#queries.get(message.ref)?.onError(received(message.error))
    else {
      const call = this.#calls.get(message.ref)
      this.#calls.delete(message.ref)
      if (message.type === 'result') call?.resolve(message.value as never)
      else call?.reject(received(message.error))
    }
  }

  #setStatus(status: SyncStatus): void {
    this.#status = status
    for (const callback of this.#callbacks) callback(status)
  }

  get pglite(): PGliteWorker & LivePGlite {
    if (!this.#pglite) throw new Error('the database is not open')
    return this.#pglite
  }

  readonly db: Database = {
    query: async (sql, params) => {
      try {
        return await this.pglite.query(sql, params)
      } catch (error) {
        // The leader's tab was closed. What only reads can be asked once more.
        if (!isLeaderChange(error) || !/^\s*select\b/i.test(sql)) throw error
        return this.pglite.query(sql, params)
      }
    },
    exec: async (sql) => this.pglite.exec(sql),
    transaction: async (work) => {
      const result = await this.pglite.transaction(work)
      // PGlite itself writes to disk after single statements, not after COMMIT.
      await this.pglite.syncToFs()
      return result
    },
  }

  shape(definition: ShapeDefinition): ShapeHandle {
    const ref = ++this.#refs
    const shape = new TabShape(definition, () => {
      this.#shapes.delete(ref)
      this.#send({ type: 'release', tab: this.name, ref })
    })
    this.#shapes.set(ref, shape)
    this.#send({ type: 'follow', tab: this.name, ref, definition: structuredClone(definition) })
    return shape
  }

  async live<T = Record<string, unknown>>(sql: string, params: unknown[] | undefined, callback: (rows: T[]) => void,
    onError: (error: Error) => void = console.error): Promise<Unsubscribe> {
    const ref = ++this.#refs
    this.#queries.set(ref, { sql, params, callback: callback as Query['callback'], onError })
    this.#send({ type: 'query', tab: this.name, ref, sql, params })
    return async () => {
      if (this.#queries.delete(ref)) this.#send({ type: 'endQuery', tab: this.name, ref })
    }
  }

  status(): SyncStatus {
    return this.#status
  }

  subscribe(callback: (status: SyncStatus) => void): () => void {
    this.#callbacks.add(callback)
    return () => this.#callbacks.delete(callback)
  }

  #call<M extends keyof LeaderCalls>(method: M, ...args: Parameters<LeaderCalls[M]>): Promise<Awaited<ReturnType<LeaderCalls[M]>>> {
    const ref = ++this.#refs
    const message: ToLeader = { type: 'call', tab: this.name, ref, method, args }
    return new Promise((resolve, reject) => {
      this.#calls.set(ref, { message, resolve, reject })
      this.#send(message)
    })
  }

  rejections = (): Promise<Rejection[]> => this.#call('rejections')
  retry = (rejection: number): Promise<void> => this.#call('retry', rejection)
  discard = (rejection: number): Promise<void> => this.#call('discard', rejection)
  forget = (definition: ShapeDefinition): Promise<void> => this.#call('forget', definition)
  sent = (): Promise<void> => this.#call('sent')
  wake = (): void => void this.#call('wake')

  /** Lets go of the database; other tabs keep it. */
  async close(): Promise<void> {
    removeEventListener('online', this.#wakeUp)
    document.removeEventListener('visibilitychange', this.#wakeUp)
    this.end()
    await this.#pglite?.syncToFs().catch(() => {})
    this.#worker?.terminate()
  }

  end(): void {
    this.#release()
    this.#shared.close()
    this.#own.close()
  }
}

const isLeaderChange = (error: unknown): boolean => /leader/i.test((error as Error)?.message ?? '')

/** A shape as this tab knows it. */
class TabShape implements ShapeHandle {
  status: ShapeStatus['status'] = 'loading'
  isUpToDate = false
  lastSynced?: number
  error?: SyncError
  unknownColumns?: string[]
  table?: string
  readonly #callbacks = new Set<(status: ShapeStatus) => void>()

  constructor(readonly definition: ShapeDefinition, readonly release: () => void) {}

  set(status: ShapeStatus): void {
    Object.assign(this, { lastSynced: undefined, error: undefined, unknownColumns: undefined, table: undefined, ...status })
    for (const callback of this.#callbacks) callback(status)
  }

  subscribe(callback: (status: ShapeStatus) => void): () => void {
    this.#callbacks.add(callback)
    return () => this.#callbacks.delete(callback)
  }

  upToDate(): Promise<void> {
    if (this.status === 'live' && this.isUpToDate) return Promise.resolve()
    return new Promise((resolve) => {
      const end = this.subscribe(({ status, isUpToDate }) => {
        if (status !== 'live' || !isUpToDate) return
        end()
        resolve()
      })
    })
  }
}
