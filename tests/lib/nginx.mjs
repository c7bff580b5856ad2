// nginx as docker/nginx.conf has it, in front of a sidecar.
import { spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { atExit } from './cleanup.mjs'
import { root, scratchDir } from './paths.mjs'
import { freePort, waitFor } from './wait.mjs'

const binary = process.env.SHAPEFEED_NGINX ?? join(root, '.local/nginx/usr/sbin/nginx')

/** The text with `from` replaced, which must be in it. */
function replaced(text, from, to) {
  if (!text.includes(from)) throw new Error(`docker/nginx.conf does not have: ${from}`)
  return text.replaceAll(from, to)
}

/**
 * Starts it before sidecars on these ports, with these parts of its configuration left out: { url, port, restart({ empty }), stop(), log() }.
 * `restart({ empty: true })` loses what is cached.
 */
export async function startNginx(ports, { without = [] } = {}) {
  const port = await freePort()
  const dir = scratchDir('nginx')
  const cache = join(dir, 'cache')
  const conf = join(dir, 'nginx.conf')
  const logFile = join(dir, 'error.log')
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${join(dir, name)};`).join(' ')
  let text = readFileSync(join(root, 'docker/nginx.conf'), 'utf8')
  text = replaced(text, 'server sidecar:3000;', ports.map((it) => `server 127.0.0.1:${it};`).join(' '))
  text = replaced(text, 'listen 8080 backlog=8192;', `listen 127.0.0.1:${port} backlog=8192;`)
  text = replaced(text, '/var/cache/nginx/shapes', cache)
  text = replaced(text, 'pid /run/nginx.pid;', `pid ${join(dir, 'nginx.pid')};`)
  text = replaced(text, '/dev/stdout', join(dir, 'access.log'))
  text = replaced(text, 'http {\n', `http {\n    ${temporary}\n`)
  for (const part of without) text = replaced(text, part, '')
  writeFileSync(conf, text)

  const url = `http://127.0.0.1:${port}`
  let child, exited
  const start = async () => {
    mkdirSync(cache, { recursive: true })
    const log = openSync(logFile, 'a')
    // As root its workers would be another user, who cannot enter the folder.
    const user = process.getuid() === 0 ? 'user root;' : ''
    child = spawn(binary, ['-p', dir, '-e', 'stderr', '-c', conf, '-g', `daemon off; master_process on; ${user}`], { stdio: ['ignore', log, log] })
    closeSync(log)
    exited = new Promise((resolve) => {
      child.once('error', resolve)
      child.once('exit', resolve)
    })
    const started = child
    const forget = atExit(() => started.kill('SIGTERM'))
    exited.then(forget)
    let gone = false
    exited.then(() => { gone = true })
    await waitFor(async () => gone || (await fetch(url).catch(() => undefined))?.status < 500, { what: 'nginx serves' })
    if (gone) throw new Error(`nginx ended; its log:\n${readFileSync(logFile, 'utf8')}`)
  }
  const stop = async () => {
    child.kill('SIGTERM')
    await exited
  }
  await start()
  return {
    url,
    port,
    stop,
    log: () => readFileSync(logFile, 'utf8'),
    accessLog: () => readFileSync(join(dir, 'access.log'), 'utf8'),
    restart: async ({ empty = false } = {}) => {
      await stop()
      if (empty) rmSync(cache, { recursive: true })
      await start()
    },
  }
}
