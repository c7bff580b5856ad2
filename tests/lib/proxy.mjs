// An HTTP proxy that passes everything on, in turn to each of its targets, and keeps the books: what a client asked and was told.
import http from 'node:http'
import { once } from 'node:events'

/**
 * Starts it before `targetUrls`: { url, requests, refetches(), reset(), setTarget(...urls), stop() }.
 * `requests`: { method, path, params, status, bytes, startedAt, endedAt } in order of arrival; status is undefined while a
 * request is under way and 502 where the target could not be reached; bytes are those of the answer, with its headers.
 * `refetches()`: { conflicts, initial }, the numbers of 409s and of requests with offset=-1.
 */
export async function startProxy(...targetUrls) {
  let targets = targetUrls.map((url) => new URL(url))
  let turn = 0
  const requests = []
  const agent = new http.Agent({ keepAlive: true })

  const server = http.createServer((request, response) => {
    const url = new URL(request.url, 'http://proxy')
    const entry = { method: request.method, path: url.pathname, params: url.searchParams, bytes: 0, startedAt: Date.now() }
    requests.push(entry)
    const target = targets[turn++ % targets.length]
    const upstream = http.request({
      agent,
      host: target.hostname,
      port: target.port,
      method: request.method,
      path: request.url,
      headers: { ...request.headers, host: target.host },
    })
    upstream.on('response', (answer) => {
      entry.status = answer.statusCode
      entry.bytes = answer.rawHeaders.join(': ').length
      response.writeHead(answer.statusCode, answer.statusMessage, answer.rawHeaders).flushHeaders() // a stream may have nothing to say yet
      answer.on('error', () => response.destroy())
      answer.on('data', (chunk) => { entry.bytes += chunk.length })
      answer.pipe(response)
    })
    upstream.on('error', () => {
      entry.status ??= 502
      if (response.headersSent) response.destroy()
      else response.writeHead(502).end()
    })
    response.on('close', () => {
      entry.endedAt = Date.now()
      upstream.destroy()
    })
    request.pipe(upstream)
  })
  server.keepAliveTimeout = 0 // its clients close their connections, as with the sidecar, not it
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  server.unref()

  return {
    url: `http://127.0.0.1:${server.address().port}`,
    requests,
    refetches: () => ({
      conflicts: requests.filter(({ status }) => status === 409).length,
      initial: requests.filter(({ params }) => params.get('offset') === '-1').length,
    }),
    reset: () => { requests.length = 0 },
    setTarget: (...urls) => { targets = urls.map((url) => new URL(url)) },
    stop: async () => {
      agent.destroy()
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}
