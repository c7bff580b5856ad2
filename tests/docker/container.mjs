// Runs what scripts/test-docker has built as a container engine would: file system, user, environment, program, volumes and
// checks of health as the image and compose.yaml say. All share one network, which the caller has made for them.
import { execFile, execFileSync, spawn } from 'node:child_process'
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { parse } from 'yaml'
import { root, waitFor } from '../lib/index.mjs'

const run = promisify(execFile)
const store = process.env.SHAPEFEED_IMAGES
const composeFile = join(root, 'docker/compose.yaml')
export const compose = parse(readFileSync(composeFile, 'utf8'))

/** The file system of an image. */
export const rootOf = (image) => realpathSync(join(store, 'roots', image))
/** Its settings: User, Env, Entrypoint, Cmd, Healthcheck, StopSignal, … */
export const settingsOf = (image) => JSON.parse(readFileSync(join(store, 'roots', `${image}.json`), 'utf8')).Docker.config

// What engines add where an image does not say it.
const PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
const mounted = new Set()
function mount(place, ...options) {
  if (mounted.has(place)) return
  execFileSync('mount', [...options, place])
  mounted.add(place)
}

/** /proc, /dev and /etc/hosts, as an engine adds them. */
function furnish(fs) {
  mount(join(fs, 'proc'), '-t', 'proc', 'proc')
  mount(join(fs, 'dev'), '--rbind', '/dev')
  mount(join(fs, 'dev/shm'), '-t', 'tmpfs', 'tmpfs')
  const names = Object.keys(compose.services).join(' ')
  writeFileSync(join(fs, 'etc/hosts'), `127.0.0.1 localhost ${names}\n`)
}

/** A volume at its place; a new one begins with what the image has there. */
function mountVolume(fs, volume) {
  const [source, path, mode] = volume.split(':')
  const place = join(fs, path)
  if (source.startsWith('.')) {
    writeFileSync(place, '')
    return mount(place, '--bind', resolve(dirname(composeFile), source))
  }
  const dir = join(store, 'volumes', source)
  mkdirSync(place, { recursive: true })
  if (!existsSync(dir)) {
    mkdirSync(dirname(dir), { recursive: true })
    execFileSync('cp', ['-aT', place, dir])
  }
  mount(place, '--bind', ...(mode === 'ro' ? ['-o', 'ro'] : []), dir)
}

/** Forgets all volumes: the next start is the first one. */
export const removeVolumes = () => rmSync(join(store, 'volumes'), { recursive: true, force: true })

export class Container {
  constructor(image, { environment = {}, volumes = [], command, healthcheck } = {}) {
    this.fs = rootOf(image)
    this.settings = settingsOf(image)
    this.argv = [...(this.settings.Entrypoint ?? []), ...(command ?? this.settings.Cmd ?? [])]
    this.environment = [PATH, ...(this.settings.Env ?? []), ...Object.entries(environment).map(([name, value]) => `${name}=${value}`)]
    this.logFile = join(store, `${image}.log`)
    this.check = healthcheck?.test ?? this.settings.Healthcheck?.Test
    furnish(this.fs)
    for (const volume of volumes) mountVolume(this.fs, volume)
  }

  /** Words before a command that runs in it, as its user. */
  words() {
    const name = this.settings.User || 'root'
    const entry = readFileSync(join(this.fs, 'etc/passwd'), 'utf8').split('\n').find((line) => line.startsWith(`${name}:`))
    const [, , uid, gid] = entry.split(':')
    return ['chroot', `--userspec=${uid}:${gid}`, '--groups=', this.fs, 'env', '-i', '-C', this.settings.WorkingDir || '/', ...this.environment]
  }

  start() {
    // A file, because /dev/stdout cannot be opened where it is a socket, which is what pipes are here.
    const log = openSync(this.logFile, 'w')
    this.child = spawn('unshare', ['--pid', '--fork', '--kill-child', ...this.words(), ...this.argv], { stdio: ['ignore', log, log] })
    closeSync(log)
    this.running = true
    this.exited = new Promise((done) => this.child.once('exit', (code, signal) => {
      this.running = false
      done(code ?? signal)
    }))
    return this
  }

  /** What it has said since its start. */
  get log() {
    return readFileSync(this.logFile, 'utf8')
  }

  /** Its process 1, as it is seen from here. */
  get pid() {
    return Number(readFileSync(`/proc/${this.child.pid}/task/${this.child.pid}/children`, 'utf8').trim())
  }

  /** What a command says that runs in it. */
  async exec(...command) {
    const [program, ...words] = [...this.words(), ...command]
    return (await run(program, words)).stdout
  }

  async isHealthy() {
    const [how, ...command] = this.check
    if (how !== 'CMD') throw new Error(`a check that is not CMD: ${how}`)
    return this.exec(...command).then(() => true, () => false)
  }

  async healthy() {
    await waitFor(async () => !this.running || this.isHealthy(), { timeoutMs: 120_000, what: `${this.argv[0]} is healthy` })
    if (!this.running) throw new Error(`${this.argv[0]} ended: ${this.log}`)
  }

  /** As `docker stop` does, which kills after ten seconds. */
  async stop() {
    if (!this.running) throw new Error(`${this.argv[0]} has ended by itself: ${this.log}`)
    process.kill(this.pid, this.settings.StopSignal || 'SIGTERM')
    const timer = setTimeout(() => this.child.kill('SIGKILL'), 10_000)
    const code = await this.exited
    clearTimeout(timer)
    return code
  }
}

const imageOf = (name, service) => (service.build ? name : service.image.split(':')[0])

/** Starts a service of compose.yaml when what it waits for is as it wants it, which is started before. */
async function startService(name, containers) {
  if (containers[name]) return
  const service = compose.services[name]
  for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
    await startService(other, containers)
    if (condition === 'service_healthy') await containers[other].healthy()
    else if (await containers[other].exited !== 0) throw new Error(`${other} failed: ${containers[other].log}`)
  }
  containers[name] = new Container(imageOf(name, service), service).start()
}

/** `docker compose --profile cache up`: the containers by name. */
export async function up() {
  const containers = {}
  for (const name of Object.keys(compose.services)) await startService(name, containers)
  return containers
}
