/** What a batch of a shape's messages comes to, row by row. Pure. */
import { type ChangeMessage, type Message, type Row, isChangeMessage } from '@electric-sql/client'
import { type Table, keyText, positionColumn } from './sql/table.js'

/** Values as the server sends them. */
export type TextRow = Record<string, string | null>

/** The net effect of a batch on one row. */
export interface Change {
  operation: 'insert' | 'update' | 'delete'
  /** insert: all columns of the shape; update: the key and what changed; delete: the key. */
  value: TextRow
  /** Of its newest operation. */
  position: bigint
}

export type ShapeMessage = Message<Row>

/**
 * Changes by key. Operations of one row become one; those of different rows have no order, since local tables have neither
 * foreign keys nor unique constraints. `snapshot`: position of rows that come without one.
 */
export function fold(table: Table, messages: readonly ShapeMessage[], snapshot: bigint): Map<string, Change> {
  const known = new Set(table.columns.map(({ name }) => name))
  const changes = new Map<string, Change>()
  for (const message of messages) {
    if (!isChangeMessage(message)) continue
    const change = changeOf(message, known, snapshot)
    const key = keyText(table, change.value)
    const before = changes.get(key)
    changes.set(key, before ? combine(before, change) : change)
  }
  return changes
}

function changeOf(message: ChangeMessage<Row>, known: Set<string>, snapshot: bigint): Change {
  const { operation, lsn } = message.headers
  const value = Object.fromEntries(Object.entries(message.value as TextRow).filter(([name]) => known.has(name)))
  return { operation, value, position: typeof lsn === 'string' ? BigInt(lsn) : snapshot }
}

function combine(before: Change, { operation, value, position }: Change): Change {
  if (operation !== 'update' || before.operation === 'delete') return { operation, value, position }
  return { operation: before.operation, value: { ...before.value, ...value }, position }
}

/** Rows of the same columns, which one statement can take. */
export interface RowGroup {
  columns: string[]
  rows: Record<string, string | null>[]
}

/** Groups rows by their columns. */
export function group(changes: Iterable<Change>): RowGroup[] {
  const groups = new Map<string, RowGroup>()
  for (const { value, position } of changes) {
    const columns = Object.keys(value)
    const name = columns.join('\0')
    let found = groups.get(name)
    if (!found) groups.set(name, (found = { columns, rows: [] }))
    found.rows.push({ ...value, [positionColumn]: String(position) })
  }
  return [...groups.values()]
}

/** How far a shape is after a batch: all positions up to it are complete. Null within a snapshot. */
export function positionAfter(messages: readonly ShapeMessage[], offset: string): bigint | null {
  const last = messages.at(-1)?.headers as { control?: string; global_last_seen_lsn?: string } | undefined
  if (last?.control === 'up-to-date' && last.global_last_seen_lsn) return BigInt(last.global_last_seen_lsn)
  const [, position, operation] = /^(\d+)_(\d+)$/.exec(offset) ?? []
  if (!position || position === '0') return null
  return operation === '0' ? BigInt(position) : BigInt(position) - 1n
}

/** Position of the snapshot that a handle names (docs/protocol.md, "Handles"). */
export function snapshotPosition(handle: string | undefined): bigint {
  return BigInt(/^\w+-(\d+)-/.exec(handle ?? '')?.[1] ?? 0)
}

/** Has the batch that control message? */
export function hasControl(messages: readonly ShapeMessage[], control: string): boolean {
  return messages.some(({ headers }) => (headers as { control?: string }).control === control)
}
