// What the log has, read without the extension's help: the bytes of extension/src/record.rs.
import { waitFor } from '../../lib/index.mjs'

const FORMAT_VERSION = 1
const FIRST_FETCH = 500

/** Waits until every transaction in the log has its position. Changes of open transactions are not in the log. */
export async function untilSequenced(client) {
  const open = `select count(*) from shapefeed.change c
                where c.chunk = 0 and not exists (select from shapefeed.commit s where s.xid = c.xid)`
  await waitFor(async () => (await client.query(open)).rows[0].count === '0',
    { timeoutMs: 60_000, what: 'the log is sequenced' })
}

/** Numbers of records by kind, { I, U, D, T }, that the log has for a table; and of their sequenced transactions. */
export async function countLogged(client, table) {
  const { rows: [{ relid }] } = await client.query('select $1::regclass::oid::int8 as relid', [table])
  const counts = { I: 0, U: 0, D: 0, T: 0 }
  await client.query('begin')
  await client.query(`declare chunks no scroll cursor for select data from shapefeed.change order by xid, chunk`)
  for (;;) {
    const { rows } = await client.query(`fetch ${FIRST_FETCH} from chunks`)
    if (!rows.length) break
    for (const { data } of rows) {
      for (const record of records(data)) if (record.relid === Number(relid)) counts[record.kind]++
    }
  }
  await client.query('commit')
  const { rows: [{ count }] } = await client.query(
    'select count(*) from shapefeed.commit where $1::oid = any (relids)', [relid])
  return { ...counts, transactions: Number(count) }
}

function* records(chunk) {
  if (chunk[0] !== FORMAT_VERSION) throw new Error(`log format ${chunk[0]}`)
  let at = 1
  const image = () => { at += 10 + chunk.readUInt32LE(at + 6) }
  while (at < chunk.length) {
    const kind = String.fromCharCode(chunk[at])
    const relid = chunk.readUInt32LE(at + 1)
    at += 13
    if (kind === 'U' || kind === 'D') {
      image()
      at += 2 + 6 * chunk.readUInt16LE(at)
    }
    if (kind === 'I' || kind === 'U') image()
    yield { kind, relid }
  }
  if (at !== chunk.length) throw new Error('a log chunk ends inside a record')
}
