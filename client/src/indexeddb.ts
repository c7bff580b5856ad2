/** Where the database of a browser lies if workers cannot write to OPFS there: in IndexedDB, block by block. */
import type { ChangeSet, FileWrite, StorageBackend, StorageEntry } from '@electric-sql/pglite/memfs-frontend'

/** Bytes of a block: a page of Postgres, which is what it mostly writes. */
const blockBytes = 8192
/** Files that are read at the same time when the database opens. */
const readsAtOnce = 64

/** A directory, or a file with its size. */
interface Entry {
  path: string
  size?: number
}

/** Bytes of a file from `at` on, a multiple of `blockBytes`. Blocks of zeros may be left out. */
interface Block {
  path: string
  at: number
  data: Uint8Array
}

/** Files of PGlite in two stores of an IndexedDB database. A flush is one transaction of it: all of it is there later, or nothing. */
export class IndexedDbBackend implements StorageBackend {
  #db: IDBDatabase | undefined

  constructor(private readonly name: string) {}

  async init(): Promise<void> {
    if (this.#db) return
    const opening = indexedDB.open(this.name, 1)
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore('entry', { keyPath: 'path' })
      opening.result.createObjectStore('block', { keyPath: ['path', 'at'] })
    }
    this.#db = await answer(opening)
  }

  #begin(...options: [IDBTransactionMode?, IDBTransactionOptions?]): { entries: IDBObjectStore; blocks: IDBObjectStore; transaction: IDBTransaction } {
    const transaction = (this.#db as IDBDatabase).transaction(['entry', 'block'], ...options)
    return { entries: transaction.objectStore('entry'), blocks: transaction.objectStore('block'), transaction }
  }

  /** A database is in it, for a flush is there as a whole. */
  async hasDatabase(): Promise<boolean> {
    await this.init()
    return await answer(this.#begin().entries.get('/global/pg_control')) !== undefined
  }

  async *load(): AsyncGenerator<StorageEntry> {
    const entries = await answer(this.#begin().entries.getAll() as IDBRequest<Entry[]>) // ordered by path: parents before what is in them
    for (const { path, size } of entries) if (size === undefined) yield { kind: 'dir', path }
    const files = entries.filter((entry): entry is Required<Entry> => entry.size !== undefined)
    for (let at = 0; at < files.length; at += readsAtOnce) {
      const { blocks } = this.#begin()
      yield* await Promise.all(files.slice(at, at + readsAtOnce).map((file) => read(blocks, file)))
    }
  }

  apply({ ops, files }: ChangeSet, { relaxedDurability }: { relaxedDurability: boolean }): Promise<void> {
    const { entries, blocks, transaction } = this.#begin('readwrite', { durability: relaxedDurability ? 'relaxed' : 'strict' })
    for (const { op, path } of ops) {
      if (op === 'mkdir') entries.put({ path } satisfies Entry)
      else remove(entries, blocks, path)
    }
    for (const file of [...files.wal, ...files.data, ...files.control]) write(entries, blocks, file)
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve()
      transaction.onabort = () => reject(transaction.error ?? new Error('the database could not be written to IndexedDB'))
    })
  }

  async close(): Promise<void> {
    this.#db?.close()
  }
}

function answer<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error as Error)
  })
}

const blocksOf = (path: string, from = 0) => IDBKeyRange.bound([path, from], [path, Infinity])

async function read(blocks: IDBObjectStore, { path, size }: Required<Entry>): Promise<StorageEntry> {
  const data = new Uint8Array(size)
  for (const block of await answer(blocks.getAll(blocksOf(path)) as IDBRequest<Block[]>)) data.set(block.data.subarray(0, size - block.at), block.at)
  return { kind: 'file', path, data }
}

function remove(entries: IDBObjectStore, blocks: IDBObjectStore, path: string): void {
  entries.delete(path)
  blocks.delete(blocksOf(path))
  const [first, end] = [`${path}/`, `${path}0`] // what is below it: 0 follows / among characters
  entries.delete(IDBKeyRange.bound(first, end, false, true))
  blocks.delete(IDBKeyRange.bound([first], [end], false, true))
}

/** Requests of a transaction are carried out in order, so none is waited for. */
function write(entries: IDBObjectStore, blocks: IDBObjectStore, { path, size, full, truncate, chunks }: FileWrite): void {
  entries.put({ path, size } satisfies Entry)
  const pieces = [...chunks]
  if (truncate) {
    const end = Math.ceil(size / blockBytes) * blockBytes
    blocks.delete(blocksOf(path, full ? 0 : end))
    if (!full && end > size) pieces.push({ at: size, data: new Uint8Array(end - size) }) // what was there must not come back with the next bytes
  }
  for (const [at, parts] of byBlock(pieces)) {
    const data = new Uint8Array(blockBytes)
    const put = () => {
      for (const part of parts) data.set(part.data, part.at - at)
      if (!full || !isZero(data)) blocks.put({ path, at, data } satisfies Block)
    }
    if (full || parts.reduce((sum, part) => sum + part.data.length, 0) === blockBytes) {
      put()
      continue
    }
    const before = blocks.get([path, at]) as IDBRequest<Block | undefined>
    before.onsuccess = () => {
      if (before.result) data.set(before.result.data)
      put()
    }
  }
}

/** Pieces of a file, which do not overlap, cut at the bounds of blocks. */
function byBlock(pieces: FileWrite['chunks']): Map<number, FileWrite['chunks']> {
  const blocks = new Map<number, FileWrite['chunks']>()
  for (const { at, data } of pieces) {
    for (let from = at; from < at + data.length;) {
      const block = from - from % blockBytes
      const to = Math.min(block + blockBytes, at + data.length)
      const part = { at: from, data: data.subarray(from - at, to - at) }
      blocks.set(block, [...blocks.get(block) ?? [], part])
      from = to
    }
  }
  return blocks
}

const isZero = (data: Uint8Array) => new Uint32Array(data.buffer).every((word) => word === 0)

/** A database of that name is in IndexedDB: it stays there, also after the browser has learned to write to OPFS. Not all can say. */
export async function isInIndexedDb(name: string): Promise<boolean> {
  const databases = 'databases' in indexedDB ? await indexedDB.databases().catch(() => []) : []
  return databases.some((database) => database.name === name)
}
