// The demo app in Chromium: what tests of tests/browser measure while they check it, in full size, each with its target.
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { join } from 'node:path'
import { root } from '../lib/index.mjs'
import { check, figure, remark } from './lib/report.mjs'

const suite = 'browser'

/** By file, what is made of what it prints, in order: each an object of numbers. */
const parts = {
  boot([{ cold, warm, offline, downloaded }]) {
    seconds('database open, the first time', cold.open, 6)
    seconds('database open, again', warm.open, 3)
    seconds('database open, again, without a network', offline.open, 3)
    seconds('first folder on the page, the first time', cold.folders)
    absolute('download before data', downloaded / 1e6, ' MB', 6)
  },
  sync([came, again]) {
    seconds(`${came.rows} rows in the worker, the last`, came.ms, 10)
    seconds(`${came.rows} rows in the worker, the first`, came.firstRowMs, 2)
    figure({ suite, name: `longest task of the page while ${came.rows} rows come`, value: came.worst, unit: ' ms', at: '<=', target: 100, absolute: true })
    absolute(`transferred for a restart with ${came.rows} rows`, again.bytes / 1000, ' kB', 50)
  },
  latency([three, local, commit, localToo, large]) {
    times('commit to a live query, 3 shapes, 10,000 rows', three, 60, 150)
    times('commit to a live query, 3 shapes, 100,000 rows', large, 100)
    times('local write to a live query', local, 50, 150)
    times('commit to a live query, all shapes, others write', commit, 100)
    times('local write to a live query, all shapes, others write', localToo, 50, 150)
  },
  offline([{ sentMs, equalMs }]) {
    seconds('20 edits made offline, sent after the network is back', sentMs, 1)
    seconds('both windows equal after that', equalMs, 3)
  },
  revoke([{ goneMs }]) {
    seconds('a membership that ends: its rows are gone', goneMs, 1)
  },
  tabs([{ failoverMs }]) {
    seconds("the leader's tab is closed: live queries go on", failoverMs, 5)
  },
  http([spread, h2]) {
    times('a write until it is confirmed, HTTP/1.1 over several names', spread, undefined, 200)
    times('a write until it is confirmed, HTTP/2', h2, undefined, 200)
  },
}

const absolute = (name, value, unit, target) => (target === undefined
  ? remark({ suite, name, value, unit })
  : figure({ suite, name, value, unit, at: '<=', target, absolute: true }))

const seconds = (name, ms, target) => absolute(name, ms / 1000, ' s', target)

function times(name, { p50, p95 }, ...targets) {
  absolute(`${name}, p50`, p50, ' ms', targets[0])
  absolute(`${name}, p95`, p95, ' ms', targets[1])
}

/** Those whose name has a match of `only`, a regular expression. Each starts a cluster of its own. */
export async function browser(_cluster, only = '') {
  for (const [name, report] of Object.entries(parts)) {
    if (!new RegExp(only).test(name)) continue
    const { code, printed } = await runTest(join(root, `tests/browser/${name}.test.mjs`))
    check(suite, `tests/browser/${name}`, code === 0 ? 'passed' : 'failed', 'passed')
    if (code === 0) report(printed)
  }
}

/** Exit code, and the objects among its diagnostics. */
async function runTest(file) {
  const child = spawn(process.execPath, ['--test', '--test-force-exit', '--test-reporter=tap', file], {
    env: { ...process.env, SHAPEFEED_TEST_SCALE: process.env.SHAPEFEED_TEST_SCALE ?? '5' },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = new Promise((resolve) => child.on('close', resolve))
  const printed = []
  for await (const line of createInterface({ input: child.stdout })) {
    const [, text] = /^\s*# (?:.*: )?(\{.*\})$/.exec(line) ?? []
    if (text) printed.push(JSON.parse(text))
    else if (/^\s*not ok|^\s*error:/.test(line)) console.log(line)
  }
  return { code: await ended, printed }
}
