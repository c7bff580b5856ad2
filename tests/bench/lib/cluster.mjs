// The cluster that is measured: as a server would be set up, fsync included.
import { freshDatabase, startCluster } from '../../lib/index.mjs'
import { untilSequenced } from './log.mjs'

const settings = [
  'fsync=on', // the tests' clusters do without
  'shared_buffers=512MB',
  'max_wal_size=16GB', // no checkpoint while something is measured:
  'checkpoint_timeout=1h', // its full-page images are luck, and the same for both sides
  'autovacuum=off', // the bench vacuums between rounds
]

export const startBenchCluster = () => startCluster({ conf: settings })

/** A database with the extension and its sequencer at work: what freshDatabase() gives, with `client` and `sequencer`. */
export async function benchDatabase(cluster) {
  const database = await freshDatabase(cluster)
  const client = await database.connect()
  return { ...database, client }
}

/** Runs the parts whose name has a match of `only`, a regular expression, one after the other in one database with this schema. */
export async function runParts(cluster, schema, parts, only) {
  const database = await benchDatabase(cluster)
  await database.psql(schema)
  await untilSequenced(database.client)
  for (const [name, part] of Object.entries(parts)) if (new RegExp(only).test(name)) await part(database)
  await database.client.end()
  await database.drop()
}

/** Process id of the sequencer of a database, or undefined. */
export async function sequencerOf(database) {
  const { rows } = await database.client.query(
    `select pid from pg_stat_activity where datname = current_database() and backend_type like 'shapefeed%'`)
  return rows[0]?.pid
}
