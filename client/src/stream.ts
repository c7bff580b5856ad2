/** One shape: reads its stream, applies what comes, tries again after a failure, and says how it is doing. */
import { FetchError, ShapeStream, isChangeMessage, type Row } from '@electric-sql/client'
import type { PGlite } from '@electric-sql/pglite'
import { MismatchError, advanceOnly, applyBatch, applySnapshot, writing } from './apply.js'
import { type ShapeMessage, hasControl } from './fold.js'
import { HttpError, type Network } from './network.js'
import { messagesOf, slicesOf } from './snapshot.js'
import { type PreparedTable, type ServerSchema, captureEarly, prepareTable, relationIn, relationOf } from './tables.js'
import type { ShapeDefinition, ShapeStatus, SyncError } from './types.js'
import { Notifier } from './wait.js'

/** What all streams share. */
export interface StreamContext {
  pglite: PGlite
  network: Network
  url: string
  params: Readonly<Record<string, string>>
  /** Local changes may be confirmed by what was applied. */
  applied: () => void
  /** Rows left a shape that is followed. */
  left: () => void
}

interface StreamRow {
  id: number
  handle: string | null
  offset: string | null
  position: string | null
  synced_ms: number | null
}

const streamColumns = 'id, handle, "offset", position::text, extract(epoch from last_synced)::float8 * 1000 as synced_ms'

/** A stream's run from one stored offset on; it ends with a failure or by its signal. */
interface Run {
  row: StreamRow
  /** The shape is followed; else the run ends when it is up to date, and the status says nothing of it. */
  follows: boolean
  /** What was answered before may be what failed: nothing is begun from a cache. */
  isAgain: boolean
  signal: AbortSignal
  /** Nothing has been applied since it started over. */
  isFresh: boolean
  schemas: Map<string, ServerSchema>
  /** Parts of a snapshot that the protocol client has asked for, by handle and offset. */
  bodies: Map<string, string>
  /** The newest body that is asked for is read. */
  reading: Promise<unknown>
  /** The shape starts over where it must, and its table is captured: what is applied waits for it, what is asked for does not. */
  begun: Promise<unknown>
  prepared?: { handle: string; table: Promise<PreparedTable> }
  client?: ShapeStream<Row>
}

export class ShapeFollower {
  status: ShapeStatus = { status: 'stopped', isUpToDate: false }
  readonly changed = new Notifier()
  /** Resolves when what is written to its table is captured. */
  captured: Promise<void> = Promise.resolve()
  #stop: AbortController | undefined
  #catching: AbortController | undefined
  #ended: Promise<void> = Promise.resolve()
  #run: Run | undefined

  constructor(private readonly context: StreamContext, readonly definition: ShapeDefinition) {}

  start(): void {
    if (this.#stop) return
    this.#catching?.abort()
    const stop = new AbortController()
    this.#stop = stop
    this.#set({ status: 'loading' })
    this.captured = this.#capture().catch(() => {}) // what is wrong with it is told with the first answer
    this.#ended = this.#ended.then(() => this.#follow(stop.signal)).catch((error: unknown) => {
      if (!stop.signal.aborted) this.#set({ status: 'waiting', error: asSyncError(error) })
    })
  }

  /** Resolves when nothing of it is under way any more. */
  stop(): Promise<void> {
    this.#catching?.abort()
    this.#stop?.abort()
    this.#stop = undefined
    this.#set({ status: 'stopped' })
    return this.#ended
  }

  /** Brings the rows of a shape that is not followed up to date, unless it is followed meanwhile. Rejects with what fails. */
  catchUp(): Promise<void> {
    if (this.#stop) return Promise.resolve()
    const catching = new AbortController()
    this.#catching = catching
    const caught = this.#ended.then(() => (catching.signal.aborted ? undefined : this.#once(catching.signal, false, false)))
    this.#ended = caught.catch(() => {})
    return caught
  }

  /** Removes its rows that no other shape has, unless it is followed meanwhile. */
  forget(): Promise<void> {
    this.#catching?.abort()
    const forgotten = this.#ended.then(async () => {
      if (!this.#stop) await this.#call('forget')
    })
    this.#ended = forgotten.catch(() => {})
    return forgotten
  }

  /** Asks the server at once how far it is, instead of waiting for news. */
  refresh(): void {
    this.#run?.client?.forceDisconnectAndRefresh().catch(() => {})
  }

  get table(): string | undefined {
    return this.status.table
  }

  /** Runs, one after the other, until it is stopped. A mismatch starts over; any other failure goes on where rows and offset are. */
  async #follow(signal: AbortSignal): Promise<void> {
    for (let attempt = 1; !signal.aborted; attempt++) {
      let failure: unknown
      try {
        await this.#once(signal, true, attempt > 1, () => (attempt = 1))
      } catch (error) {
        failure = error
      }
      if (signal.aborted) break
      this.#set({ status: 'waiting', error: asSyncError(failure) })
      await this.context.network.pause(attempt, signal).catch(() => {})
      if (failure instanceof MismatchError) await this.#call('start_over')
    }
    await this.#setActive(false)
  }

  async #once(signal: AbortSignal, follows: boolean, isAgain: boolean, progress: () => void = () => {}): Promise<void> {
    const row = follows ? await this.#setActive(true) : await this.#kept()
    if (!row) return
    const begun = Promise.all([this.captured, row.offset === null ? this.#call('start_over') : undefined])
    if (follows) this.#set({ isUpToDate: row.position !== null && row.synced_ms !== null, lastSynced: row.synced_ms ?? undefined })
    if (signal.aborted) return begun.then(() => {})
    const abort = new AbortController()
    const stop = () => abort.abort()
    signal.addEventListener('abort', stop)
    const run: Run = { row, follows, isAgain, signal: abort.signal, isFresh: row.offset === null, schemas: new Map(), bodies: new Map(), reading: Promise.resolve(), begun }
    try {
      await this.#read(run, progress)
    } finally {
      abort.abort()
      signal.removeEventListener('abort', stop)
      this.#run = undefined
    }
  }

  /** Reads until something fails (rejects), or the signal says stop or there is no more (resolves), and nothing is being applied any more. */
  async #read(run: Run, progress: () => void): Promise<void> {
    let applying: Promise<unknown> = run.begun
    await new Promise<void>((resolve, reject) => {
      run.begun.catch(reject)
      const client = this.#client(run, resolve, reject)
      run.client = client
      this.#run = run
      run.signal.addEventListener('abort', () => resolve())
      client.subscribe((messages) => {
        if (run.signal.aborted) return
        const at = { handle: client.shapeHandle as string, offset: client.lastOffset as string }
        applying = run.begun.then(() => this.#take(run, messages, at)).then(progress, reject)
        return applying as Promise<void>
      })
    }).finally(() => Promise.allSettled([applying, run.prepared?.table]))
  }

  #client(run: Run, end: () => void, fail: (error: unknown) => void): ShapeStream<Row> {
    const { url, params, network } = this.context
    const { row } = run
    const request = async (input: string | URL | Request, init?: RequestInit) => {
      const asked = new URL(input instanceof Request ? input.url : input).searchParams
      if (!run.follows && asked.has('live')) end() // who waits for news has all that there is
      await this.#notice(run, asked)
      // What is cached is good to start from, unless that was what failed, but is not all there is.
      const fresh = run.follows && !(run.isAgain && asked.get('offset') === '-1') ? init : { ...init, cache: 'no-cache' as const }
      const answer = describe(run, await network.request(input, fresh, (trouble) => this.#trouble(run, trouble)))
      const handle = answer.headers.get('electric-handle')
      if (handle && !run.signal.aborted && !('shape' in this.definition)) this.#prepare(run, handle, relationIn(this.definition))
      return answer
    }
    return new ShapeStream<Row>({
      url: `${url}/v1/shape`,
      params: { ...requestParams(this.definition), ...params } as never,
      ...(row.offset !== null && row.handle !== null ? { offset: row.offset as `${number}_${number}`, handle: row.handle } : {}),
      signal: run.signal,
      onError: (error) => fail(error),
      fetchClient: request,
    })
  }

  /** The protocol client begins again without a word where it takes itself to be in a loop. */
  async #notice(run: Run, asked: URLSearchParams): Promise<void> {
    if (asked.get('offset') === '-1' && !run.isFresh) await this.#beginAgain(run)
  }

  async #beginAgain(run: Run): Promise<void> {
    run.bodies.clear()
    await this.#call('start_over')
    run.isFresh = true
    if (run.follows) this.#set({ status: 'loading', isUpToDate: false })
  }

  #trouble(run: Run, trouble: Error | undefined): void {
    if (run.signal.aborted || !run.follows) return
    if (trouble) this.#set({ status: 'waiting', error: asSyncError(trouble) })
    else if (this.status.error) this.#set({ status: this.status.isUpToDate ? 'live' : 'loading', error: undefined })
  }

  async #take(run: Run, received: ShapeMessage[], at: { handle: string; offset: string }): Promise<void> {
    if (hasControl(received, 'must-refetch')) {
      await this.#beginAgain(run)
      return
    }
    run.isFresh = false
    const slices = partOf(run, at)
    const table = await this.#tableFor(run, () => (slices ? messagesOf(slices[0] as string) : received), at.handle)
    const { pglite } = this.context
    const batch = { stream: run.row.id, ...at }
    if (!table) await advanceOnly(pglite, batch, received)
    else if (slices) await applySnapshot(pglite, { ...batch, table }, slices)
    else await applyBatch(pglite, { ...batch, table }, received)
    if (run.follows && hasControl(received, 'up-to-date')) this.#set({ status: 'live', isUpToDate: true, lastSynced: Date.now(), error: undefined })
    this.context.applied()
    if (run.follows && received.some(({ headers }) => headers.operation === 'delete')) this.context.left()
  }

  /** The local table. A named shape's is known with its first row, or from the definition; of any other it is made while rows are on their way. */
  async #tableFor(run: Run, messages: () => ShapeMessage[], handle: string): Promise<PreparedTable['table'] | undefined> {
    if (run.prepared?.handle !== handle) {
      const first = messages().find((message) => isChangeMessage(message))
      this.#prepare(run, handle, (first && relationOf(first.headers)) ?? relationIn(this.definition))
      if (first && run.prepared?.handle !== handle) throw new Error('the server described no columns')
    }
    if (run.prepared?.handle !== handle) return undefined
    const { table, unknownColumns } = await run.prepared.table
    this.#set({ table: table.name, unknownColumns: unknownColumns.length ? unknownColumns : undefined })
    return table
  }

  /** Has the table made, or matched, once for each handle. */
  #prepare(run: Run, handle: string, relation: [string, string] | undefined): void {
    const schema = run.schemas.get(handle)
    if (run.prepared?.handle === handle || !relation || !schema) return
    const table = run.begun.then(() => prepareTable(this.context.pglite, run.row.id, relation, schema, handle))
    table.catch(() => {}) // told to whoever applies rows to it
    run.prepared = { handle, table }
  }

  async #kept(): Promise<StreamRow | undefined> {
    const { rows } = await this.context.pglite.query<StreamRow>(`select ${streamColumns} from sync.stream where definition = $1`, [JSON.stringify(this.definition)])
    return rows[0]
  }

  /** Captures from now on what is written to its table, where that is the application's own: the shape's first answer may come late. */
  async #capture(): Promise<void> {
    const relation = relationIn(this.definition)
    if (relation) await captureEarly(this.context.pglite, relation)
  }

  async #setActive(active: boolean): Promise<StreamRow> {
    const { rows } = await this.context.pglite.query<StreamRow>(`insert into sync.stream (definition, active) values ($1, $2)
      on conflict (definition) do update set active = excluded.active,
        released = case when stream.active and not excluded.active then now() else stream.released end
      returning ${streamColumns}`,
    [JSON.stringify(this.definition), active])
    return rows[0] as StreamRow
  }

  /** Calls a function of schema `sync` that takes a stream. */
  async #call(name: 'start_over' | 'forget'): Promise<void> {
    await writing(this.context.pglite, (tx) => tx.query(`select sync.${name}(id) from sync.stream where definition = $1`, [JSON.stringify(this.definition)]))
  }

  #set(change: Partial<ShapeStatus>): void {
    const before = JSON.stringify(this.status)
    this.status = { ...this.status, ...change }
    if (JSON.stringify(this.status) !== before) this.changed.fire()
  }
}

/**
 * Keeps the description of the columns, and has the protocol client know of none: it hands values on as they are, Postgres reads them.
 * A part of a snapshot it does not read at all: it would visit each value, and take longer for it than Postgres for the row. Bodies
 * are read one after the other, while the rows before them are applied.
 */
function describe(run: Run, answer: Response): Response {
  const schema = answer.headers.get('electric-schema')
  const handle = answer.headers.get('electric-handle')
  if (!answer.ok || !schema || !handle) return answer
  run.schemas.set(handle, JSON.parse(schema) as ServerSchema)
  const headers = new Headers(answer.headers)
  headers.set('electric-schema', '{}')
  const offset = headers.get('electric-offset')
  const isPart = offset?.startsWith('0_') && !headers.has('electric-up-to-date')
  const body = run.reading.then(() => answer.text())
  run.reading = body.catch(() => {}) // told to whoever asks for it
  const text = async () => {
    if (!isPart) return body
    run.bodies.set(`${handle} ${offset}`, await body)
    return placeholder
  }
  return Object.assign(new Response(null, { status: answer.status, headers }), { text })
}

const placeholder = JSON.stringify([{ headers: { control: 'rows' } }])

/** A part of a snapshot, which went past the protocol client. */
function partOf(run: Run, { handle, offset }: { handle: string; offset: string }): string[] | undefined {
  const key = `${handle} ${offset}`
  const body = run.bodies.get(key)
  run.bodies.delete(key)
  return body === undefined ? undefined : slicesOf(body)
}

function requestParams(definition: ShapeDefinition): Record<string, unknown> {
  const params = definition.params && Object.fromEntries(Object.entries(definition.params)
    .map(([name, value]) => [Array.isArray(definition.params) ? String(Number(name) + 1) : name, String(value)]))
  if ('shape' in definition) return { shape: definition.shape, params }
  const { table, where, columns } = definition
  return { table, where, columns: columns && [...columns], params }
}

/** A failure as it is shown. */
export function asSyncError(error: unknown): SyncError {
  const { message = String(error) } = error as Error
  if (error instanceof HttpError) return { message, httpStatus: error.httpStatus }
  if (error instanceof FetchError) return { message: (error.json as { message?: string } | undefined)?.message ?? message, httpStatus: error.status }
  const { code } = error as { code?: unknown }
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) ? { message, sqlstate: code } : { message }
}
