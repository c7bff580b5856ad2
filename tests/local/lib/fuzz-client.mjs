// A client in a thread of its own, so that it can be killed like a tab: nothing that it would do at its end is done.
import { parentPort, workerData } from 'node:worker_threads'
import { openClient, newDatabase, oldDatabase } from './client.mjs'
import { tables } from './site.mjs'

const { url, user, token, dataDir, isNew } = workerData
const pglite = await (isNew ? newDatabase : oldDatabase)(dataDir)
const client = await openClient({ sidecar: { url } }, { pglite, userId: user, getToken: () => token })
const handles = tables.map((table) => client.sync.shape({ table }))
if (isNew) for (const handle of handles) await handle.upToDate()

const commands = {
  write: (statements) => client.sync.db.transaction(async (tx) => {
    for (const sql of statements) await tx.exec(sql)
  }),
  cut: () => client.line.cut(),
  join: () => {
    client.line.join()
    client.sync.wake()
  },
  /** Loses replies of writes, with this probability. */
  lose: (share) => client.line.interfere(({ path }) => (path === '/v1/write' && Math.random() < share ? 'lost' : undefined)),
  state: async () => ({
    status: client.sync.status(),
    shapes: handles.map(({ status, error }) => error?.message ?? status),
    errors: client.errors.map(String),
    outbox: await client.one('select count(*)::int from sync.outbox'),
    shadow: await client.one('select count(*)::int from sync.shadow'),
  }),
  lines: ([table, where]) => client.lines(table, where),
  refresh: () => client.sync.wake(),
  close: () => client.close(),
}
parentPort.on('message', async ({ id, command, argument }) => {
  try {
    parentPort.postMessage({ id, value: await commands[command](argument) })
  } catch (error) {
    parentPort.postMessage({ id, error: String(error.message) })
  }
})
parentPort.postMessage({ ready: true })
