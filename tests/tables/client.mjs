// A client that goes on whatever happens to its table: it counts when it must start over, and remembers who refuses it.
import { Follower } from '../lib/shape.mjs'
import { waitFor } from '../lib/wait.mjs'

/** Follows a shape by long-poll until `stop()`: { refetches, refusal, rows(), stop() }. */
export class LiveClient {
  constructor(api, params) {
    Object.assign(this, { api, params, refetches: 0, refusal: undefined, stopped: false, requests: 0 })
    this.follower = new Follower(api, params)
    this.abort = new AbortController()
    this.running = this.run()
  }

  /** Runs until its first answer that is up to date. */
  static async started(api, params) {
    const client = new LiveClient(api, params)
    await waitFor(() => client.failure || client.follower.upToDate, { what: `${JSON.stringify(params)} is up to date` })
    if (client.failure) throw client.failure
    return client
  }

  get handle() {
    return this.follower.handle
  }

  /** Its copy: values of the rows, sorted. */
  rows() {
    return this.follower.values.map((value) => JSON.stringify(value)).sort()
  }

  async run() {
    while (!this.stopped) {
      try {
        await this.request()
      } catch (error) {
        if (!this.stopped) this.failure = error
        return
      }
    }
  }

  async request() {
    const { handle, offset, upToDate, cursor } = this.follower
    const live = upToDate ? { live: 'true', cursor: cursor ?? '' } : {}
    const answer = await this.api.get({ ...this.params, handle, offset, ...live }, { signal: this.abort.signal })
    if (this.stopped) return
    this.requests++
    this.refusal = [200, 409].includes(answer.status) ? undefined : answer
    if (answer.status === 200) return this.follower.take(answer)
    if (answer.status === 409) this.startOver(answer.handle)
    else await new Promise((resolve) => setTimeout(resolve, 50))
  }

  startOver(handle) {
    if (handle === this.follower.handle) throw new Error('the 409 names the handle that it refuses')
    this.refetches++
    this.follower = new Follower(this.api, this.params)
    this.follower.handle = handle
  }

  async stop() {
    this.stopped = true
    this.abort.abort()
    await this.running
  }
}
