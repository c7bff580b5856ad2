/** How many names requests that wait are spread over. */
const names = 16

/**
 * Browsers open six connections to a host by HTTP/1.1, which is what there is without a certificate, and a live request of a
 * shape holds one. On this machine all names below `localhost` are the same server: live requests go to those, and what is
 * asked of the host itself finds a connection. With TLS there is HTTP/2, and nothing to spread.
 */
export const spread: typeof fetch = (input, init) => {
  const url = new URL(input instanceof Request ? input.url : input)
  const isLocal = url.protocol === 'http:' && (url.hostname === 'localhost' || url.hostname === '127.0.0.1')
  if (!isLocal || url.searchParams.get('live') !== 'true') return fetch(input, init)
  url.hostname = `live-${hash(`${url.searchParams.get('handle')}`) % names}.localhost`
  return fetch(input instanceof Request ? new Request(url, input) : url, init)
}

const hash = (text: string) => [...text].reduce((sum, character) => (sum * 31 + character.charCodeAt(0)) >>> 0, 7)
