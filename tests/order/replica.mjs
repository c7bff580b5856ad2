// A copy of the tables that is kept by replaying the log, and says what does not fit.
import { netEffect } from '../lib/log.mjs'

const keyOf = (table, row) => `${table}:${row.id}`

export class Replica {
  rows = new Map()

  copy() {
    const copy = new Replica()
    copy.rows = new Map(this.rows)
    return copy
  }

  /**
   * Applies a transaction; returns the mistakes: an old image must be the row that is here, which a lost, doubled or
   * displaced change makes untrue.
   */
  apply(transaction) {
    const { before, after } = netEffect(transaction)
    let mistakes = 0
    for (const { table, row } of before) {
      const key = keyOf(table, row)
      if (this.rows.get(key) !== JSON.stringify(row)) mistakes++
      this.rows.delete(key)
    }
    for (const { table, row } of after) {
      const key = keyOf(table, row)
      if (this.rows.has(key)) mistakes++
      this.rows.set(key, JSON.stringify(row))
    }
    return mistakes
  }

  /** Number of rows that differ from `truth`, a map of table name to rows. */
  differences(truth) {
    const left = new Map(this.rows)
    let differences = 0
    for (const [table, rows] of Object.entries(truth)) {
      for (const row of rows) {
        const key = keyOf(table, row)
        if (left.get(key) !== JSON.stringify(row)) differences++
        left.delete(key)
      }
    }
    return differences + left.size
  }
}

/** Replays steps in the order that `compare` gives (none: as they come), and counts the steps that go wrong. */
export class Checker {
  replica = new Replica()
  badSteps = 0

  constructor(compare) {
    this.order = compare ? (transactions) => transactions.toSorted(compare) : (transactions) => transactions
  }

  /**
   * `sequenced` become part of the replica, `pending` are what `truth` has already though it has no position yet.
   */
  step({ sequenced, pending, truth }) {
    let mistakes = 0
    for (const transaction of this.order(sequenced)) mistakes += this.replica.apply(transaction)
    const now = this.replica.copy()
    for (const transaction of this.order(pending)) mistakes += now.apply(transaction)
    const differences = now.differences(truth)
    if (mistakes + differences > 0) this.badSteps++
    return { mistakes, differences }
  }
}
