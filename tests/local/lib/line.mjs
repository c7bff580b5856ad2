// The line between a client and the sidecar: fetch, with what can happen to it.

/** { fetch, requests, cut(), join(), … }. `requests`: { method, path, params, cache, status, bytes } in order. */
export class Line {
  requests = []
  /** Answers to give instead of the server's: (request) => Response, 'lost' (the server acts, its reply does not arrive), 'cut off' (half of it does), a function that holds its reply up, or undefined. */
  #interfere = () => undefined
  #held = new Set()
  #isCut = false

  fetch = async (url, init = {}) => {
    const { pathname: path, searchParams: params } = new URL(url)
    const request = { method: init.method ?? 'GET', path, params, body: init.body, cache: init.cache, authorization: new Headers(init.headers).get('authorization') }
    this.requests.push(request)
    if (this.#isCut) throw new TypeError('the line is cut')
    const instead = await this.#interfere(request)
    if (instead instanceof Response) return this.#noted(request, instead)
    const hold = new AbortController()
    this.#held.add(hold)
    try {
      const signal = init.signal ? AbortSignal.any([init.signal, hold.signal]) : hold.signal
      const answer = await fetch(url, { ...init, signal })
      const body = await answer.arrayBuffer()
      request.bytes = body.byteLength
      if (typeof instead === 'function') await instead(Buffer.from(body).toString())
      if (instead === 'lost') throw new TypeError('the reply was lost')
      if (this.#isCut) throw new TypeError('the line is cut')
      const { status, headers } = answer
      const arrives = instead === 'cut off' ? body.slice(0, body.byteLength / 2) : body
      return this.#noted(request, new Response([204, 304].includes(status) ? null : arrives, { status, headers: new Headers(headers) }))
    } catch (error) {
      throw init.signal?.aborted ? error : new TypeError(String(error.message))
    } finally {
      this.#held.delete(hold)
    }
  }

  #noted(request, answer) {
    request.status = answer.status
    return answer
  }

  /** Nothing passes any more, and what is under way breaks off. */
  cut() {
    this.#isCut = true
    for (const hold of this.#held) hold.abort()
  }

  join() {
    this.#isCut = false
  }

  /** From now on; undefined: nothing any more. */
  interfere(how = () => undefined) {
    this.#interfere = how
  }

  /** Requests to /v1/write. */
  get writes() {
    return this.requests.filter(({ path }) => path === '/v1/write')
  }
}

/** An error as the sidecar answers it. */
export const refusal = (status, message = 'no', headers = {}) => Response.json({ message }, { status, headers })
