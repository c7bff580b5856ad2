// The package as somebody finds it who has just cloned the repository, and as somebody has it who installs it.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { test } from 'node:test'
import { root, scratchDir } from '../lib/index.mjs'

const quiet = { npm_config_audit: 'false', npm_config_fund: 'false', npm_config_update_notifier: 'false', npm_config_prefer_offline: 'true' }

const program = `
import { PGlite } from '@electric-sql/pglite'
import { live } from '@electric-sql/pglite/live'
import { createSync } from 'shapefeed'
const pglite = await PGlite.create({ extensions: { live } })
const sync = await createSync({ url: 'http://127.0.0.1:1', userId: '7', pglite, schema: { version: 1, sql: 'create table notes (id int primary key, text text)' } })
sync.shape({ table: 'notes' })
await sync.db.query("insert into notes values (1, 'offline')")
await new Promise((resolve) => { sync.subscribe(({ pending }) => { if (pending) resolve() }) })
console.log(sync.status().pending, 'local write waits')
await sync.close()
await pglite.close()
`

/** Runs a command that succeeds, and to which nothing about versions seems odd; its output. */
function run(cwd, command, ...args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: 'utf8', env: { ...process.env, NODE_TEST_CONTEXT: undefined, ...quiet } })
  const said = `${command} ${args.join(' ')}: ${error ?? ''}\n${stdout}\n${stderr}`
  assert.equal(status, 0, said)
  assert.doesNotMatch(stderr, /ERESOLVE|peer dep|overrid/i, said)
  return stdout
}

test('the package installs, builds, has its types, passes its tests, and works where it is installed', { timeout: 300_000 }, () => {
  const dir = scratchDir('install')
  const client = join(dir, 'client')
  const left = new Set(['node_modules', 'dist', 'demo', 'lint'])
  cpSync(join(root, 'client'), client, { recursive: true, filter: (path) => !left.has(basename(path)) })
  mkdirSync(join(dir, 'tests/local'), { recursive: true })
  cpSync(join(root, 'tests/local/parts.test.mjs'), join(dir, 'tests/local/parts.test.mjs'))
  for (const args of [['ci'], ['run', 'build'], ['run', 'typecheck']]) run(client, 'npm', ...args)
  assert.match(run(client, 'npm', 'test'), /# pass [1-9]/)

  const { version, exports, devDependencies: used } = JSON.parse(readFileSync(join(client, 'package.json'), 'utf8'))
  run(client, 'npm', 'pack', '--loglevel=warn')
  const app = join(dir, 'app')
  mkdirSync(app)
  writeFileSync(join(app, 'package.json'), '{ "name": "app", "private": true, "type": "module" }')
  run(app, 'npm', 'install', join(client, `shapefeed-${version}.tgz`), `vue@${used.vue}`, `typescript@${used.typescript}`)
  const [, inVue, without] = /## An app that works offline[^]*?```ts\n([^]*?)```[^]*?```ts\n([^]*?)```/.exec(readFileSync(join(root, 'README.md'), 'utf8'))
  writeFileSync(join(app, 'readme.ts'), `import { createApp } from 'vue'\nconst App = {}\n${inVue}${without}`)
  // As templates for new apps have it; declarations of PGlite cannot be checked by themselves.
  const compilerOptions = { skipLibCheck: true, strict: true, noEmit: true, module: 'nodenext', target: 'esnext', types: [] }
  writeFileSync(join(app, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['readme.ts'] }))
  run(app, 'npx', 'tsc')
  writeFileSync(join(app, 'app.js'), program)
  assert.equal(run(app, 'node', 'app.js'), '1 local write waits\n')
  const entries = Object.keys(exports).map((name) => `await import('shapefeed${name.slice(1)}')`)
  assert.equal(run(app, 'node', '--input-type=module', '-e', `console.log([${entries}].every((entry) => Object.keys(entry).length > 0))`), 'true\n')
})
