// Random statements over one table: { text, copy }. `copy`: what is sent to COPY … FROM STDIN.
import { anyValue } from './values.mjs'
import { shuffled } from './schema.mjs'

/** A statement; it may be refused for a violated constraint. */
export function statementFor(random, table) {
  const statement = new Statement(random, table)
  const kinds = [[18, 'insert'], [26, 'update'], [10, 'remove'], [8, 'rekey'], [5, 'bulkUpdate'], [2, 'bulkRemove'], [5, 'upsert'], [4, 'merge'],
    [4, 'move'], [3, 'cascade'], [3, 'copy'], [4, 'swap'], [2, 'loop'], [2, 'nothing'], [2, 'replace']]
  let at = random.next() * kinds.reduce((sum, [weight]) => sum + weight, 0)
  const [, kind] = kinds.find(([weight]) => (at -= weight) < 0)
  const made = statement[kind]()
  return typeof made === 'string' ? { text: made } : made
}

class Statement {
  constructor(random, table) {
    Object.assign(this, { random, table })
  }

  values(columns = this.table.columns) {
    return columns.map((column) => this.value(column)).join(', ')
  }

  value(column) {
    return anyValue(this.random, column)
  }

  /** Names one row mostly, or few. */
  row(qualifier = '') {
    const { random, table } = this
    if (table.keyless) return `ctid in (select ctid from ${table.sqlName} offset ${random.below(30)} limit 1)`
    const keys = table.keyColumns.map((column) => `${qualifier}${column.sql} = ${this.value(column)}`)
    return random.chance(0.3) ? keys.slice(0, 1).join('') : keys.join(' and ')
  }

  assignments() {
    const { random, table } = this
    const some = shuffled(random, table.others).slice(0, 1 + random.below(3))
    return some.map((column) => `${column.sql} = ${this.value(column)}`).join(', ')
  }

  conflict() {
    return `on conflict (${this.table.keyColumns.map(({ sql }) => sql).join(', ')})`
  }

  get noConflict() {
    return this.table.deferrable || this.table.keyless
  }

  insertInto(rows = 1 + this.random.below(3), columns = this.table.columns) {
    const list = Array.from({ length: rows }, () => `(${this.values(columns)})`)
    return `insert into ${this.table.sqlName} (${columns.map(({ sql }) => sql).join(', ')}) values ${list.join(', ')}`
  }

  insert() {
    return this.noConflict ? this.insertInto(1) : `${this.insertInto()} on conflict do nothing`
  }

  upsert() {
    if (this.noConflict) return this.insertInto(1)
    return `${this.insertInto(1)} ${this.conflict()} do update set ${this.assignments()} where excluded.grp is distinct from 4`
  }

  update() {
    return `update ${this.table.sqlName} set ${this.assignments()} where ${this.row()}`
  }

  remove() {
    return `delete from ${this.table.sqlName} where ${this.row()}`
  }

  rekey() {
    const { table, random } = this
    if (table.keyless) return this.update()
    const column = random.pick(table.keyColumns)
    const more = random.chance(0.5) ? `, ${this.assignments()}` : ''
    return `update ${table.sqlName} set ${column.sql} = ${this.value(column)}${more} where ${this.row()}`
  }

  bulkUpdate() {
    const set = this.random.chance(0.5) ? 'grp = grp % 10 + 1' : this.assignments()
    return `update ${this.table.sqlName} set ${set} where ${this.random.pick(['true', 'grp < 4', 'grp = 7 or grp is null'])}`
  }

  bulkRemove() {
    return `delete from ${this.table.sqlName} where grp = ${this.value(this.table.others[0])}`
  }

  merge() {
    const { table, random } = this
    if (table.keyless) return this.bulkUpdate()
    const { sqlName, columns, keyColumns } = table
    const on = keyColumns.map(({ sql }) => `t.${sql} = s.${sql}`).join(' and ')
    const matched = random.pick([`update set ${this.assignments()}`, 'delete', `update set grp = s.grp`])
    return `merge into ${sqlName} t using (select distinct on (${keyColumns.map(({ sql }) => sql).join(', ')}) *
        from (values ${[0, 1, 2].map(() => `(${this.values()})`).join(', ')}) v (${columns.map(({ sql }) => sql).join(', ')})) s on ${on}
      when matched and t.grp is distinct from 2 then ${matched}
      when matched then do nothing
      when not matched then insert (${columns.map(({ sql }) => sql).join(', ')}) values (${columns.map(({ sql }) => `s.${sql}`).join(', ')})`
  }

  /** Rows go and come back in one statement, with other keys. */
  move() {
    const { table } = this
    const { sqlName, columns } = table
    const list = columns.map(({ sql }) => sql).join(', ')
    const [key] = table.keyColumns
    const changed = columns.map((column) => (column === key || column.name === 'grp' ? this.value(column) : column.sql)).join(', ')
    return `with gone as (delete from ${sqlName} where ${this.row()} returning *)
      insert into ${sqlName} (${list}) select ${changed} from gone limit 1`
  }

  /** Two tables' worth of changes in one statement. */
  cascade() {
    const { table, random } = this
    return `with changed as (update ${table.sqlName} set ${this.assignments()} where ${this.row()} returning grp)
      update plain set grp = changed.grp from changed where id = ${1 + random.below(60)}`
  }

  copy() {
    const columns = this.table.columns.filter(({ required, kind }) => required || ['int', 'text', 'bool', 'date'].includes(kind))
    const field = (column) => (!column.required && this.random.chance(0.2) ? '\\N' : this.plain(column))
    const lines = Array.from({ length: 1 + this.random.below(3) }, () => `${columns.map(field).join('\t')}\n`)
    return { text: `copy ${this.table.sqlName} (${columns.map(({ sql }) => sql).join(', ')}) from stdin`, copy: lines.join('') }
  }

  plain(column) {
    const literal = this.random.pick(column.literals)
    const text = literal.startsWith("'") ? literal.slice(1, -1).replaceAll("''", "'") : literal
    return text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n').replaceAll('\r', '\\r').replaceAll('\t', '\\t')
  }

  /** Two rows change keys with each other. */
  swap() {
    const { table, random } = this
    if (!table.deferrable) return this.rekey()
    const [{ sql }] = table.keyColumns
    if (random.chance(0.3)) return `update ${table.sqlName} set ${sql} = ${sql} % 60 + 1`
    const [a, b] = [1 + random.below(40), 41 + random.below(20)]
    return `update ${table.sqlName} set ${sql} = case ${sql} when ${a} then ${b} else ${a} end where ${sql} in (${a}, ${b})`
  }

  /** Subtransactions inside a function, some of which fail. */
  loop() {
    const again = this.insertInto(1).replaceAll('$$', '$ $')
    return `do $do$ begin for turn in 1..4 loop begin
        ${this.update()}; ${again};
        if turn % 2 = 0 then raise exception using errcode = 'P0001'; end if;
      exception when unique_violation or raise_exception or foreign_key_violation then null; end; end loop; end $do$`
  }

  nothing() {
    return `update ${this.table.sqlName} set grp = grp where ${this.row()}`
  }

  /** A row goes and a row of the same key comes, in two statements. */
  replace() {
    return `${this.remove()}; ${this.insert()}`
  }
}
