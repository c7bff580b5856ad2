// Random linked tables, and random where clauses with subqueries over them.

const links = ['k1', 'k2', 'k3']
export const domain = 9
/** Ids are below this; a row's other self has an id higher by as much. */
export const ids = 31

/** Three to five tables whose columns k1, k2, k3 have values of one small domain, or null: { tables, sql }. */
export function randomSchema(random) {
  const tables = ['a', 'b', 'c', 'd', 'e'].slice(0, 3 + random.below(3))
  const create = (name) => {
    const columns = [`id ${random.pick(['int', 'bigint'])} primary key`, 'k1 int', 'k2 bigint', `k3 ${random.pick(['text', 'varchar(9)'])}`]
    const parts = random.chance(0.25) ? 2 : 0
    return [
      `create table ${name} (${columns}, v int not null, t text) ${parts ? 'partition by hash (id)' : ''};`,
      ...Array.from({ length: parts }, (_, i) => `create table ${name}_${i} partition of ${name} for values with (modulus ${parts}, remainder ${i});`),
      ...links.filter(() => random.chance(0.8)).map((link) => `create index on ${name} (${link});`),
    ].join('')
  }
  return { tables, sql: tables.map(create).join('') }
}

/** Clauses by a generator of `random.mjs`. */
export class Clauses {
  constructor(random, tables) {
    Object.assign(this, { random, tables })
    this.count = 0
  }

  pick(list) {
    return this.random.pick(list)
  }

  chance(share) {
    return this.random.chance(share)
  }

  /** A clause on a table that has at least one subquery. */
  clause(table) {
    for (;;) {
      const clause = this.condition({ table, name: table }, 3)
      if (clause.includes('select')) return clause
    }
  }

  /** A condition on the row of `scope`. */
  condition(scope, depth) {
    const n = this.random.below(10)
    if (depth > 0 && n < 5) return this.membership(scope, depth - 1)
    if (depth > 0 && n < 6) return `(${this.condition(scope, depth - 1)} and ${this.condition(scope, depth - 1)})`
    if (depth > 0 && n < 7) return `(${this.condition(scope, depth - 1)} or ${this.condition(scope, depth - 1)})`
    if (depth > 0 && n < 8) return `not (${this.condition(scope, depth - 1)})`
    return this.local(scope)
  }

  /** A condition that reads nothing but the row itself. */
  local({ name }) {
    const link = this.pick(links)
    return this.pick([
      `${name}.${link} ${this.pick(['=', '<>'])} ${this.value(link)}`,
      `${name}.${link} is ${this.pick(['', 'not '])}null`,
      `${name}.v ${this.pick(['<', '>='])} ${this.random.below(101)}`,
      `${name}.v % 3 = ${this.random.below(3)}`,
      `${name}.t like '%${this.pick(['x', 'y', 'z'])}%'`,
    ])
  }

  value(link) {
    const value = this.random.below(domain + 1)
    return link === 'k3' ? `'${value}'` : String(value)
  }

  fresh(table) {
    this.count += 1
    return { table, name: `${table}${this.count}` }
  }

  /** Two links that can be compared: numbers with numbers, texts with texts. */
  comparable() {
    return this.chance(0.25) ? ['k3', 'k3'] : [this.pick(['k1', 'k2', 'id']), this.pick(['k1', 'k2', 'id'])]
  }

  membership(outer, depth) {
    const inner = this.fresh(this.pick(this.tables))
    const [mine, its] = this.comparable()
    const n = this.random.below(14)
    const from = this.from(inner, depth)
    const select = `select ${inner.name}.${its} ${from}`
    const row = `${outer.name}.${mine}`
    if (n < 3) return `${row} in (${select})`
    if (n < 5) return `${row} not in (${select})`
    if (n < 6) return `${row} = any (${select})`
    if (n < 7) return `exists (select 1 ${from} and ${inner.name}.${its} = ${row})`
    if (n < 8) return `not exists (select ${from} and ${row} = ${inner.name}.${its})`
    if (n < 9) {
      const [other, its2] = this.comparable()
      return `(${row}, ${outer.name}.${other}) ${this.pick(['', 'not '])}in (select ${inner.name}.${its}, ${inner.name}.${its2} ${from})`
    }
    if (n < 10) {
      const second = this.fresh(this.pick(this.tables))
      return `${row} in (${select} union select ${second.name}.${its} ${this.from(second, 0)})`
    }
    if (n < 11) return `${this.pick(['', 'not '])}exists (select 1 ${from})`
    if (n < 13) return this.scalar(outer, inner)
    return `${outer.name}.v ${this.pick(['<', '>', '='])} (select ${inner.name}.v from ${inner.table} ${inner.name} where ${inner.name}.id = ${this.random.below(ids)})`
  }

  /** A condition on the one row that a value of the row outside names. */
  scalar(outer, inner) {
    const [mine, more] = [this.pick(['k1', 'k2', 'id']), this.chance(0.3) ? ` and ${this.local(inner)}` : '']
    const value = `(select ${inner.name}.${this.pick(['v', 'k1'])} from ${inner.table} ${inner.name} where ${inner.name}.id = ${outer.name}.${mine}${more})`
    const other = this.pick([`${outer.name}.v`, String(this.random.below(101))])
    return this.pick([
      `${value} ${this.pick(['<', '>=', '=', '<>'])} ${other}`, `${other} < ${value}`, `${value} is ${this.pick(['', 'not '])}null`,
      `coalesce(${value}, 50) < ${other}`, `${value} in (${this.random.below(101)}, ${this.random.below(101)}, null)`,
    ])
  }

  /** `from … where …` of an inner select, perhaps joined with another table. */
  from(inner, depth) {
    const condition = (scope) => (this.chance(0.6) ? this.local(scope) : this.condition(scope, depth))
    if (!this.chance(0.3)) return `from ${inner.table} ${inner.name} where ${condition(inner)}`
    const joined = this.fresh(this.pick(this.tables))
    const [mine, its] = this.comparable()
    return `from ${inner.table} ${inner.name} join ${joined.table} ${joined.name} on ${inner.name}.${mine} = ${joined.name}.${its} ` +
      `where ${condition(inner)} and ${condition(joined)}`
  }
}
