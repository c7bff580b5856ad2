// What the figures were measured on: processors, load, and how long the disk takes to keep something.
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus, loadavg, totalmem } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { pgBin, scratchDir } from '../../lib/index.mjs'
import { median } from './statistics.mjs'

const fsyncMs = []

/** One look at fdatasync by pg_test_fsync, of one second. Taken several times over a run: disks have moods. */
export async function probeFsync() {
  const child = spawn(join(pgBin, 'pg_test_fsync'), ['-s', '1', '-f', join(scratchDir('fsync'), 'probe')],
    { stdio: ['ignore', 'pipe', 'inherit'] })
  const closed = new Promise((resolve) => child.once('close', resolve))
  for await (const line of createInterface({ input: child.stdout })) {
    const found = line.match(/^\s*fdatasync\s.*\s(\d+) usecs\/op/)
    if (found) {
      fsyncMs.push(Number(found[1]) / 1000)
      break
    }
  }
  child.kill('SIGKILL')
  await closed
  return fsyncMs.at(-1)
}

/** Median of the looks so far, in milliseconds. */
export const fsyncMedianMs = () => (fsyncMs.length ? median(fsyncMs) : NaN)

export function describeMachine() {
  return {
    processors: cpus().length,
    model: cpus()[0]?.model,
    memoryMiB: Math.round(totalmem() / 2 ** 20),
    kernel: readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim(),
    node: process.version,
    fdatasyncMs: fsyncMedianMs(),
    fdatasyncProbesMs: fsyncMs,
    loadAverage: loadavg().map((load) => Number(load.toFixed(2))),
  }
}
