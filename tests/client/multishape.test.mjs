// @electric-sql/experimental from npm, unmodified: several shapes in step, and transactions over several tables whole.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { isChangeMessage } from '@electric-sql/client'
import { matchBy, matchStream, MultiShapeStream, TransactionalMultiShapeStream } from '@electric-sql/experimental'
import { scale, served, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `create table authors (id int primary key, name text); create table books (id int primary key, author int, title text);
    create table accounts (id int primary key, balance int not null); create table entries (id serial primary key, account int, amount int not null);
    insert into accounts select i, 0 from generate_series(1, 8) i;`,
})

const aborts = []
after(() => aborts.forEach((abort) => abort.abort()))

/** A stream of the class over one shape per table: { stream, batches, errors, changes() }. */
function streaming(Class, tables, options = {}) {
  const abort = new AbortController()
  aborts.push(abort)
  const shape = (table) => ({ url: `${site.sidecar.url}/v1/shape`, params: { table }, signal: abort.signal, ...options })
  const stream = new Class({ shapes: Object.fromEntries(tables.map((table) => [table, shape(table)])) })
  const batches = [], errors = []
  stream.subscribe((messages) => { batches.push(messages) }, (error) => errors.push(error))
  return { stream, batches, errors, abort, changes: () => batches.flat().filter(isChangeMessage) }
}

const lsnOf = ({ headers }) => BigInt(headers.lsn ?? headers.global_last_seen_lsn ?? 0)

for (const liveSse of [false, true]) {
  const how = liveSse ? 'by events' : 'by long-polling'

  test(`a change of one shape brings the others as far, ${how}`, async () => {
    const { stream, batches, errors, abort } = streaming(MultiShapeStream, ['authors', 'books'], { liveSse })
    await waitFor(() => stream.isUpToDate)
    await site.sql(`insert into authors select coalesce(max(id), 0) + 1, 'alone ${how}' from authors`)
    const change = await waitFor(() => batches.flat().find((message) => message.shape === 'authors' && message.value?.name === `alone ${how}`))
    const reached = () => batches.flat().some((message) => message.shape === 'books' && message.headers.control === 'up-to-date' && lsnOf(message) >= lsnOf(change))
    await waitFor(reached, { timeoutMs: 5000, what: 'the other shape is as far, long before its hold ends' })
    assert.deepEqual(errors, [])
    abort.abort()
  })

  test(`a transaction over several tables is one batch, in its order, ${how}`, async () => {
    // Tables of its own: a new stream is also sent what has happened since the snapshot of its shape.
    await site.sql(`drop table authors, books; create table authors (id int primary key, name text); create table books (id int primary key, author int, title text);
      insert into authors values (1, 'first'); insert into books values (1, 1, 'one'), (2, 1, 'two')`)
    const { stream, batches, errors, abort, changes } = streaming(TransactionalMultiShapeStream, ['authors', 'books'], { liveSse })
    await waitFor(() => changes().length === 3)
    await waitFor(() => stream.isUpToDate)
    for (let i = 2; i <= 9; i++) {
      await site.sql(`begin; insert into books values (${i * 10}, ${i}, 'a'); insert into authors values (${i}, 'author ${i}');
        insert into books values (${i * 10 + 1}, ${i}, 'b'); update authors set name = name || '!' where id = 1; delete from books where id = ${(i - 1) * 10}; commit`)
    }
    await waitFor(() => changes().filter(({ value }) => value.id === 91 && value.title).length === 1)
    const transactions = byTransaction(changes().slice(3))
    assert.equal(transactions.size, 8)
    const expected = (i) => ['books insert', 'authors insert', 'books insert', 'authors update', ...(i > 2 ? ['books delete'] : [])]
    let i = 2
    for (const [lsn, messages] of transactions) {
      assert.deepEqual(messages.map(({ shape, headers }) => `${shape} ${headers.operation}`), expected(i++))
      const within = batches.filter((batch) => batch.some((message) => isChangeMessage(message) && lsnOf(message) === lsn))
      assert.equal(within.length, 1, `transaction ${lsn} in one batch`)
    }
    const order = [...transactions.keys()]
    assert.deepEqual(order, [...order].sort((a, b) => (a < b ? -1 : 1)))
    assert.deepEqual(errors, [])
    abort.abort()
  })

  test(`at the end of each batch the books balance, with concurrent writers, ${how}`, async () => {
    const { stream, errors, abort, batches } = streaming(TransactionalMultiShapeStream, ['accounts', 'entries'], { liveSse })
    const held = { accounts: new Map(), entries: new Map() }
    let seen = 0
    stream.subscribe((messages) => {
      for (const { shape, key, value, headers } of messages.filter(isChangeMessage)) {
        if (headers.operation === 'delete') held[shape].delete(key)
        else held[shape].set(key, { ...held[shape].get(key), ...value })
      }
      const sum = (rows, name) => [...rows.values()].reduce((total, row) => total + row[name], 0)
      assert.equal(sum(held.accounts, 'balance'), sum(held.entries, 'amount'))
      seen++
    }, (error) => errors.push(error))
    await waitFor(() => stream.isUpToDate)
    const rounds = 60 * scale
    await Promise.all([1, 2, 3].map(async () => {
      const writer = await site.database.connect()
      for (let i = 0; i < rounds; i++) {
        const [account, amount] = [1 + Math.floor(Math.random() * 8), Math.floor(Math.random() * 100)]
        await writer.query(`begin; insert into entries (account, amount) values (${account}, ${amount});
          update accounts set balance = balance + ${amount} where id = ${account}; commit`)
      }
      await writer.end()
    }))
    const { rows: [{ count }] } = await site.client.query('select count(*)::int as count from entries')
    await waitFor(() => held.entries.size === count, { timeoutMs: 20_000 })
    assert.ok(seen > 3, `${seen} batches of ${batches.length}`)
    assert.deepEqual(errors, [])
    abort.abort()
  })
}

test('matchStream finds a change', async () => {
  const { stream } = streaming(MultiShapeStream, ['authors'])
  await waitFor(() => stream.isUpToDate)
  const found = matchStream(stream.shapes.authors, ['insert'], matchBy('id', 77), 10_000)
  await site.sql("insert into authors values (76, 'other'), (77, 'wanted')")
  assert.equal((await found).value.name, 'wanted')
})

function byTransaction(changes) {
  const groups = new Map()
  for (const change of changes) groups.set(lsnOf(change), [...(groups.get(lsnOf(change)) ?? []), change])
  return groups
}
