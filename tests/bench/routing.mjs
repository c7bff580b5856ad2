// What it costs one feed session to find the shapes that a change concerns: by the number of shapes, and where no index
// helps beside what Postgres pays for the same expression.
import { startSidecar } from '../lib/index.mjs'
import { benchDatabase } from './lib/cluster.mjs'
import { untilSequenced } from './lib/log.mjs'
import { cpuSeconds, memoryKiB } from './lib/processes.mjs'
import { check, figure, remark } from './lib/report.mjs'
import { median } from './lib/statistics.mjs'

const suite = 'routing'
const FEW = 100
const MANY = 100_000
const BATCH = 1000
/** Changes of one measurement: in transactions of 1,000, as a busy table would have them. */
const CHANGES = 20_000
const IN_ONE_TRANSACTION = 1000
const ROUNDS = 3
const FEED_BYTES = 1 << 30

/** Rows 1..CHANGES are of companies 1..FEW, the next CHANGES rows of a company each, the rest of companies without a shape. */
const schema = `
  create table items (id int primary key, company_id int, owner text, status text, title text, meta jsonb, n int,
    place int, amount numeric, code text);
  insert into items select i, case when i <= ${CHANGES} then 1 + i % ${FEW} when i <= ${2 * CHANGES} then i else 1000000 + i end,
    'owner ' || case when i <= ${CHANGES} then 1 + i % ${FEW} when i <= ${2 * CHANGES} then i else 1000000 + i end, 'open', 'Title of item number ' || i || ', as long as titles are', jsonb_build_object('who', 'user' || i % 1000, 'k', i % 10), 0
    from generate_series(1, ${3 * CHANGES}) i;
  update items set place = 10 * company_id + id % 10, amount = 10 * company_id, code = company_id || '/' || id;
  call shapefeed.track('items'); vacuum analyze items; checkpoint;`
const ranges = { few: [1, CHANGES], many: [CHANGES + 1, 2 * CHANGES], none: [2 * CHANGES + 1, 3 * CHANGES] }

const templates = {
  company: [(k) => `company_id = ${k}`],
  mixed: [(k) => `company_id = ${k}`, (k) => `company_id = ${k} and status = 'open'`, (k) => `company_id in (${k}, -${k})`,
    (k) => `owner = 'owner ${k}'`, (k) => `company_id = ${k} and n >= 0`, (k) => `company_id = -${k} or owner = 'owner ${k}'`],
  between: [(k) => `place between ${10 * k} and ${10 * k + 9}`],
  ranges: [(k) => `place >= ${10 * k} and place < ${10 * k + 10}`, (k) => `code like '${k}/%'`, (k) => `code between '${k}/' and '${k}/9999999'`,
    (k) => `place between ${10 * k} and ${10 * k + 9} and n >= 0`, (k) => `code like '${k}/%' and title like '%item%'`, (k) => `amount between ${10 * k} and ${10 * k + 9}`],
}

const groups = {
  company: ['of one template', 300], mixed: ['of mixed templates', 1024], between: ['of narrow ranges', 1024], ranges: ['of mixed ranges', 1024],
}

/** Of these, and of what no index helps with, those whose name has a match of `only`, a regular expression. */
export async function routing(cluster, only = '') {
  const chosen = (name) => new RegExp(only).test(name)
  const database = await benchDatabase(cluster)
  await database.psql(schema)
  await untilSequenced(database.client)
  for (const [group, [name, bytes]] of Object.entries(groups)) {
    if (!chosen(group)) continue
    const few = await measureShapes(database, templates[group], FEW, ['none', 'few'])
    const many = await measureShapes(database, templates[group], MANY, ['none', 'many'])
    report(`${MANY} shapes ${name}`, few, many, bytes)
  }
  for (const [name, expression] of Object.entries(notIndexable)) {
    if (chosen(name)) await compare(database, name, expression)
  }
  if (chosen('IN lists')) await lists(database)
  await database.client.end()
  await database.drop()
}

function report(name, few, many, bytes) {
  figure({ suite, name: `${name}: attached`, value: many.attachSeconds, unit: ' s', at: '<=', target: 5, note: 'CPU of the backend' })
  figure({ suite, name: `${name}: memory of one`, value: many.bytes, unit: ' B', at: '<=', target: bytes })
  figure({ suite, name: `${name}: a change without a hit, to that of ${FEW}`, value: many.none / few.none, unit: 'x', at: '<=', target: 2 })
  figure({ suite, name: `${name}: a change with one hit, to that of ${FEW}`, value: many.many / few.few, unit: 'x', at: '<=', target: 2 })
  const rate = (us) => ({ value: 1e6 / us, note: `${us.toFixed(2)} µs of CPU each` })
  figure({ suite, name: `${name}: changes/s without a hit`, ...rate(many.none), at: '>=', target: 100_000 })
  figure({ suite, name: `${name}: changes/s with one hit`, ...rate(many.many), at: '>=', target: 40_000 })
}

/** Attaches `count` shapes in a session of their own and reads changes of each kind; CPU in µs by change. */
async function measureShapes(database, clauses, count, kinds) {
  const session = await openSession(database)
  const numbers = Array.from({ length: count }, (_, i) => i + 1)
  const definitions = await defineAll(database.client, numbers.map((k) => clauses[k % clauses.length](k)))
  await attach(session, [0], [await define(database.client, 'company_id = -1000000')]) // the table is known
  const resident = memoryKiB(session.pid).now
  const started = cpuSeconds(session.pid)
  for (let at = 0; at < count; at += BATCH) await attach(session, numbers.slice(at, at + BATCH), definitions.slice(at, at + BATCH))
  const result = { attachSeconds: cpuSeconds(session.pid) - started, bytes: ((memoryKiB(session.pid).now - resident) * 1024) / count }
  for (const kind of kinds) {
    const times = []
    const sum = { hits: 0, wrong: 0 }
    for (let round = 0; round <= ROUNDS; round++) {
      await change(database, ranges[kind])
      const { us, hits, wrong } = await drain(session)
      sum.hits += hits
      sum.wrong += wrong
      if (round > 0) times.push(us / CHANGES)
    }
    check(suite, `${count} shapes, ${kind}: operations`, sum.hits, kind === 'none' ? 0 : CHANGES * (ROUNDS + 1))
    check(suite, `${count} shapes, ${kind}: operations of another shape`, sum.wrong, 0)
    result[kind] = median(times)
    remark({ suite, name: `${count} shapes, ${kind}: CPU of a change`, value: result[kind], unit: ' µs', times })
  }
  await session.client.end()
  return result
}

async function openSession(database) {
  const client = await database.connect()
  const { rows: [{ pid }] } = await client.query('select pg_backend_pid() pid')
  return { client, pid }
}


const definition = "shapefeed._define('{public,items}', clause, null, '{id,company_id,n}', 'default', 'full', null)"
const define = async (client, clause) => (await defineAll(client, [clause]))[0]
async function defineAll(client, clauses) {
  const { rows } = await client.query(`select ${definition}::text as d from unnest($1::text[]) clause`, [clauses])
  return rows.map(({ d }) => d)
}

const attach = (session, ids, definitions) => session.client.query('select shapefeed._attach($1, $2::jsonb[])', [ids, definitions])

/** Changes each row of a range once. */
async function change({ client }, [from, to]) {
  for (let at = from; at <= to; at += IN_ONE_TRANSACTION) {
    await client.query('update items set n = n + 1 where id between $1 and $2', [at, Math.min(to, at + IN_ONE_TRANSACTION - 1)])
  }
  await untilSequenced(client)
}

/** Reads the feed to the head. `wrong`: operations for another shape than the company's, which is how shapes are numbered. */
async function drain({ client, pid }) {
  const { rows: [{ head }] } = await client.query('select head from shapefeed._head()')
  const started = cpuSeconds(pid)
  const result = { hits: 0, wrong: 0 }
  for (;;) {
    const { rows } = await client.query('select * from shapefeed._feed($1)', [FEED_BYTES])
    for (const { ids, message, kind } of rows) {
      if (kind !== 'op') continue
      result.hits++
      const id = ids[0]
      const { key } = JSON.parse(message)
      const row = Number(key.slice(key.lastIndexOf('/') + 2, -1))
      if (ids.length !== 1 || id !== (row <= CHANGES ? 1 + (row % FEW) : row)) result.wrong++
    }
    if (BigInt(rows.at(-1).position) >= BigInt(head)) break
  }
  return { ...result, us: (cpuSeconds(pid) - started) * 1e6 }
}

/** Where no index helps: `of` makes an expression that is true of no row. */
const notIndexable = {
  "ILIKE '%…%'": (i) => `title ilike '%nothing ${i} of that%'`,
  'jsonb containment': (i) => `meta @> '{"who": "nobody ${i}"}'`,
}
const EXPRESSIONS = 20

/** The CPU that EXPRESSIONS of a form add, in the feed and in a query over the same rows; by expression and row. */
async function compare(database, name, expression) {
  const expressions = Array.from({ length: EXPRESSIONS }, (_, i) => expression(i))
  const definitions = await defineAll(database.client, expressions)
  const [without, evaluated] = [await openSession(database), await openSession(database)]
  const plain = await define(database.client, 'company_id = -1')
  for (const session of [without, evaluated]) await attach(session, [0], [plain])
  await attach(evaluated, expressions.map((_, i) => i + 1), definitions)
  const [feed, query] = [[], []]
  let hits = 0
  for (let round = 0; round <= ROUNDS; round++) {
    await change(database, ranges.none)
    const base = await drain(without)
    const all = await drain(evaluated)
    hits += all.hits
    if (round === 0) continue
    feed.push((all.us - base.us) / (2 * CHANGES * EXPRESSIONS)) // each change has an old and a new row
    query.push((await queryTime(without, expressions) - await queryTime(without, ['id < 0'])) / (CHANGES * (EXPRESSIONS - 1)))
  }
  check(suite, `${name}: operations`, hits, 0)
  const note = `${median(feed).toFixed(3)} µs, a query ${median(query).toFixed(3)} µs`
  figure({ suite, name: `${name}: to what a query pays`, value: median(feed.map((us, i) => us / query[i])), unit: 'x', at: '<=', target: 1.3, note })
  await Promise.all([without, evaluated].map(({ client }) => client.end()))
}

async function queryTime({ client, pid }, expressions) {
  const counts = expressions.map((text) => `count(*) filter (where ${text})`)
  const sql = `select ${counts} from items where id between ${ranges.none[0]} and ${ranges.none[1]}`
  await client.query('set max_parallel_workers_per_gather = 0; set jit = off')
  await client.query(sql)
  const started = cpuSeconds(pid)
  await client.query(sql)
  return (cpuSeconds(pid) - started) * 1e6
}

/** A shape of many values, until a session of the feed has it; over HTTP as far as a URL goes, until its snapshot is there. */
async function lists(database) {
  const among = (count, from) => `id in (${Array.from({ length: count }, (_, i) => from + i).join(',')})`
  const session = await openSession(database)
  await attach(session, [0], [await define(database.client, 'company_id = -1')])
  const [sql, http] = [[], []]
  for (let round = 0; round <= ROUNDS; round++) {
    const clause = among(10_000, 1 + round)
    const began = performance.now()
    await attach(session, [round + 1], [await define(session.client, clause)])
    if (round > 0) sql.push(performance.now() - began)
  }
  await session.client.end()
  figure({ suite, name: 'IN of 10,000 values: defined and attached', value: median(sql), unit: ' ms', at: '<=', target: 50, absolute: true })

  const sidecar = await startSidecar({ databaseUrl: database.url })
  const rows = []
  for (let round = 0; round <= ROUNDS; round++) {
    const query = new URLSearchParams({ table: 'items', columns: 'id,n', where: among(1500, 1 + round), offset: '-1' })
    const began = performance.now()
    const answer = await fetch(`${sidecar.url}/v1/shape?${query}`)
    rows.push((await answer.json()).filter(({ key }) => key).length)
    if (round > 0) http.push(performance.now() - began)
  }
  await sidecar.stop()
  check(suite, 'IN of 1,500 values: rows', rows.join(' '), Array(ROUNDS + 1).fill(1500).join(' '))
  figure({ suite, name: 'IN of 1,500 values over HTTP, with its snapshot', value: median(http), unit: ' ms', at: '<=', target: 50, absolute: true })
}
