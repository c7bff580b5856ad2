// Requests that schemathesis makes from the service's own description: each is answered as that says, and with no 5xx.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { root, scale, scratchDir, send, served } from '../lib/index.mjs'
import { growthOf } from './growth.mjs'

const site = served({
  schema: `create type mood as enum ('sad', 'ok');
    create table items (id int primary key, title text, n int8, kind mood, day date, tags text[], "we""ird /" jsonb);
    insert into items select i, 'title ' || i, i * 10, 'ok', date '2024-01-01' + i, array['a', i::text], '{"a": 1}' from generate_series(1, 50) i;
    create table "Bag" (v text, n int); insert into "Bag" values ('x', 1), (null, 2)`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '20', SHAPEFEED_SSE_TIMEOUT_MS: '40', SHAPEFEED_CHUNK_BYTES: '2000' },
})

const values = {
  where: ['id = 1', "title like '%1%'", 'n > $1', 'tags @> $2', "kind = 'ok' and day > '2024-01-09'", 'n / (id - 3) = 1'],
  columns: ['id', 'id,title', '"we""ird /",id'],
  replica: ['default', 'full'],
  log: ['full', 'changes_only'],
  live: ['true', 'false'],
  live_sse: ['true', 'false'],
  subset_where: ['id < 5', "title ilike 'T%'", '"we""ird /" is not null', 'n = $1'],
  subset_params: ['{"1":"5"}', '{"1":"7","2":"x"}'],
  subset_order_by: ['id', 'n desc nulls last, title', '"we""ird /"', '2'],
}
const isSubset = (name) => name.startsWith('subset_')

/**
 * Three descriptions: of the log and of subsets of a table with what it has, so that requests go deep, and as it is published,
 * for another table whose handles end. `any` adds all texts to what is known.
 */
async function descriptions() {
  const { json } = await send(site.sidecar.url, '/openapi.json')
  const narrowed = async (name, table, { keep = () => true, any = false } = {}) => {
    const own = structuredClone(json)
    const { handle } = await site.api.start({ table })
    const known = { ...values, table: [table], handle: [handle], offset: ['-1', '0_0', 'now', '0_inf', `${handle.split('-')[1]}_0`] }
    const { parameters } = own.components
    for (const [of, texts] of Object.entries(known)) parameters[of].schema = any ? { anyOf: [{ enum: texts }, { type: 'string' }] } : { enum: texts }
    parameters.params.schema = { type: 'object', required: ['1', '2'], properties: { 1: { enum: ['5', '100'] }, 2: { enum: ['{a}', '{}'] } }, additionalProperties: any }
    for (const operation of Object.values(own.paths['/v1/shape'])) operation.parameters = operation.parameters.filter(({ $ref }) => !$ref || keep($ref.split('/').at(-1)))
    const file = join(scratchDir('fuzz'), `${name}.json`)
    writeFileSync(file, JSON.stringify(own))
    return file
  }
  const unusual = ['queryable_columns', 'expired_handle', 'secret']
  return {
    log: await narrowed('log', 'items', { keep: (name) => !unusual.includes(name) && !isSubset(name) }),
    subset: await narrowed('subset', 'items', { keep: (name) => !unusual.includes(name) && name !== 'live_sse' && name !== 'live' }),
    any: await narrowed('any', '"Bag"', { any: true }),
  }
}

const usual = ['--exclude-method', 'DELETE', '--phases', 'fuzzing', '--mode', 'positive']

/** Runs schemathesis, which must find nothing. */
async function schemathesis(file, examples, seed, more) {
  const args = ['-m', 'schemathesis.cli', 'run', file, '--url', site.sidecar.url, '--seed', String(seed), '--max-examples', String(examples), '--generation-database', 'none',
    '--include-path', '/v1/shape', '--workers', '1', '--request-timeout', '20', '--suppress-health-check', 'all', '--warnings', 'off',
    '--checks', 'not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance', '--continue-on-failure', '--no-shrink', '--no-color', ...more]
  const child = spawn('python3', args, { cwd: scratchDir('schemathesis'), env: { ...process.env, PYTHONPATH: join(root, '.local/schemathesis'), PYTHONDONTWRITEBYTECODE: '1' } })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text) => { output += text })
  const code = await new Promise((resolve, reject) => child.once('error', reject).once('close', resolve))
  assert.equal(code, 0, `seed ${seed}: ${output.slice(-8000)}`)
}

/** Requests so far, by status. */
async function answered() {
  const text = await (await fetch(`${site.sidecar.url}/metrics`)).text()
  const counts = {}
  for (const [, status, count] of text.matchAll(/^shapefeed_requests_total\{[^}]*status="(\d+)"\} (\d+)$/gm)) counts[status] = (counts[status] ?? 0) + Number(count)
  return counts
}

test('requests from the description', { timeout: 3_000_000 }, async () => {
  const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? 20_240_607)
  const { log, subset, any } = await descriptions()
  const examples = Math.round(200 * scale)
  let round = 0
  const growth = await growthOf(site, async () => {
    const own = seed + round++
    await Promise.all([schemathesis(log, 2 * examples, own, usual), schemathesis(subset, examples, own, usual), schemathesis(any, examples, own, ['--phases', 'coverage,fuzzing'])])
  })
  const counts = await answered()
  console.log(`answers by status: ${JSON.stringify(counts)}; ${growth}`)
  const total = Object.values(counts).reduce((sum, count) => sum + count, 0)
  assert.deepEqual(Object.keys(counts).filter((status) => status >= 500), [])
  for (const status of [200, 400]) assert.ok(counts[status] > total / 5, `${status}: ${JSON.stringify(counts)}`)
  assert.equal(await site.sql('select count(*) from items'), '50')
  assert.doesNotMatch(site.sidecar.log(), /panicked|ERROR/)
})
