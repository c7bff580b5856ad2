// Clients that write, and what they write to.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { as, convention, environment } from '../rls/setup.mjs'

export { as, convention, environment }

export const insert = (table, value) => ({ operation: 'insert', table, value })
export const update = (table, key, value, base) => ({ operation: 'update', table, key, value, base })
export const remove = (table, key, base) => ({ operation: 'delete', table, key, base })

/** Sends a body to /v1/write: { status, headers, json, text }. */
export async function post(url, body, headers = {}) {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  const answer = await fetch(`${url}/v1/write`, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: text })
  const answered = await answer.text()
  return { status: answer.status, headers: answer.headers, text: answered, json: answered ? JSON.parse(answered) : undefined }
}

/** A client with an id, which numbers its transactions. */
export class Writer {
  constructor(url, headers, { id = randomUUID(), seq = 0 } = {}) {
    Object.assign(this, { url, headers, id, seq })
  }

  /** Sends transactions, each a list of operations, with these numbers, and returns the answer as it is. */
  post(transactions, first) {
    const numbered = transactions.map((operations, i) => ({ seq: first + i, operations }))
    return post(this.url, { client_id: this.id, transactions: numbered }, this.headers)
  }

  /** Sends the next transactions and returns their results. */
  async send(...transactions) {
    const { status, text, json } = await this.post(transactions, this.seq + 1)
    assert.equal(status, 200, text)
    this.seq = json.last_seq
    return json.results
  }

  /** Sends the next transaction and returns its result. */
  async write(...operations) {
    const [result] = await this.send(operations)
    return result
  }

  /** The same, which must be applied. */
  async apply(...operations) {
    const result = await this.write(...operations)
    assert.equal(result.status, 'applied', JSON.stringify(result))
    return result
  }

  /** The same, which must be rejected with this SQLSTATE. */
  async refuse(sqlstate, ...operations) {
    const result = await this.write(...operations)
    assert.deepEqual([result.status, result.sqlstate], ['rejected', sqlstate], JSON.stringify(result))
    return result
  }
}
