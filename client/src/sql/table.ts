/** SQL for one table of shapes, made from its columns. All values travel as text: Postgres does the typing. */
import { columnList, jsonObject, literal, quote } from './quote.js'

/** A column of a local table. */
export interface Column {
  name: string
  /** As SQL writes it. */
  type: string
}

/** A local table that shapes fill. */
export interface Table {
  /** As shapes and rejections name it: `folders`, `app.folders`. */
  name: string
  /** Quoted, with its schema. */
  relation: string
  columns: Column[]
  /** Names of the primary key's columns, in its order. */
  key: string[]
  /** Made from the server's description, not by the application's schema. */
  generated: boolean
}

/** Name and relation of a table, from schema and name. */
export function tableNames(schema: string, table: string): { name: string; relation: string } {
  const plain = (part: string) => (/^[a-z_][a-z0-9_]*$/.test(part) ? part : quote(part))
  return {
    name: schema === 'public' ? plain(table) : `${plain(schema)}.${plain(table)}`,
    relation: `${quote(schema)}.${quote(table)}`,
  }
}

/** Schema and name of a table as SQL writes it: `t`, `s.t`, `"S"."t"`. */
export function parseTableName(text: string): [schema: string, table: string] {
  const parts = [...text.matchAll(/"((?:[^"]|"")+)"|([^".]+)/g)].map(([, quoted, plain]) =>
    quoted === undefined ? (plain as string).trim().toLowerCase() : quoted.replaceAll('""', '"'))
  return parts.length === 2 ? [parts[0] as string, parts[1] as string] : ['public', parts[0] ?? text]
}

/** The values of a row's key as one text, for maps. */
export function keyText(table: Table, row: Record<string, unknown>): string {
  return JSON.stringify(table.key.map((name) => row[name]))
}

/** The functions and the trigger that schema `sync` calls for this table; see install.ts. */
export function tableFunctions(table: Table): string {
  const { relation, columns, key } = table
  const types = new Map(columns.map(({ name, type }) => [name, type]))
  const keyMatches = (of: string) => key.map((name) => `${of}.${quote(name)} = (row_key ->> ${literal(name)})::${types.get(name)}`).join(' and ')
  const values = columns.map(({ name, type }) => `(image ->> ${literal(name)})::${type}`).join(', ')
  const others = columns.filter(({ name }) => !key.includes(name))
  return `
    create or replace function sync.image(r ${relation}) returns jsonb language sql stable as
      $f$ select ${jsonObject(columns.map(({ name }) => name), 'r')} $f$;
    create or replace function sync.key_of(r ${relation}) returns jsonb language sql stable as
      $f$ select ${jsonObject(key, 'r')} $f$;
    create or replace function sync.present(r ${relation}, row_key jsonb) returns jsonb language sql stable as
      $f$ select sync.image(t) from ${relation} t where ${keyMatches('t')} $f$;
    create or replace function sync.put(r ${relation}, image jsonb) returns void language sql as
      $f$ insert into ${relation} (${columnList(columns.map(({ name }) => name))}) values (${values}) ${onConflict(key, others)} $f$;
    create or replace function sync.remove(r ${relation}, row_key jsonb) returns void language sql as
      $f$ delete from ${relation} t where ${keyMatches('t')} $f$;
    create or replace trigger sync_capture after insert or update or delete on ${relation} for each row
      when (current_setting('sync.applying', true) is distinct from 'on')
      execute function sync.capture(${literal(table.name)});`
}

function onConflict(key: string[], others: Column[], where = ''): string {
  const sets = others.map(({ name }) => `${quote(name)} = excluded.${quote(name)}`).join(', ')
  return `on conflict (${columnList(key)}) do ${sets ? `update set ${sets}${where}` : 'nothing'}`
}

/** Creates a table as the server describes it. Nothing is NOT NULL but the key: rows may have some of the columns only. */
export function createTable({ relation, columns, key }: Table): string {
  const list = columns.map(({ name, type }) => `${quote(name)} ${type}`).join(', ')
  return `create table if not exists ${relation} (${list}, primary key (${columnList(key)}))`
}

/** The name of the recordset's column with the position of a row's newest operation. */
export const positionColumn = ' position'

const recordset = (names: string[]) =>
  `json_to_recordset($1::json) as r(${[...names, positionColumn].map((name) => `${quote(name)} text`).join(', ')})`

/** Types without an equality operator are compared as text. */
const withoutEquality = /^(json|xml|point|line|lseg|box|path|polygon|circle)(\[\])?$/

/** Statements that apply operations of a shape to rows without local changes. `$1`: rows as JSON, `$2`, where it is used: the stream's id. */
export class Statements {
  readonly #types: Map<string, string>

  constructor(readonly table: Table) {
    this.#types = new Map(table.columns.map(({ name, type }) => [name, type]))
  }

  /** Inserts rows or makes them what is given; rows that are so already are not written. */
  upsert(names: string[]): string {
    const { relation, key } = this.table
    const others = this.table.columns.filter(({ name }) => names.includes(name) && !key.includes(name))
    const tuple = (of: string) => others.map(({ name, type }) => `${of}.${quote(name)}${withoutEquality.test(type) ? '::text' : ''}`).join(', ')
    const changed = others.length ? ` where (${tuple('t')}) is distinct from (${tuple('excluded')})` : ''
    return `insert into ${relation} as t (${columnList(names)}) select ${names.map((name) => this.#typed(name)).join(', ')}
      from ${recordset(names)} ${onConflict(key, others, changed)}`
  }

  /** Takes rows as `copyRowsOf` writes them. None of them is there. */
  copy(names: string[]): string {
    return `copy ${this.table.relation} (${columnList(names)}) from '/dev/blob'`
  }

  /** Sets the given columns of rows that are there. */
  update(names: string[]): string {
    const { relation, key } = this.table
    const sets = names.filter((name) => !key.includes(name)).map((name) => `${quote(name)} = ${this.#typed(name)}`)
    return `update ${relation} t set ${sets.join(', ')} from ${recordset(names)}
      where ${this.#matches()}`
  }

  /** Rows of a shape that has its table alone. */
  delete(): string {
    return `delete from ${this.table.relation} t using ${recordset(this.table.key)} where $2::int is not null and ${this.#matches()}`
  }

  /** Writes down that rows are in the shape. */
  enter(): string {
    return `insert into sync.row_shape select $2, ${jsonObject(this.table.key, 'r')}, (select epoch from sync.stream where id = $2),
      r.${quote(positionColumn)}::bigint from ${recordset(this.table.key)}
      on conflict (stream, key) do update set epoch = excluded.epoch, position = excluded.position`
  }

  /** Columns of which another shape has brought something newer, by key. */
  newer(): string {
    const key = jsonObject(this.table.key, 'r')
    return `select ${key} as key, n.columns from ${recordset(this.table.key)}, lateral (
      select array_agg(c) as columns from sync.stream s join sync.row_shape o on o.stream = s.id, unnest(s.columns) c
        where s.name = ${literal(this.table.name)} and s.id <> $2::int and o.key = ${key} and o.position > r.${quote(positionColumn)}::bigint) n
      where n.columns is not null`
  }

  #typed(name: string): string {
    return `r.${quote(name)}::${this.#types.get(name)}`
  }

  #matches(): string {
    return this.table.key.map((name) => `t.${quote(name)} = ${this.#typed(name)}`).join(' and ')
  }
}
