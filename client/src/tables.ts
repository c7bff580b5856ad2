/** Local tables: made as the server describes them, or matched with those of the application's schema. */
import type { PGlite, Transaction } from '@electric-sql/pglite'
import type { ColumnInfo } from '@electric-sql/client'
import { literal, quote } from './sql/quote.js'
import { type Column, type Table, createTable, parseTableName, tableFunctions, tableNames } from './sql/table.js'
import { writing } from './apply.js'
import { snapshotPosition } from './fold.js'
import type { LocalSchema } from './types.js'

/** The `electric-schema` header: columns as the server describes them. */
export type ServerSchema = Record<string, ColumnInfo & { type: string; pk_index?: number }>

/** A table for a shape, and what the server has that it has not. */
export interface PreparedTable {
  table: Table
  unknownColumns: string[]
}

/** Listened to by live queries: a table was made or altered. */
export const schemaChannel = 'sync_schema'

/**
 * Makes the table of a shape, or lets it follow what the server has by now. A column that is new on the server is added to a table
 * that was made here, one that has another type is made anew from what can be read of it; one that the server has dropped stays. With
 * another primary key its rows come anew. A description that is older than what the table has followed, from a cache for one, does none of this.
 */
export function prepareTable(pglite: PGlite, stream: number, relation: [schema: string, table: string], schema: ServerSchema, handle: string): Promise<PreparedTable> {
  return writing(pglite, async (tx) => {
    const names = tableNames(...relation)
    const position = String(snapshotPosition(handle))
    const served = await columnsOf(tx, schema)
    const key = Object.entries(schema).filter(([, { pk_index: index }]) => index !== undefined)
      .sort(([, a], [, b]) => (a.pk_index as number) - (b.pk_index as number)).map(([name]) => name)
    const before = await localTable(tx, names)
    const known = await tx.query<{ generated: boolean; is_older: boolean }>('select generated, $2 < described as is_older from sync.shape_table where name = $1', [names.name, position])
    const generated = known.rows[0]?.generated ?? before === undefined
    if (generated && known.rows[0]?.is_older && before && isAnother(before, served, key)) {
      throw new Error(`the answer for ${names.name} is from before its columns or its key were changed`)
    }
    if (!before) await tx.exec(`create schema if not exists ${quote(relation[0])}; ${createTable({ ...names, columns: served, key, generated })}`)
    else if (generated) await follow(tx, before, served)
    let after = await localTable(tx, names)
    const isRekeyed = generated && after?.key.join() !== key.join()
    if (isRekeyed) {
      await tx.query('select sync.rekey($1, $2)', [names.name, key])
      after = await localTable(tx, names)
    }
    if (!after || after.key.join() !== key.join()) throw new Error(`primary key of ${names.name}: (${key}) on the server, (${after?.key ?? ''}) here`)
    const table = { ...after, generated }
    if (await register(tx, table)) await tx.query(`select pg_notify('${schemaChannel}', '')`)
    await tx.query('update sync.shape_table set described = $2 where name = $1 and described < $2', [names.name, position])
    if (isRekeyed) await tx.query('select sync.resume($1)', [names.name])
    const columns = Object.keys(schema).filter((name) => table.columns.some((column) => column.name === name))
    await assign(tx, stream, table, columns)
    return { table, unknownColumns: Object.keys(schema).filter((name) => !columns.includes(name)) }
  })
}

/** Has the table another key, or columns of other types? */
function isAnother(table: Omit<Table, 'generated'>, served: Column[], key: string[]): boolean {
  return table.key.join() !== key.join() || served.some(({ name, type }) => table.columns.some((column) => column.name === name && column.type !== type))
}

/** The server's columns with local types; a type that is not known here is text, in an array as well. */
async function columnsOf(tx: Transaction, schema: ServerSchema): Promise<Column[]> {
  const { rows } = await tx.query<Column>(`select name, coalesce(format_type(to_regtype(type), -1), case when type like '%[]' then 'text[]' else 'text' end) as type
    from unnest($1::text[], $2::text[]) with ordinality c(name, type, at) order by at`,
  [Object.keys(schema), Object.values(schema).map(({ type, dims }) => (dims ? `${type}[]` : type))])
  return rows
}

async function localTable(tx: Transaction, names: { name: string; relation: string }): Promise<Omit<Table, 'generated'> | undefined> {
  const { rows } = await tx.query<Column & { key: number | null }>(`
    select attname as name, format_type(atttypid, atttypmod) as type, array_position(i.indkey::int2[], attnum) as key
      from pg_attribute left join pg_index i on indrelid = attrelid and indisprimary
      where attrelid = to_regclass($1) and attnum > 0 and not attisdropped and attgenerated = '' order by attnum`, [names.relation])
  if (rows.length === 0) return undefined
  const key = rows.filter((column) => column.key !== null).sort((a, b) => (a.key as number) - (b.key as number))
  return { ...names, columns: rows.map(({ name, type }) => ({ name, type })), key: key.map(({ name }) => name) }
}

async function follow(tx: Transaction, { relation, columns }: Omit<Table, 'generated'>, served: Column[]): Promise<void> {
  for (const { name, type } of served) {
    const local = columns.find((column) => column.name === name)
    if (!local) await tx.exec(`alter table ${relation} add column ${quote(name)} ${type}`)
    else if (local.type !== type) await retype(tx, relation, name, type)
  }
}

/**
 * By way of a new column: a live query's view keeps the old one from being altered, and goes with it. Live queries hear of the new table,
 * not of the rows: they would look at what is gone. What cannot be read as the new type is null.
 */
async function retype(tx: Transaction, relation: string, name: string, type: string): Promise<void> {
  const column = quote(name)
  const made = quote(`${name} as ${type}`)
  await tx.exec(`
    set local session_replication_role = replica;
    alter table ${relation} add column ${made} ${type};
    update ${relation} set ${made} = ${column}::text::${type} where pg_input_is_valid(${column}::text, ${literal(type)});
    alter table ${relation} drop column ${column} cascade;
    alter table ${relation} rename column ${made} to ${column};
    set local session_replication_role = origin;`)
}

/** Writes a table down with its functions. True if it is new or has changed. */
async function register(tx: Transaction, table: Table): Promise<boolean> {
  const columns = JSON.stringify(Object.fromEntries(table.columns.map(({ name, type }) => [name, type])))
  const { rows } = await tx.query(`insert into sync.shape_table as t values ($1, $2, $3, $4, $5)
    on conflict (name) do update set columns = excluded.columns, key = excluded.key
      where (t.columns, t.key) is distinct from (excluded.columns, excluded.key) returning 1`,
  [table.name, table.relation, table.key, columns, table.generated])
  if (rows.length) await tx.exec(tableFunctions(table))
  return rows.length > 0
}

/** Has what is written to a table that is there captured, before it is known what the server says of it. */
export async function captureEarly(pglite: PGlite, relation: [schema: string, table: string]): Promise<void> {
  const names = tableNames(...relation)
  const known = await pglite.query('select 1 from sync.shape_table where name = $1', [names.name])
  if (known.rows.length) return
  await writing(pglite, async (tx) => {
    const table = await localTable(tx, names)
    if (table?.key.length) await register(tx, { ...table, generated: false })
  })
}

/** Ties a stream to its table. From the second stream of a table on, sync.row_shape says whose rows are whose. */
async function assign(tx: Transaction, stream: number, table: Table, columns: string[]): Promise<void> {
  await tx.query('update sync.stream set columns = $2 where id = $1 and columns is distinct from $2', [stream, columns])
  const { rows } = await tx.query<{ id: number }>('select id from sync.stream where name = $1 and id <> $2', [table.name, stream])
  for (const { id } of rows) await tx.query('select sync.keep_rows($1)', [id])
  await tx.query('update sync.stream set name = $2, has_rows = has_rows or $3 where id = $1 and name is null', [stream, table.name, rows.length > 0])
}

/** Table of a message. */
export function relationOf(headers: object): [string, string] | undefined {
  const { relation } = headers as { relation?: [string, string] }
  return relation?.length === 2 ? relation : undefined
}

/** Table of a definition, where it says one. */
export function relationIn(definition: { table?: string }): [string, string] | undefined {
  return definition.table === undefined ? undefined : parseTableName(definition.table)
}

/**
 * Runs the application's schema if its version is newer than what is here. Shapes whose table has changed by it start over,
 * from what is there; local changes stay.
 */
export async function migrate(pglite: PGlite, schema: LocalSchema | undefined): Promise<void> {
  if (!schema) return
  await writing(pglite, async (tx) => {
    const { rows } = await tx.query<{ schema_version: number }>('select schema_version from sync.meta')
    if ((rows[0]?.schema_version ?? 0) >= schema.version) return
    await tx.exec(schema.sql)
    await tx.query('update sync.meta set schema_version = $1', [schema.version])
    const known = await tx.query<{ name: string; relation: string; generated: boolean }>('select name, relation, generated from sync.shape_table')
    for (const { name, relation, generated } of known.rows) {
      const table = await localTable(tx, { name, relation })
      if (!table) await tx.query('delete from sync.shape_table where name = $1', [name])
      if (!table || await register(tx, { ...table, generated })) await startOver(tx, name)
    }
  })
}

async function startOver(tx: Transaction, name: string): Promise<void> {
  await tx.query('select sync.start_over(id) from sync.stream where name = $1', [name])
}
