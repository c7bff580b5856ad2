// Random policies over four linked tables, random callers and shapes, and what changes rows, keys, policies, rights and roles.

export const tables = ['t0', 't1', 't2', 't3']
export const roles = ['reader', 'writer', 'guest']
const domain = 8
/** Columns that policies name; `note` is one that rights may leave out. */
const named = 'id, a, b, v, word'

export const schema = `
  create role reader; create role writer; create role guest;
  create schema auth; grant usage on schema auth to public;
  create function auth.uid() returns int language sql stable as
    $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::int $$;
  ${tables.map((table) => `
    create table ${table} (id int primary key, a int, b int, v int, word text, note text);
    create index on ${table} (a); create index on ${table} (b);
    insert into ${table} select i, i % ${domain}, (i * 7) % ${domain}, (i * 13) % 100, chr(97 + i % 5), 'note ' || i from generate_series(1, 24) i;
    grant select on ${table} to reader, writer, guest;
    alter table ${table} enable row level security;
    create policy floor on ${table} for select using (v > 85);
    call shapefeed.track('${table}');`).join('')}`

/** What can happen, drawn from a seeded generator. */
export class Draws {
  constructor(random) {
    Object.assign(this, { random, policies: new Map(), named: 0 })
  }

  /** An expression on a row; it may look at tables that come later, so that no policy asks for itself. */
  condition(table, depth = 0) {
    const { random } = this
    const later = tables.slice(tables.indexOf(table) + 1)
    const value = () => random.below(domain)
    const simple = [
      () => `a = ${random.chance(0.5) ? 'auth.uid()' : '(select auth.uid())'}`,
      () => `b = ${value()}`, () => `v < ${random.below(100)}`, () => `word in ('a', '${random.pick(['b', 'c', 'd'])}')`,
      () => `word like '${random.pick(['a', 'b', 'c'])}%'`, () => `100 / (v + 1) > ${random.below(6)}`,
      () => `b is distinct from ${value()}`, () => "current_user = 'reader'",
    ]
    const inner = () => {
      const other = random.pick(later)
      const [mine, its] = [random.pick(['a', 'b', 'id']), random.pick(['a', 'b', 'id'])]
      return random.pick([
        () => `${mine} in (select ${its} from ${other} where ${this.condition(other, depth + 1)})`,
        () => `exists (select from ${other} o where o.${its} = ${table}.${mine} and o.v < ${random.below(100)} and o.a = auth.uid())`,
        () => `${mine} not in (select ${its} from ${other} where ${its} is not null and v > ${random.below(100)})`,
      ])()
    }
    const one = () => (later.length && depth < 2 && random.chance(0.45) ? inner() : random.pick(simple)())
    return random.chance(0.4) ? `(${one()} ${random.pick(['and', 'or'])} ${one()})` : one()
  }

  /** A statement that changes what callers may see. */
  flip() {
    const { random, policies } = this
    const table = random.pick(tables)
    const role = random.pick(roles)
    const kinds = [
      () => {
        const name = `p${this.named++}`
        policies.set(name, table)
        const kind = random.chance(0.3) ? 'restrictive' : 'permissive'
        return `create policy ${name} on ${table} as ${kind} for ${random.pick(['select', 'all'])} to ${random.pick(['public', role])} using (${this.condition(table)})`
      },
      () => {
        const [name, of] = random.pick([...policies, ['floor', table]])
        return `alter policy ${name} on ${of} using (${this.condition(of)})`
      },
      () => {
        if (policies.size < 4) return undefined
        const [name, of] = random.pick([...policies])
        policies.delete(name)
        return `drop policy ${name} on ${of}`
      },
      () => `alter table ${table} ${random.chance(0.25) ? 'disable' : 'enable'} row level security`,
      () => random.pick([
        `revoke select on ${table} from ${role}`,
        `grant select on ${table} to ${role}`, `grant select on ${table} to ${role}`,
        `revoke select on ${table} from ${role}; grant select (${named}) on ${table} to ${role}`,
      ]),
      () => (random.chance(0.5) ? 'grant writer to guest' : 'revoke writer from guest'),
      () => `alter role ${role} ${random.chance(0.2) ? '' : 'no'}bypassrls`,
    ]
    return random.pick([...kinds, ...kinds.slice(0, 2)])() ?? this.flip()
  }

  statement() {
    const { random } = this
    const table = random.pick(tables)
    const id = random.below(32)
    const row = [random.below(domain), random.below(domain), random.below(100), `'${random.pick(['a', 'b', 'c', 'd', 'ab'])}'`, `'${random.below(1000)}'`]
    const free = `(select min(i) from generate_series(1, 60) i where i not in (select id from ${table}))`
    const some = random.pick([`id = ${id}`, `id between ${id} and ${id + 4}`, `a = ${row[0]}`])
    return random.pick([
      `insert into ${table} values (${id}, ${row}) on conflict (id) do update set (a, b, v, word, note) = (${row})`,
      `update ${table} set a = ${row[0]} where ${some}`, `update ${table} set b = ${row[1]} where ${some}`,
      `update ${table} set v = ${row[2]}, word = ${row[3]} where ${some}`, `delete from ${table} where id = ${id}`, `update ${table} set note = ${row[4]} where ${some}`,
      ...Array(3).fill(`update ${table} set id = ${free}, v = ${row[2]} where id = ${id}`),
      `update ${table} set (a, b, v) = (${row.slice(0, 3)}) where ${some}`,
    ])
  }

  transaction() {
    return Array.from({ length: 1 + this.random.below(6) }, () => this.statement()).join('; ')
  }

  shape() {
    const { random } = this
    const table = random.pick(tables)
    const where = random.chance(0.4) ? this.condition(table).replaceAll('auth.uid()', '3').replaceAll('(select 3)', '3') : undefined
    const columns = random.chance(0.4) ? named.replaceAll(' ', '') : undefined
    return { table, where, columns, role: random.pick(roles), sub: 1 + random.below(4) }
  }
}
