// A flush is over for whoever waits for one when what he wrote is written.
import assert from 'node:assert/strict'
import { openAsBlob } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { openOn } from '../../client/dist/durable.js'
import { MemfsFrontendFS } from '../../client/node_modules/@electric-sql/pglite/dist/fs/memfs-frontend.js'
import { root } from '../lib/index.mjs'

/** A storage that takes its time and keeps all bytes that it was given. */
class SlowStorage {
  bytes = []
  init = async () => {}
  close = async () => {}
  async *load() {}

  async apply({ files: { wal, data, control } }) {
    await sleep(50)
    for (const { chunks } of [...wal, ...data, ...control]) for (const chunk of chunks) this.bytes.push(Buffer.from(chunk.data))
  }

  has = (text) => this.bytes.some((it) => it.includes(text))
}

test('also who asks while one flush is under way and another one waits', async () => {
  const storage = new SlowStorage()
  const db = await openOn(new MemfsFrontendFS(storage), await openAsBlob(join(root, 'client/dist/pgdata.tar.gz')))
  assert.equal((await db.query('select only_row from sync.meta')).rows.length, 1, 'it is made of what it was given')
  await db.exec('create table t (text text)')
  await db.transaction((tx) => tx.query(`insert into t values ('a write that is not flushed')`))
  assert.equal(storage.has('a write that is not flushed'), false, 'COMMIT alone does not write it')
  const flushes = [db.syncToFs(), db.syncToFs()]
  await db.syncToFs()
  assert.ok(storage.has('a write that is not flushed'))
  await Promise.all(flushes)
  await db.close()
})
