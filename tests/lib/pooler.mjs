// A pooler as far as a test needs one: it lends each client a backend for a transaction, the one given back last first.
import net from 'node:net'

/** Starts it before a database's URL: { url, stop() }. Authentication must be trust. */
export async function startPooler(databaseUrl) {
  const target = new URL(databaseUrl)
  const free = []
  const sockets = new Set()
  const keep = (socket) => {
    sockets.add(socket)
    socket.on('error', () => {}).on('close', () => sockets.delete(socket))
    return socket
  }

  /** A backend that is ready; `greeting` is what it said on the way. */
  function connect(startup) {
    return new Promise((resolve, reject) => {
      const socket = keep(net.connect({ host: target.hostname, port: target.port }))
      const backend = { socket, greeting: Buffer.alloc(0), client: undefined }
      socket.once('error', reject)
      socket.write(startup)
      socket.on('data', (data) => {
        if (backend.client) return backend.client.forward(data)
        backend.greeting = Buffer.concat([backend.greeting, data])
        if (isReady(backend.greeting)) resolve(backend)
      })
    })
  }

  const server = net.createServer((socket) => {
    keep(socket)
    let startup, backend
    let queue = Promise.resolve()
    const client = {
      forward(data) {
        socket.write(data)
        // Idle outside a transaction: whoever comes next may have it.
        if (isReady(data) && data.at(-1) === 'I'.charCodeAt(0)) {
          free.push(backend)
          backend.client = backend = undefined
        }
      },
    }
    socket.on('data', (data) => {
      queue = queue.then(async () => {
        if (!startup && data.readInt32BE(4) === 80877103) return socket.write('N')
        if (!startup) {
          startup = data
          const made = await connect(startup)
          free.push(made)
          return socket.write(made.greeting)
        }
        backend ??= free.pop() ?? await connect(startup)
        backend.client = client
        backend.socket.write(data)
      }).catch(() => socket.destroy())
    })
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  const url = new URL(databaseUrl)
  url.hostname = '127.0.0.1'
  url.port = server.address().port
  return {
    url: url.href,
    stop: () => new Promise((resolve) => {
      sockets.forEach((socket) => socket.destroy())
      server.close(resolve)
    }),
  }
}

/** Whether bytes end with ReadyForQuery. */
function isReady(data) {
  return data.length >= 6 && data.at(-6) === 'Z'.charCodeAt(0) && data.readInt32BE(data.length - 5) === 5
}
