// What tests of retention have in common: a log that is small, and writers that fill it.
import { freshDatabase, sleep, waitFor } from '../lib/index.mjs'

/** The smallest log there can be: 8 MB, in bytes; writers leave changes out at twice that. */
export const retentionBytes = 8 << 20
export const small = ['shapefeed.retention_size=8MB']

/** A database with the extension; `client` is a connection, `query(sql)` gives its rows, `value(sql)` one value. */
export async function database(cluster) {
  const made = await freshDatabase(cluster)
  const client = await made.connect()
  const query = async (text, values) => (await client.query(text, values)).rows
  const value = async (text, values) => Object.values((await query(text, values))[0])[0]
  return { ...made, client, query, value, status: async () => (await query('select * from shapefeed.status'))[0] }
}

/**
 * Makes and tracks a table `big` whose changes fill the log: `fill(megabytes)` writes so much in transactions of 1 MB, with
 * `pauseMs` after each: the log is looked at once a second, and must not be turned over in less.
 */
export async function filler({ query }) {
  await query('create table big (id int primary key generated always as identity, v text)')
  await query(`call shapefeed.track('big')`)
  const text = `(select string_agg(md5(g || random()::text || i), '') from generate_series(1, 40) i)` // 1280 bytes, hard to compress
  return async (megabytes, { pauseMs = 0 } = {}) => {
    for (let i = 0; i < megabytes; i++) {
      await query(`insert into big (v) select ${text} from generate_series(1, 750) g`)
      await sleep(pauseMs)
    }
  }
}

/** Waits until the log has been emptied up to a position. */
export async function untilEmptied({ value }, position = 0, timeoutMs = 30_000) {
  await waitFor(async () => Number(await value('select coalesce(max(position), 0) from shapefeed.floor')) > position,
    { timeoutMs, what: `the log is emptied past ${position}` })
}

export const logBytes = ({ value }) => value('select disk_bytes from shapefeed.status').then(Number)
