/** What goes into one request of the sender. Pure. */
import type { Operation } from './types.js'

/** A local transaction that waits to be sent. */
export interface PendingTransaction {
  /** Local id. */
  tx: number
  operations: Operation[]
}

/** A transaction as it is sent: numbered by its place in the queue behind the last one that the server has answered. */
export interface NumberedTransaction extends PendingTransaction {
  seq: number
}

/** Bytes of a request's transactions. */
export const batchBytes = 256 * 1024

/** The first transactions of the queue that fit, whole; at least one. */
export function batchOf(queue: readonly PendingTransaction[], lastSeq: number, maxBytes = batchBytes): NumberedTransaction[] {
  const batch: NumberedTransaction[] = []
  let bytes = 0
  for (const transaction of queue) {
    bytes += new TextEncoder().encode(JSON.stringify(transaction.operations)).length
    if (batch.length && bytes > maxBytes) break
    batch.push({ ...transaction, seq: lastSeq + batch.length + 1 })
  }
  return batch
}

/** The body of `POST /v1/write`. */
export function requestBody(clientId: string, batch: readonly NumberedTransaction[]): string {
  return JSON.stringify({ client_id: clientId, transactions: batch.map(({ seq, operations }) => ({ seq, operations })) })
}

/** What the server says of one transaction. */
export type WriteResult =
  | { seq: number; status: 'applied'; txid?: string; lsn?: string }
  | { seq: number; status: 'rejected'; sqlstate: string; constraint?: string; operation?: number; message: string }
  | { seq: number; status: 'retry'; sqlstate?: string; message: string }

/** The body of its answer. */
export interface WriteAnswer {
  results: WriteResult[]
  last_seq: number
}
