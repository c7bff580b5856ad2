// Clients that write over HTTP, each one transaction after the other.
import { randomUUID } from 'node:crypto'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { nowMs, serveLoad } from '../lib/load.mjs'

function post(agent, url, headers, body) {
  return new Promise((resolve, reject) => {
    const request = http.request(`${url}/v1/write`, { method: 'POST', agent, headers: { ...headers, 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) } }, (answer) => {
      let text = ''
      answer.setEncoding('utf8').on('data', (data) => { text += data }).on('end', () => resolve(text))
    })
    request.on('error', reject).end(body)
  })
}

/** One client: `count` transactions of `each` rows with numbers from `first` on; the instants at which each was sent. */
async function client(agent, url, headers, { first, count, each, perSecond }) {
  const client_id = randomUUID()
  const sent = []
  const began = nowMs()
  for (let seq = 1; seq <= count; seq++) {
    const wait = perSecond ? began + ((seq - 1) * 1000) / perSecond - nowMs() : 0
    if (wait > 0) await sleep(wait)
    const row = (i) => ({ operation: 'insert', table: 'items', value: { id: first + (seq - 1) * each + i, n: first + seq - 1, title: 'Title of a new item' } })
    const transaction = { seq, operations: Array.from({ length: each }, (_, i) => row(i)) }
    sent.push(nowMs())
    const text = await post(agent, url, headers, JSON.stringify({ client_id, transactions: [transaction] }))
    if (!text.includes('"status":"applied"')) throw new Error(text)
  }
  return sent
}

serveLoad({
  /** `clients` at the same time; the instants at which each transaction was sent, by client. */
  write: async (url, headers, { clients = 1, first = 0, count, each = 1, perSecond }) => {
    const agent = new http.Agent({ keepAlive: true })
    const own = (i) => client(agent, url, headers, { first: first + i * count * each, count, each, perSecond })
    const sent = await Promise.all(Array.from({ length: clients }, (_, i) => own(i)))
    agent.destroy()
    return sent
  },
})
