// A wire that can be cut: what is connected is broken off, what wants to connect is refused.
import net from 'node:net'
import { once } from 'node:events'

/** Starts it before a port of this machine: { port, cut(), join(), stop() }. */
export async function startGate(targetPort) {
  const sockets = new Set()
  const keep = (socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    socket.on('error', () => socket.destroy())
  }
  const server = net.createServer((near) => {
    const far = net.connect(targetPort, '127.0.0.1')
    keep(near)
    keep(far)
    near.pipe(far)
    far.pipe(near)
    near.on('close', () => far.destroy())
    far.on('close', () => near.destroy())
  })
  const listen = async (port) => {
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
  }
  const cut = async () => {
    if (!server.listening) return
    server.close()
    for (const socket of sockets) socket.destroy()
    await once(server, 'close')
  }
  await listen(0)
  const { port } = server.address()
  return { port, cut, join: () => listen(port), stop: cut }
}
