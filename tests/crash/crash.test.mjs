// kill -9 of the sidecar and immediate stops of Postgres under load: clients go on where they were, nothing is lost.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { freshDatabase, scale, sleep, startCluster, startProxy, startSidecar, waitFor } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'

let cluster, database, sidecar, proxy
const followers = []

// What each follower asks for, and the SELECT that says what it must hold.
const shapes = [
  [{ table: 'items' }, 'select * from items'],
  [{ table: 'items', where: 'kind = 3' }, 'select * from items where kind = 3'],
  [{ table: 'items', where: "n % 2 = 0 and note like '%a%'" }, "select * from items where n % 2 = 0 and note like '%a%'"],
  [{ table: 'items', where: 'kind = $1', params: ['5'], columns: ['id', 'n'] }, 'select id, n from items where kind = 5'],
]

before(async () => {
  cluster = await startCluster({ conf: ['fsync=on'] })
  database = await freshDatabase(cluster)
  await database.psql(`create table items (id int primary key, kind int not null, n int not null, note text);
    insert into items select i, i % 10, 0, md5(i::text) from generate_series(1, 500) i;`)
  sidecar = await startSidecar({ databaseUrl: database.url })
  proxy = await startProxy(sidecar.url)
  for (const [params] of shapes) followers.push(follow(proxy.url, params))
  await allSame()
})

after(async () => {
  followers.forEach((follower) => follower.stop())
  await proxy?.stop()
  await sidecar?.stop()
  await cluster?.stop()
})

async function allSame() {
  const client = await database.connect()
  for (const [i, [, query]] of shapes.entries()) {
    const count = await untilSame(followers[i], client, query)
    assert.ok(count > 0, `${query} selects something`)
  }
  await client.end()
}

// Writers that go on whatever happens: a failed statement is tried again on a new connection. Returns how many committed.
function startWriters(count) {
  let stopped = false
  let committed = 0
  async function writer(number) {
    let client
    while (!stopped) {
      try {
        client ??= await database.connect()
        const id = 1 + Math.floor(Math.random() * 600)
        const what = Math.random()
        if (what < 0.2) await client.query('insert into items values ($1, $2, $3, md5($1::text)) on conflict do nothing', [id, id % 10, number])
        else if (what < 0.3) await client.query('delete from items where id = $1', [id])
        else if (what < 0.4) await client.query('update items set kind = $2 where id = $1', [id, Math.floor(Math.random() * 10)])
        else await client.query('update items set n = n + 1, note = md5(random()::text) where id = $1', [id])
        committed += 1
      } catch {
        client?.end().catch(() => {})
        client = undefined
        await sleep(50)
      }
    }
    await client?.end().catch(() => {})
  }
  const writers = Array.from({ length: count }, (_, number) => writer(number))
  return {
    committed: () => committed,
    stop: async () => {
      stopped = true
      await Promise.all(writers)
    },
  }
}

const inFlight = () => proxy.requests.filter(({ endedAt, params }) => !endedAt && params.has('live')).length

async function underLoad(kills, kill) {
  proxy.reset()
  const writers = startWriters(4)
  for (let n = 0; n < kills; n++) {
    const from = writers.committed()
    await waitFor(() => writers.committed() > from + 50, { timeoutMs: 20_000, what: 'writers get on' })
    await waitFor(() => inFlight() > 0, { what: 'a live request is under way' })
    await kill(n)
  }
  const from = writers.committed()
  await waitFor(() => writers.committed() > from + 50, { timeoutMs: 20_000, what: 'writers get on' })
  await writers.stop()
  await allSame()
  assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 0 }, 'no client read its shape again')
}

test('kill -9 of the sidecar under load costs no refetch and loses nothing', async () => {
  await underLoad(4 * scale, async () => {
    await sidecar.kill9()
    sidecar = await startSidecar({ databaseUrl: database.url, port: sidecar.port })
  })
})

test('immediate stops of Postgres under load cost no refetch and lose nothing', async () => {
  await underLoad(3 * scale, async () => {
    await cluster.restart({ mode: 'immediate' })
  })
})

test('kill -9 of the postmaster costs no refetch and loses nothing', async () => {
  await underLoad(1, async () => {
    cluster.kill9()
    await cluster.disconnect()
    await cluster.start()
  })
})

test('a live request outlives a restart of Postgres that is shorter than its timeout', async () => {
  const quiet = await freshDatabase(cluster)
  await quiet.psql('create table calm (id int primary key); insert into calm values (1);')
  const own = await startSidecar({ databaseUrl: quiet.url, env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '15000' } })
  try {
    const first = await fetch(`${own.url}/v1/shape?table=calm&offset=-1`)
    const handle = first.headers.get('electric-handle')
    await first.text()
    const ready = await fetch(`${own.url}/v1/shape?table=calm&offset=0_0&handle=${handle}`)
    const offset = ready.headers.get('electric-offset')
    await ready.text()
    const held = fetch(`${own.url}/v1/shape?table=calm&offset=${offset}&handle=${handle}&live=true`)
    await sleep(300)
    await cluster.restart({ mode: 'fast' })
    await quiet.psql('insert into calm values (2);')
    const answer = await held
    assert.equal(answer.status, 200)
    const messages = await answer.json()
    assert.equal(messages[0]?.value?.id, '2')
  } finally {
    await own.stop()
  }
})
