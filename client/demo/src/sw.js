// Keeps the files of one build. The API is not its business, and neither are tokens but to have the last ones offline.
const build = 'BUILD'
const files = ['FILES']
const users = 'users'

self.addEventListener('install', (event) => {
  self.skipWaiting()
  event.waitUntil(caches.open(build).then((cache) => cache.addAll(files.map((file) => new Request(file, { cache: 'no-cache' })))))
})

self.addEventListener('activate', (event) => {
  const forget = async () => {
    for (const name of await caches.keys()) if (name !== build && name !== users) await caches.delete(name)
    await self.clients.claim()
  }
  event.waitUntil(forget())
})

self.addEventListener('fetch', (event) => {
  const url = new URL(event.request.url)
  if (event.request.method !== 'GET' || url.origin !== location.origin || url.pathname.startsWith('/v1/')) return
  event.respondWith(url.pathname.endsWith('/users.json') ? newest(event.request) : kept(event.request))
})

async function kept(request) {
  const page = request.mode === 'navigate' ? './' : request
  return await (await caches.open(build)).match(page, { ignoreSearch: true }) ?? fetch(request)
}

async function newest(request) {
  const cache = await caches.open(users)
  try {
    const response = await fetch(request)
    if (response.ok) await cache.put(request, response.clone())
    return response
  } catch (error) {
    const last = await cache.match(request)
    if (last) return last
    throw error
  }
}
