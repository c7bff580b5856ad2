// What each statement of docs/tables.md does to live clients: their handle is kept, or they get exactly one 409; afterwards
// they hold what SELECT gives. Each twice: as usual, and with our event triggers disabled.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served, waitFor } from '../lib/index.mjs'
import { LiveClient } from './client.mjs'
import { parts, statements, table } from './statements.mjs'

const site = served({
  conf: [`shapefeed.allowed_functions='${statements.flatMap((_, i) => [`matrix_${i}_told.big`, `matrix_${i}_blind.big`])}'`],
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '2000' },
})

const eventTriggers = ['ddl_command_start', 'table_rewrite', 'ddl_command_end', 'sql_drop']
const blindly = (sql) => {
  const set = (how) => eventTriggers.map((name) => `alter event trigger shapefeed_${name} ${how};`).join('\n')
  return `${set('disable')}\n${sql};\nset session_replication_role = origin;\n${set('enable always')}`
}

const writes = 'insert into t (id, n) values (100, 3); update t set n = 3 where id = 2; delete from t where id = 4'

statements.forEach(({ blind, ...told }, number) => {
  test(told.statement, () => walk(told, `matrix_${number}_told`, (sql) => sql))
  test(`${told.statement}, unseen by event triggers`, () => walk({ ...told, ...blind }, `matrix_${number}_blind`, blindly))
})

async function walk({ statement, on = table, then = writes, shape, ends, ...outcomes }, schema, how) {
  const named = (sql) => sql.replaceAll('%s', schema)
  const path = `set search_path = ${schema}, public;\n`
  await site.sql(`create schema ${schema};\n${path}${on}`)
  const clients = {
    all: await LiveClient.started(site.api, { table: `${schema}.t` }),
    some: await LiveClient.started(site.api, { table: `${schema}.t`, columns: on === parts ? 'id,v,n' : 'id,v', where: 'n < 1000' }),
  }
  if (shape) clients.other = await LiveClient.started(site.api, { table: `${schema}.t`, columns: shape.columns, where: named(shape.where) })
  try {
    const handles = Object.fromEntries(Object.entries(clients).map(([name, { handle }]) => [name, handle]))
    const before = await head()
    await site.sql(path + how(named(statement)))
    if (then) await site.sql(path + then)
    for (const [name, client] of Object.entries(clients)) await settles(client, outcomes[name], handles[name])
    assert.deepEqual(await endsAbove(before), ends)
  } finally {
    await Promise.all(Object.values(clients).map((client) => client.stop()))
    await site.sql(`drop schema if exists ${schema}, ${schema}_new, ${schema}_other cascade`)
  }
}

async function settles(client, outcome, handle) {
  if (outcome === 'goes on') {
    await untilSame(client)
    assert.deepEqual([client.refetches, client.handle], [0, handle])
  } else if (outcome === 'again') {
    await waitFor(() => client.refetches > 0 || client.failure, { what: 'a 409' })
    await untilSame(client)
    assert.equal(client.refetches, 1)
    assert.notEqual(client.handle, handle)
  } else {
    await waitFor(() => client.refusal || client.failure, { what: `an error ${outcome}` })
    assert.equal(client.refusal?.status, 400, client.failure?.message)
    assert.match(client.refusal.text, outcome)
    assert.equal(client.refetches, 1)
  }
}

/** Waits until the client's rows are those that a query finds, and one more answer has come. */
async function untilSame(client) {
  const { table: name, columns = '*', where = 'true' } = client.params
  const query = `select ${columns} from ${name.includes('.') ? '' : 'public.'}${await isPartitioned(name) ? '' : 'only '}${name} where ${where}`
  let copy, truth
  const same = async () => {
    if (client.failure) throw client.failure
    copy = client.rows()
    truth = (await rowsOf(query)).sort()
    return client.follower.upToDate && JSON.stringify(copy) === JSON.stringify(truth)
  }
  await waitFor(same, { intervalMs: 50, what: 'the copy equals the table' }).catch((error) => {
    throw new Error(`${JSON.stringify(copy)} instead of ${JSON.stringify(truth)}; ${client.refusal?.text ?? ''}`, { cause: error })
  })
}

async function isPartitioned(name) {
  const { rows } = await site.client.query('select relkind from pg_class where oid = $1::regclass', [name])
  return rows[0].relkind === 'p'
}

/** Rows as the protocol writes them: all values as text. */
async function rowsOf(query) {
  const { rows } = await site.client.query({ text: query, types: { getTypeParser: () => (value) => value } })
  return rows.map((row) => JSON.stringify(row, (key, value) => (value === 't' ? 'true' : value)))
}

async function head() {
  return (await site.client.query('select head from shapefeed.status')).rows[0].head
}

/** Why epochs of the tables of a case ended since, each reason once. */
async function endsAbove(position) {
  const { rows } = await site.client.query(
    "select distinct e ->> 'reason' as reason from shapefeed.commit c, jsonb_array_elements(c.ends) e where c.position > $1 and e ->> 'reason' <> 'track'", [position])
  return rows.map(({ reason }) => reason).sort()
}
