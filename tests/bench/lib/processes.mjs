// CPU time and memory of processes, from /proc.
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'

/** Clock ticks per second of /proc, on every Linux that Postgres runs on. */
const TICKS = 100

function stat(pid) {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  const seconds = (n) => Number(fields[n]) / TICKS
  const ticks = seconds(11) + seconds(12)
  return { parent: Number(fields[1]), own: onProcessor(pid) ?? ticks, ticks, reaped: seconds(13) + seconds(14) }
}

/** The same as utime + stime in nanoseconds instead of ticks of 10 ms, where the kernel counts it; of single-threaded processes. */
function onProcessor(pid) {
  try {
    return Number(readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[0]) / 1e9
  } catch {
    return undefined
  }
}

/** Seconds of CPU that a process without threads, such as a backend, has used. */
export const cpuSeconds = (pid) => stat(pid).own

/** Milliseconds of CPU that a process with threads has used. */
export const cpuMs = (pid) => stat(pid).ticks * 1000

/**
 * Seconds of CPU that a whole cluster has used: postmaster, all of its children, and those that have ended
 * (these are in the postmaster's account). `sequencer`: the part of the process with that pid.
 */
export function clusterCpu(postmaster, sequencer) {
  const root = stat(postmaster)
  const sum = { total: root.own + root.reaped, sequencer: 0 }
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      const process = stat(name)
      if (process.parent !== postmaster) continue
      sum.total += process.own
      if (Number(name) === sequencer) sum.sequencer = process.own
    } catch {
      // it ended between the listing and the look
    }
  }
  return sum
}

/** Resident memory in KiB: now, and the most that it ever was. */
export function memoryKiB(pid) {
  const text = readFileSync(`/proc/${pid}/status`, 'utf8')
  const field = (name) => Number(text.match(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm'))[1])
  return { now: field('VmRSS'), peak: field('VmHWM') }
}

/** Forgets the most that it ever was: from here on `peak` counts anew. */
export const resetPeak = (pid) => writeFileSync(`/proc/${pid}/clear_refs`, '5')
