// What docker/ says fits what is in the repository. Whether it builds and runs is what `make test-docker` tells.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { basename, join } from 'node:path'
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

/** A service has a check of its own, or its image has. */
const hasCheck = ({ healthcheck, build }) =>
  healthcheck ?? (build && instructions(basename(build.dockerfile)).some(({ name }) => name === 'HEALTHCHECK'))

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

test('the images of Rust have the version of rust-toolchain.toml', () => {
  const [, version] = /^channel = "(.+)"$/m.exec(readFileSync(join(root, 'rust-toolchain.toml'), 'utf8'))
  const images = dockerfiles.flatMap(instructions).filter(({ name, words }) => name === 'FROM' && words[0].startsWith('rust:'))
  assert.ok(images.length > 0)
  for (const { words } of images) assert.equal(words[0], `rust:${version}-bookworm`)
})

test('.dockerignore: what is copied is sent, and of a working copy nothing else', () => {
  const lines = readFileSync(join(root, '.dockerignore'), 'utf8').split('\n').filter((line) => line && !line.startsWith('#'))
  assert.equal(lines[0], '*', 'all that is not named')
  const sent = lines.filter((line) => line.startsWith('!')).map((line) => line.slice(1))
  const copied = dockerfiles.flatMap(instructions).filter(({ name, words }) => name === 'COPY' && !words[0].startsWith('--from='))
    .flatMap(({ words }) => words.slice(0, -1).map((source) => source.split('/')[0]))
  assert.deepEqual([...new Set(copied)].sort(), sent.sort())
  for (const made of ['**/node_modules', 'client/dist', 'client/demo/dist']) assert.ok(lines.includes(made), made)
})

test('compose.yaml: each service waits for what there is, and for health only of what has a check', () => {
  for (const [name, service] of Object.entries(compose.services)) {
    if (service.build) assert.ok(existsSync(join(root, 'docker', service.build.context, service.build.dockerfile)), name)
    else assert.match(service.image, /^\w+:\w/, 'an image has a tag')
    for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
      assert.ok(compose.services[other], `${name} waits for ${other}`)
      assert.ok(['service_healthy', 'service_completed_successfully'].includes(condition))
      if (condition === 'service_healthy') assert.ok(hasCheck(compose.services[other]), `${other} has a check`)
    }
    for (const source of (service.volumes ?? []).map((volume) => volume.split(':')[0])) {
      assert.ok(source.startsWith('./') ? existsSync(join(root, 'docker', source)) : source in compose.volumes, source)
    }
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
