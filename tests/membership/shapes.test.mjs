// Where clauses with subqueries: what comes in and goes out as memberships come and go.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served } from '../lib/index.mjs'
import { fewRows, followed, foundation, same, visibleTo } from './setup.mjs'

const site = served({ schema: foundation + fewRows, env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '2000' } })

const ofUser = (table, user) => ({ table, where: visibleTo[table], params: [user] })
const summary = (messages) => messages.map(({ headers, value }) => `${headers.operation} ${value.id}`)

test("each user's companies, workspaces and folders, live and from the log", async () => {
  const shapes = ['companies', 'workspaces', 'folders'].flatMap((table) => [1, 2].map((user) => ofUser(table, user)))
  const followers = []
  for (const shape of shapes) {
    const follower = await followed(site, shape)
    await same(site, follower, shape)
    followers.push(follower)
  }
  const starts = followers.map(({ offset }) => offset)
  const steps = [
    'insert into company_members values (4, 1)',
    'delete from company_members where (company_id, user_id) = (1, 1)',
    'update company_members set company_id = 1 where (company_id, user_id) = (2, 2)',
    'update workspaces set company_id = 4 where id = 1',
    'update folders set workspace_id = 3 where id = 1',
    "insert into folders values (100, 7, null, 'new'); insert into workspaces values (9, 4, 'w'); insert into folders values (101, 9, null, 'x')",
    'delete from workspaces where id = 2',
    'update company_members set user_id = 3 - user_id where user_id in (1, 2) and company_id in (1, 4)',
    'delete from company_members; insert into company_members values (2, 1), (2, 2)',
    'update folders set name = name || \'!\'',
  ]
  for (const step of steps) {
    await site.sql(`begin; ${step}; insert into users values (${1000 + steps.indexOf(step)}, 'marker'); commit`)
    for (const [i, shape] of shapes.entries()) {
      const follower = followers[i]
      const head = await site.sql('select shapefeed.head()').catch(() => null)
      void head
      await follower.step()
      await follower.sync()
      await same(site, follower, shape)
    }
  }
  void starts
})
