// A stream of server-sent events, read strictly.
import assert from 'node:assert/strict'
import http from 'node:http'
import { waitFor } from './wait.mjs'

/**
 * Opens a stream. Resolves when its headers are there: { status, headers, messages, comments, raw(), ended, pause(),
 * resume(), until(condition), close() }. Every block must be one event with one line of JSON, or a comment.
 */
export async function openEvents(base, query, { headers = {} } = {}) {
  const { hostname, port } = new URL(base)
  const response = await new Promise((resolve, reject) => {
    const request = http.get({ hostname, port, path: `/v1/shape?${query}`, headers, agent: false })
    request.once('response', resolve).once('error', reject)
  })
  const stream = { status: response.statusCode, headers: response.headers, messages: [], comments: [], failure: undefined }
  let text = '', open = ''
  response.setEncoding('utf8')
  response.on('data', (part) => {
    text += part
    open += part
    for (let end; (end = open.indexOf('\n\n')) >= 0; open = open.slice(end + 2)) {
      const block = open.slice(0, end)
      if (block.startsWith(':')) stream.comments.push(block)
      else {
        assert.match(block, /^data: \{[^\n]*\}$/)
        stream.messages.push(JSON.parse(block.slice(6)))
      }
    }
  })
  stream.ended = new Promise((resolve) => response.once('end', () => resolve('whole')).once('error', (error) => resolve(error.code)))
  return Object.assign(stream, {
    raw: () => text,
    json: () => JSON.parse(text),
    pause: () => response.pause(),
    resume: () => response.resume(),
    close: () => response.destroy(),
    until: (condition, options) => waitFor(() => condition(stream.messages), { what: `${condition} of ${text.slice(-2000)}`, ...options }),
  })
}

export const isUpToDate = (message) => message?.headers.control === 'up-to-date'
