// JSON Web Tokens, made by hand so that wrong ones can be made as well.
import { createHmac, generateKeyPairSync, sign as signWith } from 'node:crypto'

const encoded = (value) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url')

/** A token of these claims, good for an hour if they say nothing else. `key`: a secret or a private key; `alg` is what the header says. */
export function token(claims, key, { alg = 'HS256', signedBy = alg, header = {} } = {}) {
  const payload = { exp: Math.floor(Date.now() / 1000) + 3600, ...claims }
  const text = `${encoded({ alg, typ: 'JWT', ...header })}.${encoded(payload)}`
  return `${text}.${signature(text, key, signedBy).toString('base64url')}`
}

function signature(text, key, alg) {
  const data = Buffer.from(text)
  if (alg === 'none') return Buffer.alloc(0)
  if (alg.startsWith('HS')) return createHmac(`sha${alg.slice(2)}`, key).update(data).digest()
  if (alg === 'EdDSA') return signWith(null, data, key)
  return signWith('sha256', data, alg === 'ES256' ? { key, dsaEncoding: 'ieee-p1363' } : key)
}

/** A pair of keys for RS256, ES256 or EdDSA: { privateKey, pem, jwk }. */
export function keyPair(alg, kid) {
  const kinds = { RS256: ['rsa', { modulusLength: 2048 }], ES256: ['ec', { namedCurve: 'P-256' }], EdDSA: ['ed25519'] }
  const { privateKey, publicKey } = generateKeyPairSync(...kinds[alg])
  return { privateKey, pem: publicKey.export({ type: 'spki', format: 'pem' }), jwk: { ...publicKey.export({ format: 'jwk' }), alg, use: 'sig', kid } }
}

/** Headers of a request that is made with a token. */
export const bearer = (text) => ({ authorization: `Bearer ${text}` })
