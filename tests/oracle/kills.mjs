// What dies while everybody works. Each leaves the system as it found it, but for what was lost with the process.
import { startSidecar, waitFor } from '../lib/index.mjs'

/** [name, function of a Site], in the order in which rounds take them. */
export const kills = [
  ['a sidecar, kill -9', (site) => replaceSidecar(site, 0)],
  ['Postgres, immediate shutdown', async (site) => {
    await site.cluster.restart({ mode: 'immediate' })
    await site.connect()
  }],
  ['the feed sessions, terminated', (site) => site.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'shapefeed-sidecar'")],
  ['the worker, terminated', async (site) => {
    const before = await workerPid(site)
    await site.query(`select pg_terminate_backend(${before})`)
    await anotherWorker(site, before)
  }],
  ['the other sidecar, kill -9', (site) => replaceSidecar(site, 1)],
  ['the postmaster, kill -9', async (site) => {
    site.cluster.kill9()
    await site.cluster.disconnect()
    await site.cluster.start()
    await site.connect()
  }],
  ['a feed session, kill -9', async (site) => {
    const { rows } = await site.query("select pid from pg_stat_activity where application_name = 'shapefeed-sidecar' limit 1")
    await crash(site, rows[0].pid)
  }],
  ['the worker, kill -9', async (site) => {
    const before = await workerPid(site)
    await crash(site, before)
    await anotherWorker(site, before)
  }],
]

async function replaceSidecar(site, n) {
  const { port } = site.sidecars[n]
  await site.sidecars[n].kill9()
  Object.assign(site.sidecars[n], await startSidecar({ databaseUrl: site.database.url, env: site.env, port }))
}

// A backend that is killed takes all others along: Postgres restarts by itself.
async function crash(site, pid) {
  process.kill(pid, 'SIGKILL')
  await waitFor(async () => {
    await site.connect()
    return (await site.query("select count(*) = 0 gone from pg_stat_activity where pid = $1", [pid])).rows[0].gone
  }, { timeoutMs: 30_000, what: 'Postgres is back' })
}

const workerPid = async (site) => (await site.query('select worker_pid from shapefeed.status')).rows[0].worker_pid

async function anotherWorker(site, before) {
  await waitFor(async () => ![null, before].includes(await workerPid(site)), { timeoutMs: 30_000, what: 'there is another worker' })
}
