// Rights of a sidecar's role: what is taken away ends what is served at once. What is given, given back too, is said in the log,
// since it is for what happens from then on; those who have not been given anything go on.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served, waitFor } from '../lib/index.mjs'
import { LiveClient } from './client.mjs'

const site = served({
  schema: `create role plain login; create role many login; create role owning;
    create table t (id int primary key, v text); insert into t values (1, 'a');
    create table untouched (id int primary key); insert into untouched values (1);
    call shapefeed.track('t'); call shapefeed.track('untouched');
    grant select on t, untouched to plain; select shapefeed.grant_sidecar('plain');`,
})

const takenAndGiven = [
  ['revoke select on t from plain', 'grant select on t to plain', 'is refused', 1],
  ['revoke select on t from plain; grant select (id) on t to plain', 'grant select on t to plain', 'is refused', 2],
  ['alter table t enable row level security', 'alter table t disable row level security', 'shows nothing', 1],
  ['grant select on t to many; grant many to plain', 'revoke many from plain', 'begins anew', 3],
  ['alter table t owner to owning', 'select 1', 'goes on', 1],
  ["create policy p on t using (id = 1); grant insert on t to plain", 'drop policy p on t', 'goes on', 0],
]

let plain
for (const [taken, given, outcome, notes] of takenAndGiven) {
  test(taken, async () => {
    plain ??= await site.another({ databaseUrl: site.database.urlAs('plain'), env: { SHAPEFEED_AUTO_TRACK: 'false', SHAPEFEED_LONG_POLL_TIMEOUT_MS: '2000' } })
    const client = await LiveClient.started(plain.api, { table: 't' })
    const other = await LiveClient.started(plain.api, { table: 'untouched' })
    const { handle } = client
    const ends = async () => (await site.client.query('select count(*)::int from shapefeed.commit where ends is not null')).rows[0].count
    const before = await ends()
    await site.sql(taken)
    await site.sql("update t set v = v || 'b'")
    const truth = async () => (await site.client.query('select v from t')).rows[0].v
    const same = async () => client.follower.upToDate && client.follower.values[0]?.v === await truth()
    if (outcome === 'shows nothing') {
      await waitFor(() => client.follower.upToDate && client.follower.rows.size === 0, { what: 'no policy lets a row pass' })
      assert.equal(client.refetches, 1)
    } else if (outcome === 'begins anew') {
      await waitFor(() => client.refetches > 0, { what: 'a 409' })
    } else if (outcome === 'is refused') {
      await waitFor(() => client.refusal?.status === 400, { what: 'the role gets nothing' })
      assert.ok(client.refetches <= 1)
    }
    await site.sql(given)
    await waitFor(same, { what: 'the copy equals the table' })
    if (outcome === 'goes on') assert.deepEqual([client.refetches, client.handle], [0, handle])
    assert.ok(!client.failure && client.refetches <= 3)
    assert.ok(other.refetches === 0 || outcome === 'begins anew')
    await waitFor(async () => (await ends()) - before === notes, { what: `${notes} notes in the log` })
    await Promise.all([client.stop(), other.stop()])
  })
}
