// Random `where` clauses over the columns of a table: typed, so that Postgres accepts them, and built so that no row makes
// one fail. A clause is text; its parameters are collected beside it.
import { allTexts, castOf, literalOf } from './values.mjs'

const quote = (text) => `'${text.replaceAll("'", "''")}'`
const comparisons = ['=', '<>', '<', '<=', '>', '>=', 'is distinct from', 'is not distinct from']
const patterns = ['%', 'a%', '%b', '%a%', '_', '__', 'A%', '%\\%%', '%\\_%', '%\n%', '%\\\\%', 'ab_', '%ä%', '%🎉%', '', '% ', 'a%c', '%é%', '%"%']
const regexes = ['^a', 'b$', '^.$', '[A-Z]', '\\d', '\\s', '^a.*b', '(a|z)', '\\\\', '^$', '[[:alpha:]]+', 'a\\nb', '.{3,}', '(?n)^b', '[äö]', '\\m\\w+\\M$']

/** { where, params, columns } for a table; `where` may be undefined. */
export function randomClause(random, table) {
  const clause = new Clause(random, table)
  const where = clause.bool(random.pick([0, 0, 1, 1, 1, 2, 2, 3]))
  return { where, params: clause.params }
}

class Clause {
  params = []

  constructor(random, table) {
    Object.assign(this, { random, table, columns: [...table.columns, ...table.computed] })
  }

  /** One of the list; a function is called only when it is the one. */
  pick(...list) {
    const one = this.random.pick(list)
    return typeof one === 'function' ? one() : one
  }

  column(...kinds) {
    const fitting = this.columns.filter(({ kind }) => kinds.length === 0 || kinds.includes(kind))
    return fitting.length > 0 ? this.random.pick(fitting) : undefined
  }

  /** A column as it may be written: alone, or with its table. */
  ref(column) {
    return this.random.chance(0.1) ? `${this.table.sqlName}.${column.sql}` : column.sql
  }

  /** A constant of the column's type: a literal, a typed one, or a parameter. */
  constant(column) {
    return this.given(literalOf(this.random, column), castOf(column))
  }

  given(literal, type) {
    const how = this.random.next()
    if (how < 0.2 && this.params.length < 12) {
      this.params.push(literal.startsWith("'") ? literal.slice(1, -1).replaceAll("''", "'") : literal)
      return `$${this.params.length}::${type}`
    }
    return how < 0.5 && !literal.startsWith('-') && !type.startsWith('pair') ? literal : `${literal.startsWith('-') ? quote(literal) : literal}::${type}`
  }

  bool(depth) {
    if (depth === 0) return this.leaf()
    const inner = () => this.bool(depth - 1)
    switch (this.random.below(9)) {
      case 0: case 1: case 2: return `(${inner()} and ${inner()})`
      case 3: case 4: case 5: return `(${inner()} or ${inner()})`
      case 6: return `not (${inner()})`
      case 7: return `(case when ${inner()} then ${inner()} when ${inner()} then false else ${inner()} end)`
      default: return `(${inner()}) ${this.pick('is true', 'is not true', 'is false', 'is unknown', 'is not unknown', 'is not false')}`
    }
  }

  leaf() {
    const column = this.column()
    if (column.kind === 'none') return this.nullTest(column)
    const any = [() => this.comparison(column), () => this.comparison(column), () => this.list(column), () => this.nullTest(column)]
    const own = this.special(column)
    return (own && this.random.chance(0.6) ? own : this.random.pick(any))()
  }

  comparison(column) {
    const ref = this.ref(column)
    const others = this.columns.filter((other) => other !== column && other.type === column.type)
    if (others.length > 0 && this.random.chance(0.3)) return `${ref} ${this.random.pick(comparisons)} ${this.ref(this.random.pick(others))}`
    const operator = this.random.pick(comparisons)
    if (this.random.chance(0.15)) return `${ref} ${this.pick('', 'not ')}between ${this.pick('', 'symmetric ')}${this.constant(column)} and ${this.constant(column)}`
    return this.random.chance(0.1) ? `${this.constant(column)} ${operator} ${ref}` : `${ref} ${operator} ${this.constant(column)}`
  }

  list(column) {
    const constants = Array.from({ length: 1 + this.random.below(6) }, () => this.constant(column))
    if (this.random.chance(0.15)) constants.push('null')
    const type = castOf(column)
    const list = constants.join(', ')
    if (column.kind === 'array' || type.endsWith('[]') || this.random.chance(0.5)) return `${this.ref(column)} ${this.pick('in', 'in', 'in', 'not in')} (${list})`
    return `${this.ref(column)} ${this.pick('= any', '= any', '<> all', '< any', '>= all')} (array[${list}]::${type}[])`
  }

  nullTest(column) {
    if (this.random.chance(0.2)) {
      const some = [column, this.column(), this.column()].map((one) => one.sql)
      return `num_nulls(${some.join(', ')}) ${this.random.pick(comparisons.slice(0, 6))} ${this.random.below(3)}`
    }
    return `${this.ref(column)} is ${this.pick('', 'not ')}null`
  }

  special(column) {
    const { kind } = column
    const forms = { int: () => this.number(column), numeric: () => this.number(column), float: () => this.number(column),
      text: () => this.text(column), char: () => this.text(column), bool: () => this.pick(this.ref(column), `not ${column.sql}`, `${column.sql} is not true`),
      date: () => this.time(column), timestamp: () => this.time(column), interval: () => `extract(epoch from ${column.sql}) ${this.random.pick(comparisons)} ${this.pick(0, 86400, 3600.5)}`,
      enum: () => `${column.sql}::text ${this.pick('=', '<', '>', '<>')} ${literalOf(this.random, column)}`,
      jsonb: () => this.json(column), array: () => this.array(column), loose: () => `lower(${column.sql}) = ${quote(this.random.pick(allTexts))}`,
      bytea: () => this.pick(`length(${column.sql}) > 1`, `encode(${column.sql}, 'hex') like '00%'`, `get_byte(${column.sql} || '\\x01', 0) = 0`),
      uuid: () => `${column.sql}::text like ${this.pick("'%1'", "'a0%'", "'%-0000-%'")}`,
      composite: () => this.pick(`(${column.sql}).a = 1`, `(${column.sql}).b > 'a'`, `${column.sql} is null`, `${column.sql} is not null`),
      range: () => this.pick(`${column.sql} @> 5`, `${column.sql} && '[2,4)'`, `isempty(${column.sql})`, `upper(${column.sql}) > 5`, `${column.sql} -|- '[1,3)'`) }
    return forms[kind]
  }

  number(column) {
    const value = column.kind === 'float' ? `${column.sql}::float8` : `${column.sql}::numeric`
    const other = this.column('int') ?? column
    const of = column.kind === 'float' ? `coalesce(${other.sql}, 0)::float8` : `coalesce(${other.sql}, 0)::numeric`
    const operator = this.random.pick(comparisons)
    const right = this.random.pick(['0', '1', '2.5', '-1', '10', '42'])
    return this.pick(
      `${value} + ${of} ${operator} ${right}`,
      `${value} - ${of} ${operator} ${right}`,
      `-(${value}) ${operator} ${right}`,
      `abs(${value}) ${operator} ${right}`,
      `${value} / ${right === '0' ? '3' : right} ${operator} 1`,
      `sign(${value}) ${operator} ${this.pick(-1, 0, 1)}`,
      `${column.sql} ${operator} ${this.pick('1.5', '2.0', '1e1', "'1'", '0.1', '-1', '7::int8', '3::int2', '2.5::float8')}`,
      `coalesce(${value}, 5) ${operator} ${right}`,
      `nullif(${value}, 1) is null`,
      `greatest(${value}, ${of}) ${operator} ${right}`,
      column.kind === 'int' ? `${column.sql} % 3 ${operator} ${this.pick(0, 1, 2)}` : `floor(${value}) ${operator} ${right}`,
      column.kind === 'int' ? `(${column.sql} & 3) ${operator} ${this.pick(0, 1, 2)}` : `round(${value}) ${operator} ${right}`,
    )
  }

  text(column) {
    const ref = this.ref(column)
    const pattern = quote(this.random.pick(patterns))
    const word = quote(this.random.pick(allTexts))
    return this.pick(
      `${ref} ${this.pick('like', 'not like', 'ilike', 'not ilike', 'like', 'ilike')} ${pattern}`,
      () => `${ref} ${this.pick('like', 'ilike')} ${this.given(pattern, 'text')}`,
      `${ref} like any (array[${pattern}, ${quote(this.random.pick(patterns))}])`,
      `${ref} like ${pattern.replaceAll('\\', '#')} escape '#'`,
      `${ref} ${this.pick('~', '!~', '~*', '!~*')} ${quote(this.random.pick(regexes))}`,
      `${ref} similar to ${this.pick("'(a|b)%'", "'%[0-9]+%'", "'_{2}'")}`,
      `length(${ref}) ${this.random.pick(comparisons)} ${this.random.below(6)}`,
      `${this.pick('lower', 'upper', 'initcap')}(${ref}) = ${word}`,
      `${ref} || 'x' ${this.random.pick(comparisons)} ${word}`,
      `${ref} collate ${this.pick('"C"', '"und-x-icu"', '"POSIX"', '"de-x-icu"')} ${this.random.pick(comparisons)} ${word}`,
      `starts_with(${ref}, ${word})`,
      `strpos(${ref}, ${quote(this.pick('a', 'b', ' ', '\n', '\\', '"'))}) > 0`,
      `substr(${ref}, 1, 1) = ${this.pick("'a'", "'A'", "'z'", "' '")}`,
      `md5(${ref}) < '8'`,
      `octet_length(${ref}) > ${this.pick(1, 3, 1000)}`,
      `btrim(${ref}) = ${word}`,
      `coalesce(${ref}, 'none') ${this.random.pick(comparisons)} ${word}`,
      () => `(${ref}, ${this.table.columns[0].sql}) is not distinct from (${this.constant(column)}, ${this.table.columns[0].sql})`,
    )
  }

  time(column) {
    const finite = `case when isfinite(${column.sql}) then ${column.sql} end`
    const operator = this.random.pick(comparisons)
    return this.pick(
      `isfinite(${column.sql})`,
      `extract(year from ${column.sql}) ${operator} 2024`,
      `${finite} + interval '1 day' ${operator} '2024-03-01'`,
      column.kind === 'date' ? `${finite} - date '2024-01-01' ${operator} 60` : `date_trunc('month', ${column.sql}) ${operator} '2024-02-01'`,
      column.kind === 'date' ? `extract(dow from ${column.sql}) ${operator} 4` : `${column.sql}::date ${operator} '2024-02-29'`,
    )
  }

  json({ sql }) {
    return this.pick(
      `${sql} @> ${this.pick(`'{"a": 1}'`, `'[1]'`, `'{}'`, `'{"b": {}}'`)}`,
      `${sql} <@ ${this.pick(`'{"a": 1, "b": "x", "c": 1}'`, `'[1, "a", "b"]'`)}`,
      `${sql} ? 'a'`, `${sql} ?| array['a', 'b']`, `${sql} ?& array['a', 'b']`,
      `${sql} ->> 'a' = '1'`, `(${sql} -> 'a') is not null`, `${sql} #>> '{a,0}' = '1'`, `${sql} -> 'b' ->> 'c' = 'true'`,
      `jsonb_typeof(${sql}) ${this.pick('=', '<>')} ${this.pick("'object'", "'array'", "'null'")}`,
      `${sql} @? '$.a ? (@ == 1)'`, `${sql} @@ '$.a == 1'`, `${sql} || '{"z": 1}' > '{"a": 1}'`,
      `${sql} - 'a' = '{}'`.replace(sql, `(case when jsonb_typeof(${sql}) = 'object' then ${sql} end)`),
    )
  }

  array({ sql, element }) {
    const one = element === 'int4' ? this.pick('1', '2', '6') : this.pick("'a'", "'b'", "'NULL'", "''")
    return this.pick(
      `${one} = any (${sql})`, `${one} <> all (${sql})`, `${sql} @> array[${one}]::${element}[]`, `${sql} && array[${one}]::${element}[]`,
      `${sql} <@ array[${one}, ${one}]::${element}[]`, `cardinality(${sql}) > ${this.pick(0, 1, 2)}`, `array_length(${sql}, 1) = 2`,
      `${sql}[1] = ${one}`, `array_position(${sql}, null) is null`.replace(sql, `(case when array_ndims(${sql}) = 1 then ${sql} end)`),
      `${sql} || ${one}::${element} > ${sql}`.replaceAll(sql, `(case when array_ndims(${sql}) = 1 then ${sql} end)`),
    )
  }
}
