// What each shape must hold at each position, known without any as-of read of the extension: the test has an audit of its
// own, and takes from the extension only which transaction has which position. States are sums of added and removed
// rows, so nothing depends on the order inside a transaction; Postgres says which row versions a predicate selects.
import assert from 'node:assert/strict'
import { printing } from '../lib/types.mjs'

/** SQL that makes the audit of the tables: one row per row change, with both versions as the table's row type. */
export function auditSql(tables) {
  return ['create schema audit;', ...tables.map((table, i) => {
    Object.assign(table, { audit: `audit.a${i}`, auditFunction: `audit.f${i}()` })
    return `
      create table ${table.audit} (seq bigserial, xid xid8 default pg_current_xact_id(), old ${table.sqlName}, new ${table.sqlName});
      insert into ${table.audit} (new) select t from ${table.sqlName} t;
      ${auditFunctionSql(table)}
      create trigger zz_audit after insert or update or delete on ${table.sqlName} for each row execute function ${table.auditFunction};
      create trigger zz_audit_truncate before truncate on ${table.sqlName} for each statement execute function ${table.auditFunction};`
  })].join('\n')
}

/** SQL that makes the function of a table's audit, with the columns that the table has now. */
export function auditFunctionSql(table) {
  const row = (version) => `row(${table.stored.map(({ sql }) => `${version}.${sql}`).join(', ')})::${table.sqlName}`
  return `create or replace function ${table.auditFunction} returns trigger language plpgsql as $$
    begin
      if tg_op = 'TRUNCATE' then
        insert into ${table.audit} (old) select t from ${table.sqlName} t;
      else
        insert into ${table.audit} (old, new) values (case when tg_op <> 'INSERT' then ${row('old')} end, case when tg_op <> 'DELETE' then ${row('new')} end);
      end if;
      return null;
    end $$;`
}

const asText = { getTypeParser: () => (value) => value }

/** What changes do to shapes. */
export const newTransitions = () => ({ insert: 0, update: 0, delete: 0, 'out to in': 0, 'in to out': 0, 'key change': 0 })

/** Texts as the wire may have them: a boolean has two spellings. */
const printed = (column, text) => (column.type === 'bool' && text !== null ? text[0] : text)

/** A row of a client, in the words of `Truth`. */
export const lineOf = (columns, value) => JSON.stringify(columns.map((column) => printed(column, value[column.name])))

/** The audit, read step by step, and what it says of shapes. */
export class Truth {
  constructor(client, tables) {
    Object.assign(this, { client, tables, lastPosition: 0n, positions: new Map() })
    for (const table of tables) Object.assign(table, { changes: [], lastSeq: 0, pending: [] })
  }

  /** Reads what is new. Nobody writes meanwhile; everything has a position. */
  async read() {
    await this.client.query(printing)
    const commits = await this.client.query(`select xid::text, position from shapefeed.commit where position > ${this.lastPosition} order by position`)
    for (const { xid, position } of commits.rows) {
      assert.ok(!this.positions.has(xid), `transaction ${xid} has two positions`)
      this.positions.set(xid, BigInt(position))
      this.lastPosition = BigInt(position)
    }
    for (const table of this.tables) await this.readTable(table)
  }

  async readTable(table) {
    const columns = (side) => table.columns.map(({ sql }) => `(${side}).${sql}`).join(', ')
    const { rows } = await this.client.query({
      text: `select seq, xid, old is distinct from null, new is distinct from null, ${columns('old')}, ${columns('new')} from ${table.audit} where seq > ${table.lastSeq} order by seq`,
      rowMode: 'array', types: asText })
    const added = rows.map(([seq, xid, hasOld, hasNew, ...values]) => {
      const width = table.columns.length
      const version = (has, from) => (has === 't' ? new Version(table, values.slice(from, from + width)) : null)
      return { seq: Number(seq), position: this.positions.get(xid), xid, old: version(hasOld, 0), new: version(hasNew, width) }
    })
    // Rows from before the table was tracked have no position: they are there at all of them.
    if (table.lastSeq === 0) for (const change of added) change.position ??= 0n
    assertNothing(table, added.filter(({ position }) => position === undefined))
    table.newFrom = table.lastSeq
    if (added.length > 0) table.lastSeq = added.at(-1).seq
    table.changes.push(...added.filter(({ position }) => position !== undefined))
    table.changes.sort((a, b) => (a.position < b.position ? -1 : a.position > b.position ? 1 : a.seq - b.seq))
  }

  /** How often the new changes do to the shape what; see `newTransitions`. */
  count(shape, transitions) {
    const { table, selected } = shape
    for (const { seq, old, new: made } of table.changes) {
      if (seq <= table.newFrom) continue
      const [was, is] = [selected.has(`${seq} 0`), selected.has(`${seq} 1`)]
      if (!was && !is) continue
      if (old && made && !table.keyless && old.key !== made.key) transitions['key change']++
      else if (was && is) transitions.update += old.whole === made.whole ? 0 : 1
      else if (is) transitions[old ? 'out to in' : 'insert']++
      else transitions[made ? 'in to out' : 'delete']++
    }
  }

  /** Has Postgres say which of the new versions a shape selects. */
  async judge(shape) {
    const { table } = shape
    const where = shape.where === undefined ? '' : `where (${shape.where})`
    const { rows } = await this.client.query({
      text: `select v.seq, v.side from (select seq, 0 as side, old as r from ${table.audit} where seq > ${table.newFrom} and old is distinct from null
        union all select seq, 1, new from ${table.audit} where seq > ${table.newFrom} and new is distinct from null) v
        cross join lateral (select (v.r).*) as ${table.sqlName} ${where}`,
      values: shape.params, rowMode: 'array', types: asText })
    for (const [seq, side] of rows) shape.selected.add(`${seq} ${side}`)
  }

  /**
   * Walks a shape through its history: before each transaction that touched the table, in order, gives { position, rows }:
   * the transaction's position, and the rows up to there, a map from key (or whole row, without one) to line. At the end
   * `position` is undefined. The map is the same one each time.
   */
  *states(shape) {
    const { table, columns, selected } = shape
    const counts = new Map() // whole row or key -> [line, count]
    const rows = new Map()
    const changes = table.changes
    for (let i = 0; i < changes.length;) {
      const { position } = changes[i]
      yield { position, rows }
      const touched = new Set()
      for (; i < changes.length && changes[i].position === position; i++) {
        const change = changes[i]
        if (change.old && selected.has(`${change.seq} 0`)) add(counts, touched, change.old, -1)
        if (change.new && selected.has(`${change.seq} 1`)) add(counts, touched, change.new, 1)
      }
      for (const key of touched) {
        const lines = [...counts.get(key)].filter(([, count]) => count !== 0)
        assert.ok(lines.every(([, count]) => count > 0), `${table.table} ${key}: more removed than added at ${position}`)
        assert.ok(table.keyless || lines.length < 2, `${table.table} ${key}: two rows at ${position}`)
        if (lines.length === 0) rows.delete(key)
        else rows.set(key, lines[0][0].line(columns))
      }
    }
    yield { position: undefined, rows }
  }
}

function add(counts, touched, version, n) {
  touched.add(version.key)
  let lines = counts.get(version.key)
  if (!lines) counts.set(version.key, lines = new Map())
  const same = [...lines.keys()].find((one) => one.whole === version.whole) ?? version
  lines.set(same, (lines.get(same) ?? 0) + n)
}

/** Only a transaction that changed nothing in the end may be without a position. */
function assertNothing(table, changes) {
  const left = new Map()
  for (const { xid, old, new: made } of changes) {
    for (const [version, n] of [[old, -1], [made, 1]]) {
      if (version) left.set(`${xid} ${version.whole}`, (left.get(`${xid} ${version.whole}`) ?? 0) + n)
    }
  }
  const lost = [...left].filter(([, n]) => n !== 0)
  assert.deepEqual(lost, [], `a committed transaction on ${table.table} has no position`)
}

/** One version of a row. */
class Version {
  constructor(table, values) {
    this.table = table
    this.values = values
    this.whole = JSON.stringify(values)
    this.key = table.keyless ? this.whole : table.keyColumns.map((column) => this.value(column)).map((text) => `/"${text}"`).join('')
  }

  value(column) {
    return this.values[this.table.columns.indexOf(column)]
  }

  line(columns) {
    return JSON.stringify(columns.map((column) => printed(column, this.value(column))))
  }
}
