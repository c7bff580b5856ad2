import { PGlite } from '@electric-sql/pglite'
import { live } from '@electric-sql/pglite/live'
import type { MemfsFrontendFS } from '@electric-sql/pglite/memfs-frontend'

/**
 * Opens a database, or makes one of `newDatabase`, where whoever waits for a flush waits until what was there when he asked is
 * written. PGlite's own `syncToFs` returns at once when another flush is about to begin.
 */
export async function openOn(fs: MemfsFrontendFS, newDatabase?: Blob) {
  const pglite = await PGlite.create({ fs, extensions: { live }, ...(newDatabase && { loadDataDir: newDatabase }) })
  pglite.syncToFs = () => fs.syncToFs()
  return pglite
}
