/** Applies a shape's batches: rows and offset in one local transaction. */
import type { PGlite, Transaction } from '@electric-sql/pglite'
import { type Change, type ShapeMessage, type TextRow, fold, group, hasControl, positionAfter, snapshotPosition } from './fold.js'
import { copyRowsOf, messagesOf } from './snapshot.js'
import { type Table, Statements, keyText } from './sql/table.js'

/** Where a batch comes from and leads to. */
export interface Batch {
  stream: number
  table: Table
  handle: string
  /** The client's offset behind it. */
  offset: string
}

type Messages = readonly ShapeMessage[]

/** An operation that does not fit the rows that are here: the shape must start over. */
export class MismatchError extends Error {
  constructor(table: string, missing: number) {
    super(`${missing} changed rows of ${table} are not here`)
    this.name = 'MismatchError'
  }
}

/** Applies operations and moves the offset. What was confirmed by it is dropped from the outbox. */
export function applyBatch(pglite: PGlite, batch: Batch, messages: Messages): Promise<void> {
  return writing(pglite, async (tx) => {
    await applyChanges(tx, batch, messages)
    await advance(tx, batch, messages)
  })
}

/** Applies a part of a snapshot: each slice in a transaction of its own, between which queries get their turn. The offset moves with the last one. */
export async function applySnapshot(pglite: PGlite, batch: Batch, slices: readonly string[]): Promise<void> {
  for (const [index, slice] of slices.entries()) {
    if (index > 0) await new Promise((resolve) => setTimeout(resolve))
    const step = (copies: boolean) => writing(pglite, async (tx) => {
      if (!copies || !await copyRows(tx, batch, slice)) await applyChanges(tx, batch, messagesOf(slice))
      if (index === slices.length - 1) await advance(tx, batch, [])
    })
    // What COPY does not take, a row that is there already for one, is for the statements: they can, or say why not.
    await step(true).catch(() => step(false))
  }
}

/** A batch without rows, of a shape whose table is not known yet. */
export function advanceOnly(pglite: PGlite, batch: Omit<Batch, 'table'>, messages: Messages): Promise<void> {
  return writing(pglite, (tx) => advance(tx, batch, messages))
}

/** A transaction of the client itself: nothing in it is captured. */
export function writing<T>(pglite: PGlite, work: (tx: Transaction) => Promise<T>): Promise<T> {
  return pglite.transaction(async (tx) => {
    await tx.query(`select set_config('sync.applying', 'on', true)`)
    return work(tx)
  })
}

/**
 * New rows of a shape that has its table alone, while nothing of the table is changed here: COPY, whose text is read faster than JSON.
 * False where that is not so.
 */
async function copyRows(tx: Transaction, batch: Batch, slice: string): Promise<boolean> {
  const { hasRows, dirty } = await stateOf(tx, batch)
  if (hasRows || dirty.length) return false
  const names = new Set(batch.table.columns.map(({ name }) => name))
  const rows = copyRowsOf(slice, (name) => names.has(name))
  if (rows?.text) await tx.query(new Statements(batch.table).copy(rows.columns), [], { blob: new Blob([rows.text]) })
  return rows !== undefined
}

async function applyChanges(tx: Transaction, batch: Batch, messages: Messages): Promise<void> {
  const changes = fold(batch.table, messages, snapshotPosition(batch.handle))
  if (changes.size === 0) return
  const { hasRows, dirty } = await stateOf(tx, batch)
  if (hasRows) await leaveOutOlder(tx, batch, changes)
  const clean = new Map(changes)
  for (const key of dirty) {
    const change = clean.get(key)
    if (!change) continue
    clean.delete(key)
    await receive(tx, batch, change, hasRows)
  }
  await applyClean(tx, batch, [...clean.values()], hasRows)
}

/** Whether sync.row_shape has the stream's rows, and the keys of rows with local changes. */
async function stateOf(tx: Transaction, { stream, table }: Batch): Promise<{ hasRows: boolean; dirty: string[] }> {
  const { rows } = await tx.query<{ has_rows: boolean; dirty: Record<string, string>[] }>(`select has_rows,
    (select coalesce(jsonb_agg(key), '[]') from sync.shadow where name = $2) as dirty from sync.stream where id = $1`, [stream, table.name])
  const { has_rows: hasRows, dirty } = rows[0] as NonNullable<(typeof rows)[0]>
  return { hasRows, dirty: dirty.map((key) => keyText(table, key)) }
}

/** What another shape has brought in a newer state stays so: the rest is an update of a row that is here. */
async function leaveOutOlder(tx: Transaction, { table, stream }: Batch, changes: Map<string, Change>): Promise<void> {
  const present = [...changes.values()].filter(({ operation }) => operation !== 'delete')
  if (present.length === 0) return
  const keys = present.map((change) => ({ ...change, value: keyOf(table, change) }))
  const { rows } = await tx.query<{ key: Record<string, string>; columns: string[] }>(new Statements(table).newer(), [rowsOf(keys), stream])
  for (const { key, columns } of rows) {
    const change = changes.get(keyText(table, key)) as Change
    const newer = new Set(columns.filter((name) => !table.key.includes(name)))
    const older = Object.entries(change.value).filter(([name]) => !newer.has(name))
    changes.set(keyText(table, key), { ...change, operation: 'update', value: Object.fromEntries(older) })
  }
}

async function receive(tx: Transaction, { table, stream }: Batch, change: Change, hasRows: boolean): Promise<void> {
  const key = JSON.stringify(keyOf(table, change))
  if (hasRows && change.operation === 'delete') {
    await tx.query('select sync.leave($1, array[$2::jsonb])', [stream, key])
    return
  }
  if (hasRows) await tx.query(new Statements(table).enter(), [rowsOf([change]), stream])
  const { rows } = await tx.query<{ fits: boolean }>('select sync.receive($1, $2::jsonb, $3, $4::jsonb) as fits',
    [table.name, key, change.operation, JSON.stringify(change.value)])
  if (!rows[0]?.fits) throw new MismatchError(table.name, 1)
}

const keyOf = (table: Table, { value }: Change): TextRow => Object.fromEntries(table.key.map((name) => [name, value[name] as string]))

const rowsOf = (changes: Change[]) => JSON.stringify(group(changes).flatMap(({ rows }) => rows))

async function applyClean(tx: Transaction, { table, stream }: Batch, changes: Change[], hasRows: boolean): Promise<void> {
  const statements = new Statements(table)
  const of = (operation: string) => changes.filter((change) => change.operation === operation)
  const present = [...of('insert'), ...of('update')]
  const gone = of('delete')
  if (gone.length && hasRows) {
    await tx.query('select sync.leave($1, $2::jsonb[])', [stream, gone.map((change) => JSON.stringify(keyOf(table, change)))])
  } else if (gone.length) {
    await tx.query(statements.delete(), [rowsOf(gone), stream])
  }
  if (hasRows && present.length) await tx.query(statements.enter(), [rowsOf(present), stream])
  for (const { columns, rows } of group(of('insert'))) {
    await tx.query(statements.upsert(columns), [JSON.stringify(rows)])
  }
  for (const { columns, rows } of group(of('update'))) {
    if (columns.length === table.key.length) continue // what changed is in no column of this table, or older than what is there
    const { affectedRows = 0 } = await tx.query(statements.update(columns), [JSON.stringify(rows)])
    if (!hasRows && affectedRows < rows.length) throw new MismatchError(table.name, rows.length - affectedRows)
  }
}

async function advance(tx: Transaction, { stream, handle, offset }: Omit<Batch, 'table'>, messages: Messages): Promise<void> {
  const upToDate = hasControl(messages, 'up-to-date')
  const { rows } = await tx.query<{ first: boolean }>(`update sync.stream set handle = $2, "offset" = $3,
      position = case when $5 or position is not null then coalesce($4::bigint, position) end,
      last_synced = case when $5 then now() else last_synced end
    where id = $1 returning old.position is null and $5 as first`,
  [stream, handle, offset, positionAfter(messages, offset)?.toString() ?? null, upToDate])
  if (rows[0]?.first) await tx.query('select sync.finish_over($1)', [stream])
  await tx.query('select sync.confirm()')
}
