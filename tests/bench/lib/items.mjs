// The table that most benchmarks use: about 195 bytes a row, of the usual types.

export const columns = `id int primary key, n int, company bigint, title text, status text, amount numeric(12,2),
  meta jsonb, changed timestamptz`

/** A query for rows of it, with ids from 1 to `count`. */
export const values = (count) => `select i as id, 0 as n, i % 997 as company, 'Title of item number ' || i as title,
  (array['open', 'done', 'late'])[1 + i % 3] as status, i * 1.37 as amount,
  jsonb_build_object('who', 'user' || i % 1000, 'tags', array['a', 'b', 'c']) as meta, now() as changed
  from generate_series(1, ${count}) i`

/** One row: `rows`, their number, and `sum`, of all values of all columns; the same in any Postgres whose time zone is UTC. */
export const sumOf = (table) => `select count(*)::int as rows, md5(string_agg(to_jsonb(t)::text, ',' order by id)) as sum from ${table} t`
