/** Shapes that nobody follows: their rows stay for the next visit, and are no older than the user's rights for long. */
import { FetchError } from '@electric-sql/client'
import type { PGlite } from '@electric-sql/pglite'
import type { ShapeDefinition } from './types.js'
import { Notifier } from './wait.js'

/** After the start, what the application follows comes first. In milliseconds, as all here. */
const afterStart = 2_000
/** Each kept shape is brought up to date that often, if there is no reason to do it earlier. */
const regularly = 300_000
/** Time between two rounds for each shape of the first one, so that many kept shapes are no load. */
const restPerShape = 2_000

/** What keeping shapes needs of others. */
export interface KeeperContext {
  pglite: PGlite
  /** How long rows of a shape stay after nobody follows it. */
  keepFor: number
  /** Brings the rows of a shape that nobody follows up to date, or does nothing if somebody does. */
  catchUp: (definition: ShapeDefinition) => Promise<void>
  forget: (definition: ShapeDefinition) => Promise<void>
  onError: (error: unknown) => void
}

/**
 * Brings kept shapes up to date, one after the other: each one soon after it was released, since what it did not receive any more
 * may be that its rows are not the user's any more; all of them after the start, after a time without a network, when rows of
 * followed shapes went, and regularly. Forgets those that the server refuses, and those that were kept for long.
 */
export class Keeper {
  readonly #news = new Notifier()
  readonly #stop = new AbortController()
  #running: Promise<void> = Promise.resolve()
  /** Shapes that were up to date before this time are looked at. */
  #lookedAt = 0
  #nextLook = 0
  #restsUntil = 0
  #released = false

  constructor(private readonly context: KeeperContext) {}

  start(): void {
    this.#nextLook = Date.now()
    this.#running = this.#run(this.#stop.signal).catch(() => {}) // it was stopped
  }

  stop(): Promise<void> {
    this.#stop.abort()
    return this.#running
  }

  /** Rights of the user may have changed: all shapes are looked at, as soon as the last round was long enough ago. */
  look(): void {
    this.#nextLook = Math.min(this.#nextLook, Math.max(Date.now(), this.#restsUntil))
    this.#news.fire()
  }

  /** A shape is not followed any more. */
  released(): void {
    this.#released = true
    this.#news.fire()
  }

  async #run(signal: AbortSignal): Promise<void> {
    await new Notifier().wait(afterStart, signal)
    for (;;) {
      const now = Date.now()
      if (now >= this.#nextLook) {
        this.#lookedAt = now
        this.#nextLook = now + regularly
      }
      this.#released = false
      const shapes = await this.#round(signal).catch((error: unknown) => { this.context.onError(error); return 0 })
      this.#restsUntil = Math.max(this.#restsUntil, this.#lookedAt + shapes * restPerShape)
      if (!this.#released) await this.#news.wait(Math.max(0, this.#nextLook - Date.now()), signal)
      else signal.throwIfAborted()
    }
  }

  /** Returns the number of shapes that were looked at. */
  async #round(signal: AbortSignal): Promise<number> {
    const { rows } = await this.context.pglite.query<{ definition: ShapeDefinition; is_old: boolean }>(`
      select definition, coalesce(released < now() - $2 * interval '1 ms', false) as is_old from sync.stream
        where not active and (last_synced is null or last_synced < greatest(released, to_timestamp($1 / 1000.0)))
        order by last_synced nulls first`, [this.#lookedAt, this.context.keepFor])
    for (const { definition, is_old: isOld } of rows) {
      if (signal.aborted) break
      await (isOld ? this.context.forget(definition) : this.#catchUp(definition)).catch(this.context.onError)
    }
    return rows.length
  }

  async #catchUp(definition: ShapeDefinition): Promise<void> {
    try {
      await this.context.catchUp(definition)
    } catch (error) {
      if (!isRefusal(error)) throw error
      await this.context.forget(definition)
    }
  }
}

/** The sync service itself says no, not something on the way to it. */
function isRefusal(error: unknown): boolean {
  return error instanceof FetchError && error.status >= 400 && error.status < 500 && error.json !== undefined
}
