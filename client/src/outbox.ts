/**
 * Sends local transactions, in order, until each is answered. Numbers are places in the queue: the head follows the last one that
 * the server has answered. Nothing leaves the queue but by an answer, so a batch that is sent again has the same numbers, and the server,
 * which knows what it has done, answers as before. No state says "sending".
 */
import type { PGlite, Transaction } from '@electric-sql/pglite'
import { type NumberedTransaction, type PendingTransaction, type WriteAnswer, type WriteResult, batchOf, requestBody } from './batch.js'
import { writing } from './apply.js'
import { HttpError, type Network, troubleOf } from './network.js'
import { asSyncError } from './stream.js'
import type { SyncError } from './types.js'
import { Notifier } from './wait.js'

/** Told by the capture trigger: there is something to send. */
export const outboxChannel = 'sync_outbox'

/** Even if nothing wakes it, the sender looks this often, in milliseconds. */
const interval = 30_000

export interface OutboxContext {
  pglite: PGlite
  network: Network
  url: string
  params: Readonly<Record<string, string>>
  /** Tables whose changes are sent with the values that they replace. */
  guarded: readonly string[]
  /** These tables' changes are on the server: their shapes will bring them. */
  applied: (tables: Set<string>) => void
}

interface Meta {
  client_id: string
  last_seq: number
  sent_seq: number
}

export class Outbox {
  error: SyncError | undefined
  /** Fires when the queue or `error` has changed. */
  readonly changed = new Notifier()
  readonly #work = new Notifier()
  readonly #stop = new AbortController()
  #ended: Promise<void> = Promise.resolve()
  #again: AbortController | undefined
  #asked = false
  #one = false

  constructor(private readonly context: OutboxContext) {}

  start(): void {
    this.#ended = this.#run(this.#stop.signal)
  }

  stop(): Promise<void> {
    this.#stop.abort()
    return this.#ended
  }

  /** There is something to send. */
  wake(): void {
    this.#asked = true
    this.#work.fire()
  }

  /** What waits for an answer is made anew: rows have other keys. */
  restart(): void {
    this.#again?.abort()
  }

  async #run(signal: AbortSignal): Promise<void> {
    for (let attempt = 1; !signal.aborted;) {
      this.#asked = false
      const again = this.#again = new AbortController()
      try {
        const more = await this.#step(AbortSignal.any([signal, again.signal]))
        this.#report(undefined)
        attempt = 1
        if (!more && !this.#asked) await this.#work.wait(interval, signal)
      } catch (error) {
        if (signal.aborted) return
        if (again.signal.aborted) continue
        this.#report(error)
        await this.context.network.pause(attempt++, signal).catch(() => {})
      }
    }
  }

  /** Sends what fits into one request. True if there may be more. */
  async #step(signal: AbortSignal): Promise<boolean> {
    const queue = await this.#queue()
    if (queue.length === 0) return false
    const meta = await this.#meta(signal)
    const batch = batchOf(this.#one ? queue.slice(0, 1) : queue, meta.last_seq)
    await this.#noteSent(meta, batch)
    const answer = await this.#post(requestBody(meta.client_id, batch), signal)
    if (answer.status === 409) return this.#startAnew()
    if (answer.ok) return this.#settle(batch, await answer.json() as WriteAnswer)
    const trouble = await troubleOf(answer)
    if (![400, 413].includes(trouble.httpStatus)) throw trouble
    return this.#refused(batch, trouble)
  }

  async #queue(): Promise<PendingTransaction[]> {
    const { rows } = await this.context.pglite.query<PendingTransaction>(`
      select tx, jsonb_agg(jsonb_build_object('operation', operation, 'table', name)
          || case when operation = 'insert' then '{}' else jsonb_build_object('key', key) end
          || case when value is null then '{}' else jsonb_build_object('value', value) end
          || case when base is null or not name = any($1) then '{}' else jsonb_build_object('base', base) end order by id) as operations
        from sync.outbox where tx in (select tx from sync.outbox where ack is null group by tx order by min(id) limit 100)
        group by tx order by min(id)`, [this.context.guarded])
    return rows
  }

  /** Who this is and what it has sent. */
  async #meta(signal: AbortSignal): Promise<Meta> {
    const { rows } = await this.context.pglite.query<Meta>('select client_id, last_seq, sent_seq from sync.meta')
    const meta = rows[0] as Meta
    if (this.#agreed) return meta
    const last = await this.#lastSeqThere(meta, signal)
    this.#agreed = true
    if (last < meta.last_seq) await this.#startAnew()
    else if (last > meta.sent_seq) await this.#setLastSeq(this.context.pglite, last)
    else return meta
    return this.#meta(signal)
  }

  /**
   * The server's last number, asked for once, with one that never is next. If it is one that was never sent from here, the local
   * database is older than what it has sent: those changes come back by their shapes, and numbers go on behind them.
   */
  async #lastSeqThere(meta: Meta, signal: AbortSignal): Promise<number> {
    const answer = await this.#post(requestBody(meta.client_id, [{ seq: Number.MAX_SAFE_INTEGER, tx: 0, operations: [] }]), signal)
    if (answer.status !== 409) throw await troubleOf(answer)
    return (await answer.json() as WriteAnswer).last_seq
  }

  #agreed = false

  async #noteSent(meta: Meta, batch: readonly NumberedTransaction[]): Promise<void> {
    const sent = meta.last_seq + batch.length
    if (sent > meta.sent_seq) await this.context.pglite.query('update sync.meta set sent_seq = $1', [sent])
  }

  #post(body: string, signal: AbortSignal): Promise<Response> {
    const url = new URL(`${this.context.url}/v1/write`)
    for (const [name, value] of Object.entries(this.context.params)) url.searchParams.set(name, value)
    const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body, signal }
    return this.context.network.request(url, init, (trouble) => this.#report(trouble))
  }

  /** The server does not know this client any more: it goes on as another one. */
  async #startAnew(): Promise<boolean> {
    await this.context.pglite.query('update sync.meta set client_id = gen_random_uuid(), last_seq = 0, sent_seq = 0')
    return true
  }

  async #setLastSeq(on: PGlite | Transaction, last: number): Promise<void> {
    await on.query('update sync.meta set last_seq = $1, sent_seq = greatest(sent_seq, $1)', [last])
  }

  /**
   * Takes the results in, up to the first that says nothing final: to be sent again, or applied at a position that the server could not
   * tell yet. The next request begins with that one.
   */
  async #settle(batch: readonly NumberedTransaction[], answer: WriteAnswer): Promise<boolean> {
    const open = answer.results.findIndex((result) => !isFinal(result))
    const settled = batch.slice(0, open < 0 ? answer.results.length : open)
    await writing(this.context.pglite, async (tx) => {
      for (const [index, transaction] of settled.entries()) await settleOne(tx, transaction, answer.results[index] as WriteResult)
      const last = settled.at(-1)
      if (last) await this.#setLastSeq(tx, last.seq)
      await tx.query('select sync.confirm()')
    })
    this.#one = false
    this.changed.fire()
    this.context.applied(new Set(settled.flatMap(({ operations }) => operations.map(({ table }) => table))))
    if (open >= 0) throw new Error((answer.results[open] as { message?: string }).message ?? 'the server does not know yet where a transaction is')
    return true
  }

  /** A request that the server cannot take: alone, each of its transactions shows whether it is the one. */
  async #refused(batch: readonly NumberedTransaction[], trouble: HttpError): Promise<boolean> {
    if (batch.length > 1) {
      this.#one = true
      return true
    }
    const result = { seq: 0, status: 'rejected', sqlstate: trouble.httpStatus === 413 ? '54000' : '22000', message: trouble.message } as const
    await writing(this.context.pglite, (tx) => settleOne(tx, batch[0] as NumberedTransaction, result))
    this.#one = false
    this.changed.fire()
    return true
  }

  #report(error: unknown): void {
    const shown = error === undefined ? undefined : asSyncError(error)
    if (JSON.stringify(shown) === JSON.stringify(this.error)) return
    this.error = shown
    this.changed.fire()
  }
}

const isFinal = (result: WriteResult) => result.status === 'rejected' || (result.status === 'applied' && result.lsn !== undefined)

async function settleOne(tx: Transaction, { tx: local }: NumberedTransaction, result: WriteResult): Promise<void> {
  if (result.status === 'applied') {
    await tx.query('update sync.outbox set ack = $2 where tx = $1', [local, result.lsn])
  } else if (result.status === 'rejected') {
    await tx.query('select sync.reject($1, $2, $3, $4, $5)',
      [local, result.sqlstate, result.constraint ?? null, result.operation ?? null, result.message])
  }
}
