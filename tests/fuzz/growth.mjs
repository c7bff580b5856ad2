// What a sidecar and its database keep of many requests, measured around them.
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { waitFor } from '../lib/index.mjs'

const mebibytes = (pid) => Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024
const descriptors = (pid) => readdirSync(`/proc/${pid}/fd`).length

/**
 * Runs `work` twice, the first time to fill what is bounded, and asserts that the second leaves no more memory, descriptors
 * and sessions of the database behind than that. Returns it in words.
 */
export async function growthOf({ sidecar, client }, work) {
  const sessions = async () => (await client.query('select count(*)::int as count from pg_stat_activity where datname = current_database()')).rows[0].count
  const measure = async () => ({ memory: mebibytes(sidecar.pid), open: descriptors(sidecar.pid), sessions: await sessions() })
  await work()
  const before = await measure()
  await work()
  await waitFor(() => descriptors(sidecar.pid) <= before.open + 4, { what: `the sidecar closes what it opened: ${before.open} descriptors before` })
  const after = await measure()
  const text = `from ${before.memory.toFixed(1)} to ${after.memory.toFixed(1)} MiB, ${before.open} to ${after.open} descriptors, ${before.sessions} to ${after.sessions} sessions`
  assert.ok(after.memory < before.memory * 1.25 + 16, `memory: ${text}`)
  assert.ok(after.sessions <= before.sessions + 2, `sessions: ${text}`)
  return text
}
