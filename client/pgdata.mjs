// pgdata.mjs FILE: a Postgres that is ready, for the first start in a browser, where making one takes ten seconds. Without
// the template databases, which nobody needs here: 600 files less to write and to read at each start. And without the WAL of
// its making, which would be more than all the rest to download: a new segment is begun, and the old one not kept for later.
// Tables grow by writing to their end: a file system in memory takes posix_fallocate as an order to copy the file.
import { writeFileSync } from 'node:fs'
import { PGlite } from '@electric-sql/pglite'
import { live } from '@electric-sql/pglite/live'
import { prepareDatabase } from './dist/index.js'

const db = await PGlite.create({ extensions: { live } })
await prepareDatabase(db)
await db.exec("update pg_database set datistemplate = false, datallowconn = true where datname in ('template0', 'template1')")
// Each for itself: none of them may be in a transaction.
for (const sql of ['drop database template0', 'drop database template1', "alter system set file_extend_method = 'write_zeros'", 'set wal_recycle = off', 'select pg_switch_wal()', 'checkpoint']) await db.exec(sql)
const dump = await db.dumpDataDir('gzip')
writeFileSync(process.argv[2], Buffer.from(await dump.arrayBuffer()))
await db.close()
