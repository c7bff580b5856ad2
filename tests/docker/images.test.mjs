// What docker/ says fits what is in the repository. Images are built where a registry can be reached, not here.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { parse } from 'yaml'
import { root, sidecarBinary } from '../lib/index.mjs'

const compose = parse(readFileSync(join(root, 'docker/compose.yaml'), 'utf8'))
const dockerfiles = readdirSync(join(root, 'docker')).filter((name) => name.startsWith('Dockerfile.'))

/** Instructions of a Dockerfile: [{ name, words }]. */
function instructions(name) {
  const text = readFileSync(join(root, 'docker', name), 'utf8').replace(/^\s*#.*\n/gm, '').replace(/\\\n/g, ' ')
  return text.split('\n').filter((line) => line.trim()).map((line) => {
    const [first, ...words] = line.trim().split(/\s+/)
    return { name: first, words }
  })
}

for (const file of dockerfiles) {
  test(`${file}: what it copies is there, and each stage has a name that exists`, () => {
    const known = /^(ARG|FROM|RUN|COPY|ENV|WORKDIR|USER|EXPOSE|HEALTHCHECK|ENTRYPOINT|CMD)$/
    const stages = new Set()
    for (const { name, words } of instructions(file)) {
      assert.match(name, known)
      if (name === 'FROM' && words[1] === 'AS') stages.add(words[2])
      if (name !== 'COPY') continue
      const from = words.find((word) => word.startsWith('--from='))?.slice('--from='.length)
      if (from) assert.ok(stages.has(from), `stage ${from}`)
      else for (const source of words.slice(0, -1)) assert.ok(existsSync(join(root, source)), source)
    }
  })
}

test('compose.yaml: each service waits for what there is, and for health only of what has a check', () => {
  for (const [name, service] of Object.entries(compose.services)) {
    const { context, dockerfile } = service.build
    assert.ok(existsSync(join(root, 'docker', context, dockerfile)), `${name}: ${dockerfile}`)
    for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
      assert.ok(compose.services[other], `${name} waits for ${other}`)
      assert.ok(['service_healthy', 'service_completed_successfully'].includes(condition))
      if (condition === 'service_healthy') assert.ok(compose.services[other].healthcheck, `${other} has a check`)
    }
    for (const volume of service.volumes ?? []) assert.ok(volume.split(':')[0] in compose.volumes, volume)
    for (const port of service.ports ?? []) assert.match(port, /^127\.0\.0\.1:/, 'for this machine alone')
  }
})

test('compose.yaml: the sidecar takes its settings', () => {
  const help = execFileSync(sidecarBinary, ['--help'], { encoding: 'utf8' })
  for (const name of Object.keys(compose.services.sidecar.environment).filter((it) => it.startsWith('SHAPEFEED_'))) {
    assert.ok(help.includes(`[env: ${name}`), name)
  }
  assert.equal(compose.services.sidecar.environment.SHAPEFEED_JWT_SECRET, compose.services.demo.environment.JWT_SECRET)
})
