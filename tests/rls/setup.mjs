// A database whose policies decide, a sidecar that knows callers by their tokens, and clients of theirs.
import { Follower } from '../lib/index.mjs'
import { bearer, token } from '../lib/jwt.mjs'

export const secret = 'a secret of the tests, long enough for HS256'

/** Functions and roles as PostgREST and Supabase have them. */
export const convention = `
  create schema auth;
  create function auth.uid() returns int language sql stable as $$
    select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
      nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::int $$;
  create role app; create role app_admin bypassrls; create role anon;
  grant usage on schema auth to public;`

export const environment = {
  SHAPEFEED_JWT_SECRET: secret,
  SHAPEFEED_ROLES: 'app,app_admin',
  SHAPEFEED_ANONYMOUS_ROLE: 'anon',
  SHAPEFEED_LONG_POLL_TIMEOUT_MS: '2000',
}

/** Headers of a user. */
export const as = (sub, claims = {}) => bearer(token({ role: 'app', sub: String(sub), ...claims }, secret))

/** The same requests, made with these headers. */
export const withHeaders = (api, headers) => ({ get: (params, options = {}) => api.get(params, { ...options, headers: { ...headers, ...options.headers } }) })

/** Follows a shape as a user. */
export async function followedAs(api, headers, params) {
  const follower = new Follower(withHeaders(api, headers), params)
  await follower.sync()
  return follower
}

/** What a user sees by a plain SELECT, in a transaction of its own. */
export async function selectAs(client, { role = 'app', claims }, query) {
  await client.query('begin')
  try {
    await client.query(`select set_config('request.jwt.claims', $1, true)`, [claims ? JSON.stringify(claims) : ''])
    await client.query(`set local role ${role}`)
    const { rows } = await client.query(query)
    return rows
  } finally {
    await client.query('rollback')
  }
}
