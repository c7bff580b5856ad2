// tokens.mjs SECRET: the users with a token for each, good for a year, as the demo's page reads them. An application has
// its own way to sign people in; this one lets everybody be anybody.
import { createHmac } from 'node:crypto'
import { readFileSync } from 'node:fs'

const secret = process.argv[2]
const encoded = (value) => Buffer.from(JSON.stringify(value)).toString('base64url')
const year = 365 * 24 * 3600

function tokenOf(id) {
  const text = `${encoded({ alg: 'HS256', typ: 'JWT' })}.${encoded({ role: 'app', sub: String(id), exp: Math.floor(Date.now() / 1000) + year })}`
  return `${text}.${createHmac('sha256', secret).update(text).digest('base64url')}`
}

const users = JSON.parse(readFileSync(new URL('users.json', import.meta.url), 'utf8'))
console.log(JSON.stringify(users.map((user) => ({ ...user, token: tokenOf(user.id) }))))
