// The tables that the tests of this folder share, and clients whose copies are compared with a SELECT.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from '../lib/index.mjs'

/** The tables, policies and named shapes of the example; and its tables alone. */
export const example = readFileSync(join(root, 'sql/examples/foundation.sql'), 'utf8')
export const foundation = example.split('-- Who sees what.')[0]

/** Two companies with a workspace or two, folders in each, and three users of whom Ann is a member of company 1. */
export const fewRows = `
  insert into users values (1, 'Ann'), (2, 'Bob'), (3, 'Eve');
  insert into companies select i, 'company ' || i from generate_series(1, 4) i;
  insert into workspaces select i, (i + 1) / 2, 'workspace ' || i from generate_series(1, 8) i;
  insert into folders select i, (i + 2) / 3, null, 'folder ' || i from generate_series(1, 24) i;
  insert into company_members values (1, 1), (2, 2), (3, 2);`

/** Where clauses of one user, by table. */
export const visibleTo = {
  companies: 'id in (select company_id from company_members where user_id = $1)',
  workspaces: 'company_id in (select company_id from company_members where user_id = $1)',
  folders: `workspace_id in (select id from workspaces where company_id in
    (select company_id from company_members where user_id = $1))`,
}

/** Checks that a strict client's rows are those that the table has under the same clause now. */
export async function same(site, follower, { table, where, params }) {
  const { rows } = await site.client.query(`select to_jsonb(${table}) from ${table} where ${where} order by 1`, params)
  const text = (value) => (value === null ? null : String(value))
  const asText = (row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, text(value)]))
  const sorted = (list) => list.map((row) => JSON.stringify(Object.entries(row).sort())).sort()
  assert.deepEqual(sorted(follower.values), sorted(rows.map(({ to_jsonb }) => asText(to_jsonb))), `${table} where ${where}`)
}

/** Follows a shape over HTTP as a strict client. */
export function followed(site, { table, where, params = [] }, api = site.api) {
  const values = Object.fromEntries(params.map((value, i) => [`params[${i + 1}]`, String(value)]))
  return api.follow({ table, where, ...values })
}
