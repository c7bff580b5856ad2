// Where the tests find what they run, and where they put what they make.
import { chmodSync, existsSync, mkdtempSync, realpathSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..')
// .local may be a link, and its way one that Postgres' user cannot go.
const local = join(root, '.local')
export const pgBin = process.env.SHAPEFEED_PG_BIN ??
  join(existsSync(local) ? realpathSync(local) : local, 'pg/usr/lib/postgresql/15/bin')
export const sidecarBinary = process.env.SHAPEFEED_SIDECAR ??
  join(process.env.CARGO_TARGET_DIR ?? join(root, 'target'), 'release/shapefeed-sidecar')

/** Sizes of the longer tests are multiplied by it. */
export const scale = Number(process.env.SHAPEFEED_TEST_SCALE ?? 1)

/** A new folder that the cluster's user can enter; `scripts/test` removes all of them. */
export function scratchDir(name) {
  const dir = mkdtempSync(join(process.env.SHAPEFEED_TEST_DIR ?? tmpdir(), `${name}-`))
  chmodSync(dir, 0o755)
  return dir
}
