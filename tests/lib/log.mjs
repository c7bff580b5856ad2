// The log as its bytes are, read without any function of the extension: an oracle of its own. See extension/src/record.rs.

const skippedHeaderBytes = 18 // t_choice and t_ctid, which an image leaves out

/** The records of one chunk: { kind, relid, layout, old, new }; an image is { tid, bytes, copied }. */
export function decodeChunk(chunk) {
  if (chunk[0] !== 1) throw new Error(`log format ${chunk[0]}`)
  let at = 1
  const take = (n) => {
    if (at + n > chunk.length) throw new Error('the chunk ends inside a record')
    return chunk.subarray(at, (at += n))
  }
  const image = () => {
    const head = take(10)
    return { tid: `${head.readUInt32LE(0)},${head.readUInt16LE(4)}`, bytes: take(head.readUInt32LE(6)), copied: [] }
  }
  const records = []
  while (at < chunk.length) {
    const head = take(13)
    const kind = String.fromCharCode(head[0])
    if (!'IUDT'.includes(kind)) throw new Error(`record kind ${kind}`)
    const record = { kind, relid: head.readUInt32LE(1), layout: head.readBigInt64LE(5).toString(), old: null, new: null }
    if ('UD'.includes(kind)) {
      record.old = image()
      const pairs = take(take(2).readUInt16LE(0) * 6)
      for (let i = 0; i < pairs.length; i += 6) {
        record.old.copied.push({ attribute: pairs.readUInt16LE(i), valueId: pairs.readUInt32LE(i + 2) })
      }
    }
    if ('IU'.includes(kind)) record.new = image()
    records.push(record)
  }
  return records
}

const alignments = { c: 1, s: 2, i: 4, d: 8 }
const types = {
  16: (bytes) => bytes[0] !== 0,
  20: (bytes) => bytes.readBigInt64LE(0),
  21: (bytes) => bytes.readInt16LE(0),
  23: (bytes) => bytes.readInt32LE(0),
  25: (bytes) => bytes.toString(),
  701: (bytes) => bytes.readDoubleLE(0),
  1043: (bytes) => bytes.toString(),
}

/**
 * An image as an object of column values, decoded with the layout (as table shapefeed.layout has it) of its record.
 * Types that are not above stay bytes. { external: value id } is a value out of line, { compressed: bytes } one that is.
 */
export function decodeImage({ bytes }, layout) {
  const stored = bytes.readUInt16LE(0) & 0x07ff // t_infomask2: number of attributes
  const hasNulls = (bytes[2] & 1) !== 0 // t_infomask
  const start = bytes[4] - skippedHeaderBytes // t_hoff; attributes are aligned to it
  let at = 0
  const row = {}
  for (const [i, { name, type, len, align, dropped }] of layout.attributes.entries()) {
    if (i >= stored || (hasNulls && !(bytes[5 + (i >> 3)] & (1 << (i & 7))))) {
      if (!dropped) row[name] = null
      continue
    }
    // A short varlena, whose first byte is never zero, is not aligned.
    if (!(len === -1 && bytes[start + at] !== 0)) at += -at & (alignments[align] - 1)
    const [size, value] = len === -1 ? varlena(bytes.subarray(start + at)) : [len, bytes.subarray(start + at, start + at + len)]
    at += size
    if (!dropped) row[name] = Buffer.isBuffer(value) && types[type] ? types[type](value) : value
  }
  return row
}

/** [bytes that it takes, value] of the varlena at the start of `bytes`. */
function varlena(bytes) {
  if (bytes[0] === 1) return [18, { external: bytes.readUInt32LE(10) }] // tag; rawsize, extsize, value id, toast table
  if (bytes[0] & 1) return [bytes[0] >> 1, bytes.subarray(1, bytes[0] >> 1)]
  const word = bytes.readUInt32LE(0)
  const size = word >>> 2
  return [size, word & 2 ? { compressed: size } : bytes.subarray(4, size)]
}

/**
 * Transactions of the log that `query` (rows of xid, position, seq, notes, data; chunks in order) gives, in its order:
 * { xid, position, seq, notes, records }.
 */
export function transactionsOf(rows) {
  const found = new Map()
  for (const { xid, position, seq, notes, data } of rows) {
    let transaction = found.get(xid)
    if (!transaction) found.set(xid, transaction = { xid, position, seq: 0n, notes: [], records: [] })
    if (BigInt(seq) > transaction.seq) transaction.seq = BigInt(seq)
    if (notes) transaction.notes.push(notes)
    transaction.records.push(...decodeChunk(data))
  }
  return [...found.values()]
}

/** Reads log and layouts over a client of `pg`. */
export class LogReader {
  constructor(client) {
    this.client = client
    this.layouts = new Map()
  }

  /** Transactions with a position in (after, upTo], in order of their positions. */
  async sequenced(after, upTo) {
    return this.decoded(`
      select c.xid::text, o.position, c.seq, c.notes, c.data
      from shapefeed.commit o join shapefeed.change c on c.xid = o.xid
      where o.position > $1 and o.position <= $2 order by o.position, c.chunk`, [after, upTo])
  }

  /** Transactions that this session sees and that have no position at `head`, in order of their seq. */
  async pending(head) {
    const found = await this.decoded(`
      select c.xid::text, null position, c.seq, c.notes, c.data
      from (select snapshot from shapefeed.batch where position = $1) b
      join shapefeed.change c on c.xid >= pg_snapshot_xmin(b.snapshot) and not pg_visible_in_snapshot(c.xid, b.snapshot)
      order by c.xid, c.chunk`, [head])
    return found.sort((a, b) => (a.seq < b.seq ? -1 : 1))
  }

  /** Everything, in order of position; what has none comes last. */
  async all() {
    return this.decoded(`
      select c.xid::text, o.position, c.seq, c.notes, c.data
      from shapefeed.change c left join shapefeed.commit o on o.xid = c.xid order by o.position, c.xid, c.chunk`, [])
  }

  async decoded(query, values) {
    const transactions = transactionsOf((await this.client.query(query, values)).rows)
    for (const { notes } of transactions) this.learn(notes.flatMap((note) => note.layouts ?? []))
    if (transactions.some(({ records }) => records.some(({ layout, kind }) => kind !== 'T' && !this.layouts.has(layout)))) {
      const known = await this.client.query('select hash::text, definition from shapefeed.layout')
      this.learn(known.rows)
    }
    for (const { records } of transactions) {
      for (const record of records) {
        const layout = this.layouts.get(record.layout)
        record.table = layout?.table
        for (const image of [record.old, record.new]) if (image) image.row = decodeImage(image, layout)
      }
    }
    return transactions
  }

  learn(layouts) {
    for (const { hash, definition } of layouts) this.layouts.set(hash, definition)
  }
}

/**
 * What a transaction did as a whole, by the places of row versions and never by the order of its records:
 * `before` = old images of versions that it did not make, `after` = new images of versions that it did not supersede.
 */
export function netEffect({ records }) {
  const made = new Set()
  const ended = new Set()
  for (const { relid, old, new: made_ } of records) {
    if (old) ended.add(`${relid}:${old.tid}`)
    if (made_) made.add(`${relid}:${made_.tid}`)
  }
  const pick = (side, others) => records.flatMap((record) => {
    const image = record[side]
    return image && !others.has(`${record.relid}:${image.tid}`) ? [{ table: record.table, row: image.row }] : []
  })
  return { before: pick('old', made), after: pick('new', ended) }
}
