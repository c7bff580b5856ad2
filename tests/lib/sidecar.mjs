// Sidecars as processes.
import { spawn } from 'node:child_process'
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { atExit } from './cleanup.mjs'
import { scratchDir, sidecarBinary } from './paths.mjs'
import { startProxy } from './proxy.mjs'
import { freePort, waitFor } from './wait.mjs'

const several = Number(process.env.SHAPEFEED_TEST_SIDECARS ?? 1)

/**
 * Starts a sidecar, or as many as SHAPEFEED_TEST_SIDECARS says, which take turns behind one URL, and waits until it serves:
 * { url, stop(), kill9(), log(), exited, metric(series), each }; one alone also has { port, pid }.
 * Its settings are the development ones (insecure, auto-track, deletion allowed); `env` sets others (undefined takes one
 * away), `flags` are command-line arguments. `port`: take the place of an earlier one. `ready: false`: do not wait.
 */
export async function startSidecar(options = {}) {
  const alone = several === 1 || options.port || options.ready === false
  return alone ? startOne(options) : together(await Promise.all(Array.from({ length: several }, () => startOne(options))))
}

/** Sidecars as one, by a proxy that gives each request to the next of them. */
async function together(each) {
  const front = await startProxy(...each.map(({ url }) => url))
  const onAll = async (what) => {
    const [first] = await Promise.all(each.map((sidecar) => sidecar[what]()))
    await front.stop()
    return first
  }
  return {
    url: front.url,
    each,
    exited: Promise.race(each.map(({ exited }) => exited)),
    log: () => each.map((sidecar) => sidecar.log()).join(''),
    stop: () => onAll('stop'),
    kill9: () => onAll('kill9'),
    metric: async (series) => (await Promise.all(each.map((sidecar) => sidecar.metric(series)))).reduce((sum, value) => sum + value, 0),
  }
}

async function startOne({ databaseUrl, flags = [], env = {}, port, ready = true } = {}) {
  const listenPort = port ?? await freePort()
  const dir = scratchDir('sidecar')
  const logFile = join(dir, 'sidecar.log')
  const log = openSync(logFile, 'a')
  const child = spawn(sidecarBinary, flags, {
    stdio: ['ignore', log, log],
    env: {
      ...process.env,
      RUST_BACKTRACE: undefined,
      SHAPEFEED_PORT: undefined,
      SHAPEFEED_SECRET: undefined,
      SHAPEFEED_DATABASE_URL: databaseUrl,
      SHAPEFEED_LISTEN: `127.0.0.1:${listenPort}`,
      SHAPEFEED_INSECURE: 'true',
      SHAPEFEED_AUTO_TRACK: 'true',
      SHAPEFEED_ALLOW_DELETE: 'true',
      ...env,
    },
  })
  closeSync(log)
  const exited = new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code, signal) => resolve({ code, signal }))
  })
  exited.catch(() => {})
  const forget = atExit(() => child.kill('SIGKILL'))
  exited.then(forget, forget)
  if (child.pid) writeFileSync(join(dir, 'sidecar.pid'), `${child.pid}\n`)

  const sidecar = {
    url: `http://127.0.0.1:${listenPort}`,
    port: listenPort,
    pid: child.pid,
    exited,
    log: () => readFileSync(logFile, 'utf8'),
    /** The value of a series of /metrics, 0 where there is none. */
    metric: async (series) => {
      const lines = (await (await fetch(`${sidecar.url}/metrics`)).text()).split('\n')
      return Number(lines.find((line) => line.startsWith(`${series} `))?.slice(series.length) ?? 0)
    },
    /** SIGTERM; resolves to { code, signal } once it has ended. */
    stop: () => {
      child.kill('SIGTERM')
      return exited
    },
    kill9: () => {
      child.kill('SIGKILL')
      return exited
    },
  }
  sidecar.each = [sidecar]
  if (ready) await untilServing(sidecar)
  return sidecar
}

async function untilServing(sidecar) {
  let gone
  sidecar.exited.then((how) => { gone = how }, (error) => { gone = error })
  const serving = async () => gone || (await fetch(`${sidecar.url}/v1/health`)).status === 200
  try {
    await waitFor(serving, { timeoutMs: 30_000, what: `${sidecar.url}/v1/health answers 200` })
  } catch (error) {
    await sidecar.kill9()
    throw new Error(`${error.message}; its log:\n${sidecar.log()}`)
  }
  if (gone) throw new Error(`the sidecar ended (${JSON.stringify(gone)} ${gone.message ?? ''}); its log:\n${sidecar.log()}`)
}
