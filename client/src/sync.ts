/** The client: a local database, streams that fill it, and a sender for what is written to it. */
import { PGlite, type Results, type Transaction } from '@electric-sql/pglite'
import { live } from '@electric-sql/pglite/live'
import { liveQuery } from './live.js'
import { listen } from './listen.js'
import { Network } from './network.js'
import { Outbox, outboxChannel } from './outbox.js'
import { Keeper } from './keep.js'
import { install } from './sql/install.js'
import { writing } from './apply.js'
import { ShapeFollower } from './stream.js'
import { migrate, schemaChannel } from './tables.js'
import type {
  Database, LivePGlite, Rejection, ShapeDefinition, ShapeHandle, ShapeStatus, Sync, SyncOptions, SyncStatus, Unsubscribe,
} from './types.js'
import { Notifier } from './wait.js'

/** How long shapes have for what was written before they are asked how far they are, in milliseconds. */
const confirmationDelay = 250

/** How long shapes are kept if the application says nothing, in milliseconds. */
const keepFor = 30 * 86_400_000

/** Installs schema `sync` and the application's schema: what a prebuilt data directory has. `createSync` does it as well. */
export async function prepareDatabase(pglite: PGlite, schema?: SyncOptions['schema']): Promise<void> {
  await writing(pglite, (tx) => tx.exec(install))
  await migrate(pglite, schema)
}

/**
 * Opens the local database and starts to sync. It runs where PGlite runs: in a worker, or in Node.
 *
 * ```ts
 * const sync = await createSync({ url: 'https://sync.example.com', userId: '7', getToken })
 * const folders = sync.shape({ table: 'folders', where: 'workspace_id = $1', params: [42] })
 * await folders.upToDate()
 * await sync.db.query('update folders set name = $1 where id = $2', ['Plans', 'c0ffee'])
 * ```
 */
export async function createSync(options: SyncOptions): Promise<Sync> {
  const pglite = options.pglite ?? await PGlite.create({ dataDir: options.dataDir, extensions: { live } })
  await prepareDatabase(pglite, options.schema)
  await pglite.exec('update sync.meta set client_id = coalesce(client_id, gen_random_uuid()); update sync.stream set active = false, released = now() where active')
  const sync = new LocalSync(options, pglite as PGlite & LivePGlite)
  await sync.start()
  return sync
}

/** A shape that is followed or kept, with its handles counted. */
interface Followed {
  follower: ShapeFollower
  handles: number
}

class LocalSync implements Sync {
  readonly db: Database
  readonly #network: Network
  readonly #outbox: Outbox
  readonly #keeper: Keeper
  readonly #shapes = new Map<string, Followed>()
  readonly #changed = new Notifier()
  readonly #url: string
  readonly #cleanups: (() => unknown)[] = []
  #counts = { pending: 0, rejected: 0 }
  #counting: Promise<void> | undefined
  #confirmation: ReturnType<typeof setTimeout> | undefined
  #closed = false

  constructor(private readonly options: SyncOptions, readonly pglite: PGlite & LivePGlite) {
    this.db = databaseOf(pglite, () => Promise.all([...this.#shapes.values()].map(({ follower }) => follower.captured)))
    this.#url = options.url.replace(/\/+$/, '')
    this.#network = new Network(options)
    this.#outbox = new Outbox({
      pglite,
      network: this.#network,
      url: this.#url,
      params: options.params ?? {},
      guarded: options.rejectIfChanged ?? [],
      applied: (tables) => this.#confirmSoon(tables),
    })
    this.#keeper = new Keeper({
      pglite,
      keepFor: options.keepFor ?? keepFor,
      catchUp: (definition) => this.#followed(definition).follower.catchUp(),
      forget: (definition) => this.#forget(this.#followed(definition)),
      onError: this.#report,
    })
  }

  async start(): Promise<void> {
    this.#cleanups.push(
      this.#network.changed.on(() => {
        this.#changed.fire()
        if (this.#network.state.online) this.#keeper.look()
      }),
      this.#outbox.changed.on(() => {
        this.#changed.fire()
        void this.#count()
      }),
      await listen(this.pglite, outboxChannel, () => {
        this.#outbox.wake()
        void this.#count()
      }),
      await listen(this.pglite, schemaChannel, () => this.#outbox.restart()),
      listenToNetwork(() => this.wake()),
    )
    await this.#count()
    this.#outbox.start()
    this.#keeper.start()
  }

  shape(definition: ShapeDefinition): ShapeHandle {
    const followed = this.#followed(definition)
    followed.handles++
    followed.follower.start()
    return new Handle(followed.follower, () => {
      if (--followed.handles > 0) return
      followed.follower.stop().then(() => this.#keeper.released(), this.#report)
    })
  }

  live<T>(sql: string, params: unknown[] | undefined, callback: (rows: T[]) => void, onError: (error: Error) => void = this.#report): Promise<Unsubscribe> {
    return liveQuery(this.pglite, sql, params, callback, onError)
  }

  status(): SyncStatus {
    return { ...this.#network.state, ...this.#counts, leader: true, error: this.#outbox.error }
  }

  subscribe(callback: (status: SyncStatus) => void): () => void {
    return this.#changed.on(() => callback(this.status()))
  }

  async rejections(): Promise<Rejection[]> {
    const { rows } = await this.pglite.query<Rejection>(`select id, extract(epoch from rejected_at)::float8 * 1000 as "rejectedAt",
      sqlstate, "constraint", message, operation, operations from sync.rejection order by id`)
    return rows
  }

  async retry(rejection: number): Promise<void> {
    await this.pglite.query('select sync.retry($1)', [rejection])
    await this.#count()
  }

  async discard(rejection: number): Promise<void> {
    await this.pglite.query('delete from sync.rejection where id = $1', [rejection])
    await this.#count()
  }

  async forget(definition: ShapeDefinition): Promise<void> {
    const followed = this.#followed(definition)
    if (followed.handles > 0) throw new Error('the shape is followed: release its handles first')
    await this.#forget(followed)
  }

  async #forget(followed: Followed): Promise<void> {
    await followed.follower.forget()
    if (followed.handles === 0) this.#shapes.delete(canonical(followed.follower.definition))
  }

  wake(): void {
    this.#network.wake()
    this.#outbox.wake()
    for (const { follower } of this.#shapes.values()) follower.refresh()
  }

  async sent(): Promise<void> {
    await this.#count()
    while (this.#counts.pending > 0) await this.#changed.wait(1000)
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    clearTimeout(this.#confirmation)
    const kept = this.#keeper.stop()
    await Promise.all([...this.#shapes.values()].map(({ follower }) => follower.stop()))
    await this.#outbox.stop()
    await kept
    await this.#counting
    for (const cleanup of this.#cleanups) await cleanup()
    if (!this.options.pglite) await this.pglite.close()
  }

  #followed(definition: ShapeDefinition): Followed {
    const key = canonical(definition)
    const known = this.#shapes.get(key)
    if (known) return known
    const follower = new ShapeFollower({
      pglite: this.pglite,
      network: this.#network,
      url: this.#url,
      params: this.options.params ?? {},
      applied: () => this.#changed.fire(),
      left: () => this.#keeper.look(),
    }, definition)
    const followed = { follower, handles: 0 }
    this.#shapes.set(key, followed)
    return followed
  }

  /** What was written without a visible effect on a shape is confirmed by the shape's position: ask for it. */
  #confirmSoon(tables: Set<string>): void {
    clearTimeout(this.#confirmation)
    this.#confirmation = setTimeout(async () => {
      const { rows } = await this.pglite.query<{ name: string }>('select distinct name from sync.outbox where ack is not null')
      const waiting = new Set(rows.map(({ name }) => name))
      for (const { follower } of this.#shapes.values()) {
        if (follower.table !== undefined && waiting.has(follower.table) && tables.has(follower.table)) follower.refresh()
      }
    }, confirmationDelay)
  }

  /** Counts what is pending and rejected; one count at a time, and one more if something happened meanwhile. */
  #count(): Promise<void> {
    this.#recount = true
    this.#counting ??= this.#countAll().catch(this.#report).finally(() => (this.#counting = undefined))
    return this.#counting
  }

  #recount = false

  async #countAll(): Promise<void> {
    while (this.#recount) {
      this.#recount = false
      const { rows } = await this.pglite.query<SyncStatus>(`select
        (select count(distinct tx) from sync.outbox where ack is null)::int as pending, (select count(*) from sync.rejection)::int as rejected`)
      const { pending, rejected } = rows[0] as SyncStatus
      if (pending === this.#counts.pending && rejected === this.#counts.rejected) continue
      this.#counts = { pending, rejected }
      this.#changed.fire()
    }
  }

  readonly #report = (error: unknown): void => {
    if (this.#closed) return
    if (this.options.onError) this.options.onError(error)
    else console.error(error)
  }
}

class Handle implements ShapeHandle {
  #released = false

  constructor(private readonly follower: ShapeFollower, private readonly letGo: () => void) {}

  get definition() { return this.follower.definition }
  get status() { return this.follower.status.status }
  get isUpToDate() { return this.follower.status.isUpToDate }
  get lastSynced() { return this.follower.status.lastSynced }
  get error() { return this.follower.status.error }
  get unknownColumns() { return this.follower.status.unknownColumns }
  get table() { return this.follower.status.table }

  subscribe(callback: (status: ShapeStatus) => void): () => void {
    return this.follower.changed.on(() => callback(this.follower.status))
  }

  async upToDate(): Promise<void> {
    while (!(this.status === 'live')) await this.follower.changed.wait(1000)
  }

  release(): void {
    if (this.#released) return
    this.#released = true
    this.letGo()
  }
}

/** Nothing is written before the tables of shapes that are followed are captured. */
function databaseOf(pglite: PGlite, captured: () => Promise<unknown>): Database {
  return {
    query: async <T>(sql: string, params?: unknown[]) => {
      await captured()
      return pglite.query<T>(sql, params)
    },
    // PGlite writes to disk after a query, but not after a transaction's COMMIT.
    transaction: async <T>(work: (tx: Transaction) => Promise<T>) => {
      await captured()
      const result = await pglite.transaction(work)
      await pglite.syncToFs()
      return result
    },
    exec: async (sql: string) => {
      await captured()
      return pglite.exec(sql) as Promise<Results[]>
    },
  }
}

/** One text for definitions that say the same. */
export function canonical(definition: object): string {
  return JSON.stringify(definition, (_, value: unknown) => (value && typeof value === 'object' && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
    : value))
}

/** Browsers and their workers say when the network is back; a hint only. */
function listenToNetwork(back: () => void): () => void {
  const target = globalThis as { addEventListener?: typeof addEventListener; removeEventListener?: typeof removeEventListener }
  target.addEventListener?.('online', back)
  return () => target.removeEventListener?.('online', back)
}
