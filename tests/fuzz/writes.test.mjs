// Requests to /v1/write, each of which is wrong in some way: a 4xx or a rejection says so, in the protocol's JSON. No table is
// changed, and nothing is told of rows that the caller does not see.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import http from 'node:http'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { scale, served } from '../lib/index.mjs'
import { bearer, token } from '../lib/jwt.mjs'
import { randomFrom } from '../lib/random.mjs'
import { as, convention, environment, secret } from '../rls/setup.mjs'
import { growthOf } from './growth.mjs'

// Rows of user 2 have `hidden` in what user 1, who sends all requests, may not come to know; he knows their ids and codes.
const site = served({
  schema: `${convention}
    create schema private; create schema shown;
    create table lists (id int primary key, owner int not null);
    create table notes (id int primary key, owner int not null default auth.uid(), list int references lists, title text not null check (title <> 'bad'),
      code text unique, doc jsonb, n int2, "od""d ü" text, during int4range, length int generated always as (length(title)) stored,
      exclude using gist (during with &&) where (owner <> 0), check (n > 0 or title like 'title%'));
    create unique index on notes ((lower(title)), list);
    create table plain (id int primary key, secret text not null default 'hidden default', n int unique);
    create table closed (id int primary key, v text); create table readonly (id int primary key, v text); create table private.stuff (id int primary key, v text);
    create view viewed as select id, title from notes; create sequence counter; create table keyless (v text);
    create function judge() returns trigger language plpgsql as $$ begin
      if exists (select from notes where title like 'hidden%' and length(title) < 0) then return null; end if;
      return new; end $$;
    create trigger judge before insert or update on notes for each row execute function judge();
    insert into lists values (1, 1), (2, 2);
    insert into notes (id, owner, list, title, code, doc, n, during) select i, 1, 1, 'title ' || i, 'mine ' || i, '{"a": [1]}', 1, int4range(i * 10, i * 10 + 5) from generate_series(1, 9) i;
    insert into notes (id, owner, list, title, code, doc, n, during) select i, 2, 2, 'hidden title ' || i, 'code ' || i, '"hidden doc"', 1, int4range(i * 10, i * 10 + 5) from generate_series(101, 109) i;
    insert into plain values (1, 'hidden plain', 1); insert into closed values (1, 'hidden closed'); insert into readonly values (1, 'hidden readonly');
    insert into private.stuff values (1, 'hidden stuff'); insert into keyless values ('a');
    alter table notes enable row level security; alter table lists enable row level security;
    create policy own on notes using (owner = auth.uid()); create policy own on lists using (owner = auth.uid());
    grant select, insert, update, delete on notes, closed, private.stuff, keyless, viewed, lists to app;
    grant select (id, n), insert (id, n, secret), update (n), delete on plain to app;
    do $$ declare t text; begin
      foreach t in array '{notes,plain,keyless,readonly,private.stuff}'::text[] loop execute format('call shapefeed.allow_writes(%L)', t::regclass); end loop;
    end $$;`,
  env: { ...environment, SHAPEFEED_WRITE_RATE: '0' },
})

const evil = `id"; drop table notes; --'$1`
const insert = (table, value) => ({ operation: 'insert', table, value })
const update = (table, key, value, base) => ({ operation: 'update', table, key, value, base })
const remove = (table, key, base) => ({ operation: 'delete', table, key, base })

/** Operations that are rejected, each with its SQLSTATEs. */
const operations = {
  'of a table that is none': ({ pick }) => [['42P01'], remove(pick(['nowhere', 'public.nowhere', 'nowhere.notes', '"Notes"', '"public.notes"', '"notes where true --"', '"notes; drop table notes"', 'pg_temp.notes', '"NOTES"']), { id: 1 })],
  'of a table that is not open': ({ pick, below }) => [['42501', '42P01'], pick([insert, (table, key) => update(table, key, { v: 'x' }), remove])(pick(['closed', 'viewed', 'counter', 'notes_pkey', 'lists', 'pg_class',
    'pg_catalog.pg_authid', 'pg_catalog.pg_class', 'pg_catalog.pg_proc', 'information_schema.tables', 'pg_toast.pg_toast_1255', 'shapefeed.write_client', 'shapefeed.writable', 'shapefeed.write_result', 'shapefeed.shape']), { id: below(3) })],
  'without a right': ({ pick }) => [['42501'], pick([insert('readonly', { id: 5 }), remove('readonly', { id: 1 }), remove('private.stuff', { id: 1 }), update('plain', { id: 1 }, { secret: 'x' }), update('plain', { id: 1 }, { n: 2 }, { secret: 'hidden plain' }),
    update('plain', { id: 1 }, {}, { secret: 'hidden' }), insert('notes', { id: 500, owner: 2, title: 'a' }), update('notes', { id: 1 }, { owner: 2 })])],
  'of columns that are none': ({ pick }) => {
    const name = pick(['nothing', evil, '', 'ctid', 'xmin', 'tableoid', 'ID', '"id"', 'notes', '*', 'id = 1 or true --', 'x'.repeat(2000), '__proto__', 'od"d', '\u0001'])
    return [['42703'], pick([insert('notes', { id: 500, [name]: '1' }), update('notes', { id: 1 }, { [name]: '1' }), remove('notes', { [name]: '1' }), remove('notes', { id: 1 }, { [name]: '1' })])]
  },
  'with a value that is none': ({ pick }) => {
    const number = pick(['', 'one', '1 or true', '1;', '$1', '0x', '1e400', true, {}, [1], [[]], { id: 1 }, 1.5, ' \t', evil, '٣', 'NaN'])
    return [['22P02'], pick([remove('notes', { id: number }), insert('notes', { id: number, title: 'a' }), update('notes', { id: 1 }, { list: number })])]
  },
  'with a value that is too large': ({ pick }) => {
    const number = pick(['99999999999', 1e10, 2 ** 53, -1e12, '9'.repeat(400), '-2147483649'])
    return [['22003', '22P02'], pick([remove('notes', { id: number }), insert('notes', { id: number, title: 'a' }), update('notes', { id: 1 }, { n: 99_999 })])]
  },
  'with JSON that Postgres does not read': ({ pick }) => {
    const doc = pick(['{', '{"a": 1', "{'a': 1}", '"\\u0000"', '"\\ud83d"', 'nul', '[1,]', '1 2', '', '['.repeat(100_000)])
    return [['22P02', '22P05', '54001'], pick([insert('notes', { id: 500, title: 'a', doc }), update('notes', { id: 1 }, { doc })])]
  },
  'against a constraint': ({ pick, below }) => pick([
    [['23505'], insert('notes', { id: 101 + below(9), title: 'a' })], [['23505'], insert('notes', { id: 500, title: 'a', code: `code ${101 + below(9)}` })],
    [['23505'], update('notes', { id: 1 }, { id: 101 + below(9) })], [['23505'], update('notes', { id: 1 }, { code: `code ${101 + below(9)}` })], [['23505'], update('notes', { id: 1 }, { title: 'TITLE 2' })],
    [['23505'], insert('plain', { id: 1, n: 7 })], [['23505'], insert('plain', { id: 2, n: 1, secret: 'x' })], [['23502'], insert('notes', { id: 500 })], [['23502'], update('notes', { id: 1 }, { title: null })],
    [['23502'], insert('plain', { id: 8, secret: null })], [['23503'], update('notes', { id: 1 }, { list: 77 })], [['23514'], insert('notes', { id: 500, title: 'bad' })], [['23514'], update('notes', { id: 1 }, { n: 0, title: 'x' })],
    [['23P01'], update('notes', { id: 1 }, { during: '[1010,1099)' })], [['23P01'], insert('notes', { id: 500, title: 'a', during: '[0,9999)' })], [['428C9'], insert('notes', { id: 500, title: 'a', length: 1 })],
  ]),
  'of a row that is not there, or not to be seen': ({ pick, below }) => [['P0002'], update('notes', { id: pick([101 + below(9), 999, -1]) }, pick([{ title: 'x' }, {}, { owner: 1 }]), pick([undefined, { title: 'hidden title 101' }]))],
  'of a row that has changed': ({ pick }) => [['SF412'], pick([update('notes', { id: 1 }, { title: 'x' }, { title: 'title 2' }), remove('notes', { id: 1 }, { code: null })])],
  'without a key': ({ pick }) => [['22023', '0A000'], pick([update('notes', {}, { title: 'x' }), remove('notes', { id: 1, owner: 1 }), remove('notes', { owner: 1 }), remove('keyless', { v: 'a' }), update('keyless', {}, { v: 'b' })])],
}

const valid = ({ pick, below }) => pick([update('notes', { id: 3 + below(6) }, { doc: '{"b": 2}' }), remove('notes', { id: 9 }), insert('keyless', { v: 'b' })])
/** The operations of one transaction: one of them is rejected, so that the others are not done either. */
function rejected(random) {
  const what = random.pick(Object.keys(operations))
  const [sqlstates, operation] = operations[what](random)
  return { what, sqlstates, list: [...Array.from({ length: random.below(3) }, () => valid(random)), operation] }
}

const request = (transactions, more = {}) => ({ method: 'POST', path: '/v1/write', headers: { 'content-type': 'application/json', ...as(1) }, body: { client_id: randomUUID(), transactions }, ...more })
const whole = (random) => [{ seq: 1, operations: Array.from({ length: 1 + random.below(3) }, () => valid(random)) }]
const text = (random) => Buffer.from(JSON.stringify(request(whole(random)).body))

/** Puts something else into one place of a body that is needed. */
function misfit({ pick }, body) {
  const strange = pick([null, true, -1, 1.5, 1e300, '', 'x', [], {}, [[]], { a: 1 }, 2 ** 53, '\ud83d', 'ü'.repeat(300)])
  const [transaction] = body.transactions
  const [operation] = transaction.operations
  const at = pick([[body, 'client_id'], [body, 'transactions'], [transaction, 'seq'], [transaction, 'operations'], [operation, 'operation'], [operation, 'table'], [transaction.operations, 0], [body.transactions, 0]])
  // An empty transaction, or none of its optional parts, would be fine.
  at[0][at[1]] = (at[1] === 'operations' || at[1] === 'seq') && Array.isArray(strange) ? 'x' : strange
  return body
}

const broken = {
  cut: (bytes, { below }) => bytes.subarray(0, below(bytes.length)),
  'not UTF-8': (bytes, { below, pick }) => { const at = 1 + below(bytes.length - 1); return Buffer.concat([bytes.subarray(0, at), pick([Buffer.from([0xff]), Buffer.from([0xc3, 0x28]), Buffer.from([0xed, 0xa0, 0x80])]), bytes.subarray(at)]) },
  'with NUL': (bytes, { below }) => { const at = below(bytes.length); return Buffer.concat([bytes.subarray(0, at), Buffer.from([0]), bytes.subarray(at)]) },
  'in UTF-16': (bytes) => Buffer.from(`\ufeff${bytes}`, 'utf16le'),
  compressed: (bytes) => gzipSync(bytes),
  twice: (bytes) => Buffer.concat([bytes, bytes]),
  noise: (_, { below }) => Buffer.from(Array.from({ length: 1 + below(300) }, () => below(256))),
  deep: (_, { pick }) => Buffer.from(pick(['[', '{"a":', '{"client_id":', '{"transactions":[']).repeat(50_000)),
  'with a name twice': (bytes, { pick }) => Buffer.from(String(bytes).replace('{', pick(['{"client_id":"x",', '{"transactions":[],', `{"client_id":"${randomUUID()}",`]))),
  'with code zero': (bytes) => Buffer.from(JSON.stringify({ client_id: randomUUID(), transactions: [{ seq: 1, operations: [insert('keyless', { v: 'a\0b' })] }] })),
  'with a table that cannot be': (_, { pick }) => Buffer.from(JSON.stringify({ client_id: randomUUID(), transactions: [{ seq: 1, operations: [remove(pick(['a.b.c', evil, 'notes;', 'notes n', '', '.', '1', 'x'.repeat(64), 'notes--', '"', '"a"b"', 'no tes', '\0']), { id: 1 })] }] })),
  empty: () => Buffer.alloc(0),
}

/** Requests that are wrong: [statuses, request, SQLSTATEs of the rejection]. */
const families = {
  'a rejection': (random) => {
    const { what, sqlstates, list } = rejected(random)
    return [[200], request([{ seq: 1, operations: list }]), sqlstates, what]
  },
  'a body that is none': (random) => {
    const how = random.pick(Object.keys(broken))
    return [[400], request([], { body: broken[how](text(random), random) }), undefined, how]
  },
  'a misfit': (random) => [[400, 200], request([], { body: misfit(random, request(whole(random)).body) }), ['42P01']],
  numbers: (random) => {
    const seq = random.pick(['0', '-1', '-9223372036854775808', '9007199254740992', '9223372036854775807', '9223372036854775808', '1e3', '1.0', '"1"', '1e400', '00', '+1', '0x1'])
    return [[400], request([], { body: Buffer.from(String(text(random)).replace('"seq":1', `"seq":${seq}`)) })]
  },
  'numbers that do not follow': (random) => [[400], request([...whole(random), { ...whole(random)[0], seq: random.pick([1, 3, 0, -1]) }])],
  'a gap': (random) => [[409], request([{ ...whole(random)[0], seq: 2 + random.below(1000) }])],
  'another client': (random) => [[403], request([], { body: { client_id: site.others, transactions: [{ ...whole(random)[0], seq: random.pick([1, 2, 3]) }] } })],
  'a client that is none': (random) => [[400], request([], { body: { client_id: random.pick(['', 'x', randomUUID().replaceAll('-', ''), `{${randomUUID()}}`, `${randomUUID()} `, randomUUID().replace(/.$/, 'g'), `${randomUUID()}'--`, 'ü'.repeat(36)]), transactions: whole(random) } })],
  'a bad token': (random) => {
    const [status, headers] = random.pick([[401, { authorization: 'Bearer x' }], [401, { authorization: 'Basic eDp5' }], [401, bearer(token({ role: 'app', sub: '1' }, 'another secret, as long as it must be'))], [401, as(1, { exp: 1 })], [401, as(1, { nbf: 9_999_999_999 })],
      [401, bearer(token({ role: 'app', sub: '1' }, secret, { alg: 'none' }))], [401, bearer(`${token({ role: 'app', sub: '1' }, secret)}x`)], [403, as(1, { role: 'postgres' })], [403, as(1, { role: 'app"; reset role' })]])
    return [[status], request(whole(random), { headers: { 'content-type': 'application/json', ...headers } })]
  },
  'another content type': (random) => {
    const type = random.pick([undefined, 'text/plain', 'application/x-www-form-urlencoded', 'application/jsonp', 'multipart/form-data; boundary=x', 'application/json/x', ';', '*/*'])
    return [[415], request(whole(random), { headers: { ...as(1), ...(type ? { 'content-type': type } : {}) } })]
  },
  'another method': (random) => [[405], request(whole(random), { method: random.pick(['GET', 'PUT', 'PATCH', 'DELETE', 'PROPFIND', 'TRACE']) })],
  'too large': (random) => {
    const body = Buffer.concat([text(random), Buffer.alloc((1 << 20) + random.below(3 << 20), ' ')])
    return [[413], request([], { body, isChunked: random.chance(0.5) })]
  },
}
const rare = ['too large']

/** Sends a request as it is; its answer, or an error where the connection ends without one. */
function send({ method, path, headers, body, isChunked = false }) {
  const bytes = Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body))
  return new Promise((resolve, reject) => {
    const sent = http.request({ host: '127.0.0.1', port: site.sidecar.port, agent, method, path, headers: isChunked ? headers : { ...headers, 'content-length': bytes.length }, timeout: 20_000 })
    sent.on('timeout', () => sent.destroy(new Error('no answer'))).on('error', reject).on('response', (answer) => {
      const parts = []
      answer.on('data', (part) => parts.push(part)).on('error', reject).on('end', () => resolve({ status: answer.statusCode, headers: answer.headers, text: Buffer.concat(parts).toString() }))
    })
    sent.end(bytes)
  })
}
const agent = new http.Agent({ keepAlive: true, maxSockets: 8 })

/** What no request may change. */
async function everything() {
  const tables = ['lists', 'notes', 'plain', 'closed', 'readonly', 'private.stuff', 'keyless', 'shapefeed.writable']
  const rows = tables.map((table) => `select '${table} ' || t::text as line from ${table} t`)
  const catalogs = ['pg_class where relnamespace not in (select oid from pg_namespace where nspname ~ \'^pg_|^shapefeed\')', 'pg_roles', 'pg_policy', 'pg_proc', 'pg_namespace']
  const counts = catalogs.map((of) => `select '${of.split(' ')[0]} ' || count(*) from ${of}`)
  return (await site.client.query(`${[...rows, ...counts].join(' union all ')} order by line`)).rows.map(({ line }) => line)
}

function judge([statuses, , sqlstates], { status, headers, text: said }) {
  assert.ok(statuses.includes(status), `${status} instead of ${statuses}`)
  assert.match(headers['content-type'] ?? '', /^application\/json/)
  const json = JSON.parse(said)
  if (status === 200) {
    for (const result of json.results) {
      assert.equal(result.status, 'rejected')
      assert.ok(sqlstates.includes(result.sqlstate), `${result.sqlstate} instead of ${sqlstates}`)
      assert.equal(typeof result.message, 'string')
    }
  } else assert.equal(typeof (json.message ?? json.error), 'string')
  assert.doesNotMatch(said, /hidden|Key \(|Failing row|existing key/, 'it tells of rows')
}

test('requests to write that are wrong in any way', { timeout: 3_000_000 }, async () => {
  const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? 20_261_127)
  const random = randomFrom(seed)
  site.others = randomUUID()
  const theirs = await send(request([], { headers: { 'content-type': 'application/json', ...as(2) }, body: { client_id: site.others, transactions: [{ seq: 1, operations: [] }, { seq: 2, operations: [] }] } }))
  assert.equal(theirs.status, 200, theirs.text)
  const before = await everything()
  const counts = {}
  const count = Math.round(800 * scale)
  const one = async () => {
    const family = random.pick(random.chance(0.03) ? rare : random.chance(0.4) ? ['a rejection'] : Object.keys(families).filter((name) => !rare.includes(name)))
    const made = families[family](random)
    const answer = await send(made[1]).catch((error) => ({ status: 0, headers: {}, text: error.message }))
    try {
      judge(made, answer)
    } catch (error) {
      const { body, ...more } = made[1]
      const sent = Buffer.isBuffer(body) ? body.toString('latin1') : JSON.stringify(body)
      throw new Error(`seed ${seed}, ${family}${made[3] ? ` ${made[3]}` : ''}: ${error.message}\n${JSON.stringify(more)}\n${sent.slice(0, 1500)}\n${answer.text.slice(0, 1000)}`)
    }
    counts[answer.status] = (counts[answer.status] ?? 0) + 1
  }
  const work = async () => {
    let next = 0
    await Promise.all(Array.from({ length: 8 }, async () => { while (next++ < count) await one() }))
  }
  console.log(`${await growthOf(site, work)}; answers by status: ${JSON.stringify(counts)}`)
  for (const status of [200, 400, 401, 403, 405, 409, 413, 415]) assert.ok(counts[status] > 0, `${status}: ${JSON.stringify(counts)}`)
  assert.deepEqual(await everything(), before)
  assert.doesNotMatch(site.sidecar.log(), /panicked|ERROR/)
  const fine = await send(request([{ seq: 1, operations: [update('notes', { id: 1 }, { title: 'title 1!' }), remove('notes', { id: 2 }), insert('plain', { id: 3, n: 3 })] }]))
  assert.equal(JSON.parse(fine.text).results[0].status, 'applied', fine.text)
  agent.destroy()
})
