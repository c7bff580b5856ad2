/** Requests as streams and the sender make them: with a token, tried until there is an answer that means something. */
import { Notifier, delayFor } from './wait.js'
import type { SyncOptions } from './types.js'

/** Delays of the n-th try in a row, in milliseconds: doubled, with jitter, to the longest one. */
const firstDelay = 200
const longestDelay = 15_000

/** How the network is, for the status. */
export interface NetworkState {
  online: boolean
  unauthorized: boolean
}

/** Sends requests of all streams and of the sender; they share a token and what wakes them. */
export class Network {
  readonly state: NetworkState = { online: true, unauthorized: false }
  /** Fires when the state changes. */
  readonly changed = new Notifier()
  readonly #wake = new Notifier()
  readonly #fetch: typeof fetch
  #token: Promise<string | undefined> | undefined

  constructor(private readonly options: Pick<SyncOptions, 'fetch' | 'getToken'>) {
    this.#fetch = options.fetch ?? ((...args) => fetch(...args))
  }

  /** Ends all waiting between tries. */
  wake(): void {
    this.#wake.fire()
  }

  /** Waits for the n-th time in a row, at least `atLeast` ms, or until `wake`. Rejects when the signal aborts. */
  pause(attempt: number, signal?: AbortSignal | null, atLeast = 0): Promise<void> {
    return this.#wake.wait(Math.max(atLeast, delayFor(attempt, firstDelay, longestDelay)), signal)
  }

  /**
   * Like fetch, but network failures, 5xx, 429 and 401 do not come through: it tries again. `onTrouble` is told of each, and of
   * `undefined` once there is an answer.
   */
  async request(url: string | URL | Request, init: RequestInit = {}, onTrouble: (trouble: Error | undefined) => void = () => {}): Promise<Response> {
    for (let attempt = 1; ; attempt++) {
      const token = await this.#currentToken(init.signal)
      const answer = await this.#try(url, init, token)
      if (answer instanceof Response && answer.status < 500 && answer.status !== 429 && answer.status !== 401) {
        onTrouble(undefined)
        return answer
      }
      if (init.signal?.aborted) throw init.signal.reason
      onTrouble(answer instanceof Response ? await troubleOf(answer) : answer)
      if (answer instanceof Response && answer.status === 401 && await this.#otherToken(token)) continue
      await this.pause(attempt, init.signal, answer instanceof Response ? retryAfter(answer) : 0)
    }
  }

  async #try(url: string | URL | Request, init: RequestInit, token: string | undefined): Promise<Response | Error> {
    const headers = new Headers(init.headers)
    if (token !== undefined) headers.set('authorization', `Bearer ${token}`)
    try {
      const answer = await this.#fetch(url, { ...init, headers })
      this.#set({ online: true, unauthorized: answer.status === 401 })
      return answer
    } catch (error) {
      if (!init.signal?.aborted) this.#set({ online: false })
      return error instanceof Error ? error : new Error(String(error))
    }
  }

  /** The application's token; asked for until it has an answer. */
  async #currentToken(signal?: AbortSignal | null): Promise<string | undefined> {
    for (let attempt = 1; ; attempt++) {
      this.#token ??= Promise.resolve(this.options.getToken?.())
      try {
        return await this.#token
      } catch {
        this.#token = undefined
        await this.pause(attempt, signal)
      }
    }
  }

  /** Asks for another token, once for all who were refused the same. False if there is none. */
  async #otherToken(refused: string | undefined): Promise<boolean> {
    const current = this.#token
    if (await current?.catch(() => undefined) !== refused) return true
    if (this.#token === current) {
      const asked = Promise.resolve(this.options.getToken?.(refused))
      this.#token = asked.catch(() => refused)
    }
    return (await this.#token) !== refused
  }

  #set(change: Partial<NetworkState>): void {
    const before = { ...this.state }
    Object.assign(this.state, change)
    if (before.online !== this.state.online || before.unauthorized !== this.state.unauthorized) this.changed.fire()
    if (!before.online && this.state.online) this.wake()
  }
}

/** An answer that is no success, as an error. */
export class HttpError extends Error {
  constructor(readonly httpStatus: number, message: string) {
    super(message)
    this.name = 'HttpError'
  }
}

export async function troubleOf(answer: Response): Promise<HttpError> {
  const text = await answer.text().catch(() => '')
  let told: unknown = text
  try {
    const { message, error } = JSON.parse(text) as { message?: unknown; error?: unknown }
    told = message ?? error
  } catch {
    // No JSON: the text itself.
  }
  const message = typeof told === 'string' && told !== '' ? told : answer.statusText
  return new HttpError(answer.status, `${answer.status} ${message.slice(0, 500)}`)
}

function retryAfter(answer: Response): number {
  const seconds = Number(answer.headers.get('retry-after'))
  return Number.isFinite(seconds) ? seconds * 1000 : 0
}
