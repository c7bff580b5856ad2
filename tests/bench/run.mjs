// `make bench`: every benchmark, or those named; the table, the machine, .local/bench.json. See README.md.
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from '../lib/index.mjs'
import { browser } from './browser.mjs'
import { capture } from './capture.mjs'
import { latency } from './latency.mjs'
import { startBenchCluster } from './lib/cluster.mjs'
import { describeMachine, probeFsync } from './lib/machine.mjs'
import { allFigures, failures, printTable } from './lib/report.mjs'
import { local } from './local.mjs'
import { membership } from './membership.mjs'
import { rls } from './rls.mjs'
import { routing } from './routing.mjs'
import { serving } from './serving.mjs'
import { snapshot } from './snapshot.mjs'
import { sse } from './sse.mjs'
import { transaction } from './transaction.mjs'
import { write } from './write.mjs'

const suites = { latency, snapshot, transaction, serving, sse, routing, membership, rls, write, local, browser, capture }

const names = process.argv.slice(2)
const unknown = names.filter((name) => !suites[name])
if (unknown.length) {
  console.error(`no benchmark ${unknown.join(', ')}; there are ${Object.keys(suites).join(', ')}`)
  process.exit(2)
}

const cluster = await startBenchCluster()
await probeFsync()
for (const [name, measure] of Object.entries(suites)) {
  if (names.length && !names.includes(name)) continue
  console.log(`== ${name}`)
  await measure(cluster, process.env.SHAPEFEED_BENCH_ONLY)
  await probeFsync()
}
await cluster.stop()

printTable()
const machine = describeMachine()
console.log(`\n${machine.processors} processors (${machine.model}), ${machine.memoryMiB} MiB; ` +
  `fdatasync ${machine.fdatasyncMs.toFixed(2)} ms; load average ${machine.loadAverage.join(', ')}`)
mkdirSync(join(root, '.local'), { recursive: true })
writeFileSync(join(root, '.local/bench.json'),
  `${JSON.stringify({ measuredAt: new Date().toISOString(), machine, figures: allFigures() }, null, 1)}\n`)
process.exit(failures().length ? 1 : 0)
