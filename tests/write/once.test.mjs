// Exactly once, whoever is killed when: answers that are lost, two sidecars, a server that dies.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import net from 'node:net'
import { test } from 'node:test'
import { scale, served, startSidecar, waitFor } from '../lib/index.mjs'
import { Writer, as, convention, environment, insert, post, update } from './setup.mjs'

const site = served({
  schema: `${convention}
    create table notes (id int primary key, n int not null default 0);
    create table log (n bigint generated always as identity, client uuid, seq int);
    grant select, insert, update, delete on notes, log to app;
    call shapefeed.track('notes');
    call shapefeed.allow_writes('notes');
    call shapefeed.allow_writes('log');`,
  env: environment,
  conf: ['fsync = on'],
})
const one = async (text) => Object.values((await site.client.query(text)).rows[0])[0]
const logged = (client, seq) => insert('log', { client: client.id, seq })

test('a reply that is lost is asked for again', async () => {
  const client = new Writer(site.sidecar.url, as(1))
  for (let seq = 1; seq <= 5; seq++) {
    const body = JSON.stringify({ client_id: client.id, transactions: [{ seq, operations: [logged(client, seq)] }] })
    const { hostname, port } = new URL(site.sidecar.url)
    const socket = net.connect(Number(port), hostname)
    await once(socket, 'connect')
    const { authorization } = as(1)
    socket.end(`POST /v1/write HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: ${authorization}\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`)
    if (seq % 2) socket.destroySoon()
    const [result] = (await client.post([[logged(client, seq)]], seq)).json.results
    assert.equal(result.status, 'applied')
    socket.destroy()
  }
  assert.equal(await one(`select count(*)::int from log where client = '${client.id}'`), 5)
})

test('what was received is done, though who sent it goes away', async () => {
  const client = new Writer(site.sidecar.url, as(1))
  const holder = await site.database.connect()
  await holder.query('begin; lock table log in share mode')
  const stop = new AbortController()
  const transactions = [1, 2, 3].map((seq) => ({ seq, operations: [logged(client, seq)] }))
  const sent = fetch(`${site.sidecar.url}/v1/write`, { method: 'POST', headers: { 'content-type': 'application/json', ...as(1) }, body: JSON.stringify({ client_id: client.id, transactions }), signal: stop.signal })
  await waitFor(async () => await one("select count(*)::int from pg_locks where relation = 'log'::regclass and not granted") === 1)
  stop.abort()
  await assert.rejects(sent)
  await new Promise((resolve) => setTimeout(resolve, 300)) // so that the sidecar would know by now
  await holder.query('commit')
  await holder.end()
  await waitFor(async () => await one(`select count(*)::int from log where client = '${client.id}'`) === 3)
})

test('the same transaction at the same time, through two sidecars, is done once', async () => {
  const { sidecar } = await site.another()
  const clients = Array.from({ length: 4 }, () => new Writer(site.sidecar.url, as(1)))
  await Promise.all(clients.map(async (client) => {
    for (let seq = 1; seq <= 10; seq++) {
      const send = (url) => new Writer(url, client.headers, client).post([[logged(client, seq)], [logged(client, seq + 1)]].slice(0, 1 + (seq % 2)), seq)
      const answers = await Promise.all([site.sidecar.url, sidecar.url, site.sidecar.url, sidecar.url].map(send))
      const results = answers.map(({ status, json }) => {
        assert.equal(status, 200)
        return JSON.stringify(json.results)
      })
      assert.equal(new Set(results).size, 1, results.join('\n'))
      if (seq % 2) seq++
    }
  }))
  for (const { id } of clients) {
    const { rows } = await site.client.query('select seq from log where client = $1 order by n', [id])
    assert.deepEqual(rows.map(({ seq }) => seq), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
  }
})

/** Sends transactions of a client again and again until all are done, whatever fails. */
async function sendAll(client, urls, count, transaction) {
  let next = 1
  while (next <= count) {
    const batch = Array.from({ length: Math.min(3, count - next + 1) }, (_, i) => transaction(next + i))
    const url = urls[(next + batch.length) % urls.length]
    const answer = await new Writer(url(), client.headers, client).post(batch, next).catch(() => undefined)
    if (answer?.status !== 200) {
      assert.ok(answer === undefined || answer.status >= 500, answer?.text)
      await new Promise((resolve) => setTimeout(resolve, 20))
      continue
    }
    next = answer.json.last_seq + 1
  }
}

test('sidecars and the server are killed while clients write: each transaction is there once, in order', { timeout: 120_000 }, async () => {
  const ports = []
  const start = async (port) => {
    const sidecar = await startSidecar({ databaseUrl: site.database.url, env: { ...environment, SHAPEFEED_WRITE_RATE: '0' }, port })
    ports.push(sidecar.port)
    return sidecar
  }
  const sidecars = [await start(), await start()]
  const urls = [() => sidecars[0].url, () => sidecars[1].url]
  const clients = Array.from({ length: 6 }, (_, i) => new Writer(undefined, as(i)))
  const count = Math.round(120 * scale)
  await site.sql('insert into notes values (1, 0)')
  let running = true
  const writing = Promise.all(clients.map((client) =>
    sendAll(client, urls, count, (seq) => [logged(client, seq), insert('notes', { id: 1000 + seq + 100_000 * clients.indexOf(client), n: seq })]))).finally(() => { running = false })
  const done = async () => Number(await site.sql('select count(*) from log where seq > 0').catch(() => 0))
  let kills = 0
  const before = await done()
  for (const share of [0.1, 0.3, 0.5, 0.7]) {
    await waitFor(async () => !running || (await done()) - before > share * count * clients.length, { timeoutMs: 60_000 })
    if (!running) break
    if (kills++ % 2) {
      await site.cluster.kill9()
      await site.cluster.start()
    } else {
      const { port } = sidecars[0]
      await sidecars[0].kill9()
      sidecars[0] = await start(port)
    }
  }
  await writing
  assert.ok(kills >= 3, `${kills} kills`)
  site.client = await site.database.connect()
  for (const client of clients) {
    const { rows } = await site.client.query('select seq from log where client = $1 order by n', [client.id])
    assert.deepEqual(rows.map(({ seq }) => seq), Array.from({ length: count }, (_, i) => i + 1))
    assert.equal(await one(`select last_seq::int from shapefeed.write_client where id = '${client.id}'`), count)
  }
  assert.equal(await one('select count(*)::int from notes where id >= 1000'), count * clients.length)
  await Promise.all(sidecars.map((sidecar) => sidecar.stop()))
})

test('a rejection is recorded as well, also when the server dies after it', async () => {
  const client = new Writer(site.sidecar.url, as(1))
  await site.sql('insert into notes values (50, 7) on conflict do nothing')
  const taken = await client.refuse('23505', insert('notes', { id: 50 , n: 8 }))
  await site.cluster.kill9()
  await site.cluster.start()
  await site.sql('delete from notes where id = 50')
  const answer = async () => {
    const { status, json } = await client.post([[insert('notes', { id: 50, n: 8 })]], 1).catch(() => ({}))
    return status === 200 && json.results[0]
  }
  assert.deepEqual(await waitFor(answer), taken)
  site.client = await site.database.connect()
  assert.equal(await site.sql('select count(*) from notes where id = 50'), '0')
})

test('a transaction that is rejected leaves nothing in the log', async () => {
  const client = new Writer(site.sidecar.url, as(1))
  const { lsn } = await client.apply(insert('notes', { id: 60 }))
  await client.refuse('23505', insert('notes', { id: 61 }), insert('notes', { id: 60, n: 1 }))
  await client.apply(update('notes', { id: 60 }, { n: 1 }))
  const { rows } = await site.client.query('select key, operation from shapefeed.changes($1, from_position => $2)', ['notes', lsn])
  assert.deepEqual(rows, [{ key: '"public"."notes"/"60"', operation: 'update' }])
})
