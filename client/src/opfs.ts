/** Where the database of a browser lies: in the origin private file system, which only dedicated workers can write. */
import { MemfsFrontendFS, type StorageEntry } from '@electric-sql/pglite/memfs-frontend'
import { OpfsBackend } from '@electric-sql/pglite/memfs2opfs'

/** Files that are read at the same time when the database opens. One after the other takes three times as long. */
const readsAtOnce = 64

/** OPFS's directories can be listed, which the DOM's types do not say yet. */
type Directory = FileSystemDirectoryHandle & { entries(): AsyncIterable<[string, FileSystemHandle]> }

/** A folder of OPFS as PGlite's storage, read with many reads at once. */
class Folder extends OpfsBackend {
  override async *load(): AsyncGenerator<StorageEntry> {
    const directories: StorageEntry[] = []
    const files: { path: string; handle: FileSystemFileHandle }[] = []
    const list = async (directory: Directory, path: string): Promise<void> => {
      const below: Promise<void>[] = []
      for await (const [name, handle] of directory.entries()) {
        const at = `${path}/${name}`
        if (handle.kind === 'file') files.push({ path: at, handle: handle as FileSystemFileHandle })
        else {
          directories.push({ kind: 'dir', path: at })
          below.push(list(handle as Directory, at))
        }
      }
      await Promise.all(below)
    }
    await list(await openFolder(this.dataDir), '')
    yield* directories.sort((a, b) => (a.path < b.path ? -1 : 1)) // parents before what is in them
    for (let at = 0; at < files.length; at += readsAtOnce) {
      yield* await Promise.all(files.slice(at, at + readsAtOnce).map(read))
    }
  }
}

async function read({ path, handle }: { path: string; handle: FileSystemFileHandle }): Promise<StorageEntry> {
  const file = await handle.getFile()
  return { kind: 'file', path, data: new Uint8Array(await file.arrayBuffer()), mtime: file.lastModified }
}

async function openFolder(name: string): Promise<Directory> {
  const top = await navigator.storage.getDirectory()
  return await top.getDirectoryHandle(name.replace(/^\//, ''), { create: true }) as Directory
}

/** This worker can keep a database in OPFS. Some browsers have it, but not in private windows. */
export async function hasOpfs(): Promise<boolean> {
  if (typeof FileSystemFileHandle !== 'function' || !('createSyncAccessHandle' in FileSystemFileHandle.prototype)) return false
  return navigator.storage.getDirectory().then(() => true, () => false)
}

/**
 * The folder of that name as a file system for PGlite, and whether a database is in it. What is left of a first start that
 * was broken off is removed: `pg_control` is the last file that is written.
 */
export async function opfsFolder(name: string): Promise<{ fs: MemfsFrontendFS; isNew: boolean }> {
  const isNew = !(await hasDatabase(name))
  if (isNew) await (await navigator.storage.getDirectory()).removeEntry(name, { recursive: true }).catch(() => {})
  return { fs: new MemfsFrontendFS(new Folder(`/${name}`)), isNew }
}

async function hasDatabase(name: string): Promise<boolean> {
  try {
    const global = await (await openFolder(name)).getDirectoryHandle('global')
    return (await (await global.getFileHandle('pg_control')).getFile()).size > 0
  } catch {
    return false
  }
}
