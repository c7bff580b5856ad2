// Load generators: a process each, so that they are no part of what is measured and their own CPU time is known.
import { fork, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { atExit } from '../../lib/cleanup.mjs'

/**
 * Starts load/NAME.mjs. `call(method, ...args)` runs one of its methods and resolves to what that returns; `cpuMs()` is the
 * CPU time that the process has used so far; `stop()` ends it.
 */
export function startLoad(name) {
  const child = fork(fileURLToPath(new URL(`../load/${name}.mjs`, import.meta.url)), { serialization: 'advanced' })
  const forget = atExit(() => child.kill('SIGKILL'))
  const calls = new Map()
  let last = 0
  child.on('message', ({ id, value, error }) => {
    const { resolve, reject } = calls.get(id)
    calls.delete(id)
    if (error) reject(new Error(`${name}: ${error}`))
    else resolve(value)
  })
  const exited = new Promise((resolve) => child.once('exit', resolve))
  exited.then((code) => {
    forget()
    for (const { reject } of calls.values()) reject(new Error(`${name} ended (${code})`))
  })
  const call = (method, ...args) => new Promise((resolve, reject) => {
    const id = ++last
    calls.set(id, { resolve, reject })
    child.send({ id, method, args })
  })
  return {
    call,
    pid: child.pid,
    cpuMs: () => call('cpuMs'),
    stop: () => {
      child.kill('SIGTERM')
      return exited
    },
  }
}

/** The other side: answers the calls of the process that started this one. */
export function serveLoad(methods) {
  const all = { cpuMs: () => ownCpuMs(), ...methods }
  process.on('message', async ({ id, method, args }) => {
    try {
      process.send({ id, value: await all[method](...args) })
    } catch (error) {
      process.send({ id, error: error.stack })
    }
  })
}

/** CPU time of this process in milliseconds. */
export function ownCpuMs() {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

/** The same instant has the same number in every process of a machine; in milliseconds. */
export const nowMs = () => Number(process.hrtime.bigint()) / 1e6

/** Runs a program to its end: { stdout, cpuMs }. What it prints to stderr is the error when it fails. */
export async function runTimed(program, args, { env = {}, input = '' } = {}) {
  // The shell is asked for CPU time, since Node does not tell that of a child.
  const script = 'TIMEFORMAT="cpu %3U %3S"; time "$0" "$@"'
  const child = spawn('bash', ['-c', script, program, ...args], { env: { ...process.env, ...env } })
  const forget = atExit(() => child.kill('SIGKILL'))
  const output = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr']) child[name].setEncoding('utf8').on('data', (text) => { output[name] += text })
  child.stdin.end(input)
  const code = await new Promise((resolve, reject) => child.once('error', reject).once('close', resolve))
  forget()
  const times = output.stderr.match(/^cpu ([\d.]+) ([\d.]+)$/m)
  if (code || !times) throw new Error(`${program} ended with ${code}: ${output.stderr}`)
  return { stdout: output.stdout, cpuMs: (Number(times[1]) + Number(times[2])) * 1000 }
}
