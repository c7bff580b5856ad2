// Random tables: each kind of key, columns of all types dealt out among them, and the past that tables have: dropped and
// added columns, partitions whose columns lie in another order, triggers and foreign keys.
import { anyValue, columnTypes, ownTypes } from './values.mjs'

const keyTexts = ['a', 'A', 'b', 'ab', 'äb', 'a/b', '"a"', "it's", 'a\nb', '', ' ', '\\', 'z', 'Z', '🎉', '%', 'k1', 'k2', 'k3', 'k4', 'k5']
const quote = (text) => `'${text.replaceAll("'", "''")}'`
const name = (text) => `"${text.replaceAll('"', '""')}"`

const numbers = (n) => Array.from({ length: n }, (_, i) => String(i + 1))
const uuids = Array.from({ length: 40 }, (_, i) => quote(`00000000-0000-4000-8000-0000000000${String(i + 10)}`))
const int = (column, n) => ({ name: column, type: 'int4', kind: 'int', literals: numbers(n), required: true })
const text = (column, type = 'text') => ({ name: column, type, kind: 'text', literals: keyTexts.map(quote), required: true })

// Equal values that print in more than one way, and values that sort in ways of their own.
const oddKeys = [
  ['float8', 'float', ['0', "'-0'", '1', '1.5', "'NaN'", "'Infinity'", '-1', '1e20']],
  ['char(6)', 'char', ['a', 'a ', 'A', '', 'b', 'äb', '"a"', 'a/b'].map(quote)],
  ['interval', 'interval', ['1 day', '24 hours', '1 mon', '30 days', '0', '-1 day'].map(quote)],
  ['timestamptz', 'timestamptz', ['2024-02-29 12:00+00', '2024-02-29 13:00+01', 'infinity', '1970-01-01 00:00+00'].map(quote)],
  ['jsonb', 'jsonb', ['1', '1.0', '"a"', '{"a": 1}', '{"a": 1.0}', '[]', 'null'].map(quote)],
  ['bytea', 'bytea', ['\\x', '\\x00', '\\xff', '\\x0001'].map(quote)],
  ['bool', 'bool', ['true', 'false']],
  ['mood', 'enum', ['sad', 'ok', 'happy', "it's"].map(quote)],
  ['text[]', 'plain', ['{}', '{a}', '{A,b}', '{NULL}', '{"a/b"}'].map(quote)],
  ['inet', 'plain', ['10.0.0.1', '10.0.0.1/8', '::1'].map(quote)],
  ['label', 'text', ['a', 'A', 'b', 'äb', '%'].map(quote)],
]

function oddKey(random) {
  const [type, kind, literals] = random.pick(oddKeys)
  return { name: 'odd', type, base: type === 'label' ? 'text' : undefined, kind, literals, required: true }
}

/** Kinds of tables: what makes one, beside the columns that are dealt to it. */
const kinds = [
  { table: 'plain', key: () => [int('id', 60)] },
  { table: 'Swapped "rows"', key: () => [int('id', 60)], deferrable: true },
  { table: 'texts', key: () => [text('k', 'text collate "und-x-icu"')] },
  { table: 'pairs', key: () => [text('b', 'varchar(20)'), int('a', 6)] },
  { table: 'uuids', key: () => [{ name: 'u', type: 'uuid', kind: 'uuid', literals: uuids, required: true }] },
  { table: 'loose', key: () => [], keyless: true },
  { table: 'parted', key: () => [int('region', 6), int('id', 12)], partitioned: true },
  { table: 'numbers', key: () => [{ name: 'n', type: 'numeric', kind: 'numeric', literals: ['0', '0.0', '1', '1.0', '1.00', '1.5', '-2', "'NaN'", ...numbers(30)], required: true }] },
  { table: 'folded', key: () => [{ ...text('k', 'text collate loose'), kind: 'loose' }], generated: true },
  { table: 'mixed', key: (random) => [oddKey(random), int('id', 3)] },
  { table: 'child', key: () => [int('id', 60)], references: true },
]

// Stored, but computed: a shape may filter by it, and cannot have it.
const computed = { name: 'twice', sql: '"twice"', type: 'int8', kind: 'int', literals: numbers(20) }

const columnNames = ['v', 'Mixed Case', 'select', 'ünï', 'with "quotes"', 'a_b', 'x', 'y', 'z', 'w']

/** Tables: { table, sqlName, columns, key (names), keyColumns, others, added (names of columns that came later), flags of the kind }. */
export function randomTables(random, share = 1) {
  const deck = []
  const deal = () => {
    if (deck.length === 0) deck.push(...shuffled(random, columnTypes))
    return deck.pop()
  }
  return kinds.slice(0, Math.max(1, Math.round(kinds.length * share))).map((kind) => {
    const keyColumns = kind.key(random)
    const first = { name: 'grp', type: 'int4', kind: 'int', literals: numbers(10) }
    const others = [first, ...columnNames.slice(0, 5 + random.below(4)).map((column) => ({ ...deal(), name: column }))]
    if (kind.references) others.push({ name: 'plain_id', type: 'int4', kind: 'int', literals: numbers(60), reference: true })
    const columns = random.chance(0.5) ? [...keyColumns, ...others] : [...others.slice(0, 2), ...keyColumns, ...others.slice(2)]
    for (const column of columns) column.sql = name(column.name)
    return { ...kind, sqlName: name(kind.table), columns, keyColumns, others, computed: kind.generated ? [computed] : [], added: [] }
  })
}

/** SQL that makes the types and tables, with some rows from before they are tracked. */
export function schemaSql(random, tables) {
  return [ownTypes, ...tables.map((table) => tableSql(random, table))].join('\n')
}

function tableSql(random, table) {
  const { sqlName, columns, keyColumns, deferrable, partitioned } = table
  const late = partitioned ? [] : columns.filter((column) => table.others.includes(column) && column.name !== 'grp' && random.chance(0.2)).slice(-2)
  const early = columns.filter((column) => !late.includes(column))
  const key = keyColumns.length > 0 ? [`primary key (${keyColumns.map(({ sql }) => sql).join(', ')})${deferrable ? ' deferrable' : ''}`] : []
  const definition = (column) => `${column.sql} ${column.type}${column.reference ? ' references plain on delete set null on update cascade' : ''}`
  const statements = [
    `create table ${sqlName} (gone text, ${early.map(definition).concat(table.computed.map(({ sql, type }) => `${sql} ${type} generated always as (grp::int8 * 2) stored`), key).join(', ')})${partitioned ? ` partition by list (${keyColumns[0].sql})` : ''}`,
    ...(partitioned ? partitions(table, early) : []),
    `alter table ${sqlName} drop column gone`,
    insertRows(random, table, early, 40),
  ]
  for (const column of late) {
    statements.push(`alter table ${sqlName} add column ${definition(column)}${column.reference ? '' : ` default ${anyValue(random, { ...column, extra: [], required: true })}`}`)
  }
  if (table.table === 'plain') statements.push(...siblings)
  // Added columns come last, as in the table.
  table.columns = [...early, ...late]
  table.stored = [...early, ...table.computed, ...late]
  return statements.map((statement) => `${statement};`).join('\n')
}

// A trigger that writes another row of the same table inside the statement, and one that changes what is written.
const siblings = [`
  create function touch_sibling() returns trigger language plpgsql as $$
  begin
    if pg_trigger_depth() = 1 then update plain set grp = grp % 10 + 1 where id = new.id % 60 + 1; end if;
    return null;
  end $$`,
  `create trigger a_touch_sibling after insert or update on plain for each row when (new.id % 7 = 1) execute function touch_sibling()`,
  `create function round_group() returns trigger language plpgsql as $$
  begin
    if new.grp = 9 then new.grp := 3; end if;
    if new.grp = 8 and tg_op = 'UPDATE' then return null; end if;
    return new;
  end $$`,
  `create trigger round_group before insert or update on plain for each row execute function round_group()`]

function partitions({ sqlName, keyColumns: [by] }, columns) {
  const reversed = [...columns].reverse().map(({ sql, type, required }) => `${sql} ${type}${required ? ' not null' : ''}`)
  return [
    `create table parted_1 partition of ${sqlName} for values in (1, 2)`,
    `create table parted_2 partition of ${sqlName} for values in (3) partition by hash (id)`,
    `create table parted_2_0 partition of parted_2 for values with (modulus 2, remainder 0)`,
    `create table parted_2_1 partition of parted_2 for values with (modulus 2, remainder 1)`,
    `create table parted_3 (${reversed.join(', ')}, gone text)`,
    `alter table parted_3 drop column ${by.sql}, add column ${by.sql} int4 not null`,
    `alter table ${sqlName} attach partition parted_3 for values in (4, 5)`,
    `create table parted_4 partition of ${sqlName} default`,
  ]
}

/** One INSERT of `count` rows; keys are as they come, but where no conflict clause is possible they are 1, 2, … */
export function insertRows(random, table, columns, count) {
  const { sqlName, keyColumns: [first], deferrable, keyless } = table
  const value = (column, i) => {
    if (column.reference) return 'null'
    return deferrable && column === first ? String(i + 1) : anyValue(random, column)
  }
  const rows = Array.from({ length: count }, (_, i) => `(${columns.map((column) => value(column, i)).join(', ')})`)
  const conflict = deferrable || keyless ? '' : ' on conflict do nothing'
  return `insert into ${sqlName} (${columns.map(({ sql }) => sql).join(', ')}) values ${rows.join(',\n')}${conflict}`
}

export function shuffled(random, list) {
  const copy = [...list]
  for (let i = copy.length - 1; i > 0; i--) {
    const j = random.below(i + 1)
    ;[copy[i], copy[j]] = [copy[j], copy[i]]
  }
  return copy
}
