// Lists that users are members of, with what is to be done on them: policies decide who sees and writes what.
import { served } from '../../lib/index.mjs'
import { token } from '../../lib/jwt.mjs'
import { convention, environment, secret } from '../../rls/setup.mjs'
import { openClient } from './client.mjs'

const schema = `${convention}
  create table lists (id int primary key, name text not null, color text);
  create table members (list int not null references lists on delete cascade, user_id int not null, primary key (list, user_id));
  create table todos (id int primary key, list int not null references lists on delete cascade,
    title text not null constraint titled check (title <> ''), body text, rank int unique, done bool not null default false);
  create index on members (user_id);
  create index on todos (list);
  alter table lists enable row level security;
  alter table todos enable row level security;
  create policy of_members on lists using (id in (select list from members where user_id = auth.uid())) with check (true);
  create policy of_members on todos using (list in (select list from members where user_id = auth.uid()));
  grant select, insert, update, delete on lists, members, todos to app;
  insert into lists select i, 'list ' || i, 'red' from generate_series(1, 3) i;
  insert into members values (1, 1), (1, 2), (2, 1), (2, 2), (3, 9);
  insert into todos select i, 1 + i % 3, 'todo ' || i, 'text', i from generate_series(1, 90) i;
  call shapefeed.track('lists'); call shapefeed.track('members'); call shapefeed.track('todos');
  call shapefeed.allow_writes('lists'); call shapefeed.allow_writes('members'); call shapefeed.allow_writes('todos');`

export const tables = ['lists', 'members', 'todos']

/** What user 1 and user 2, members of lists 1 and 2, see of a table. */
export const visible = { lists: 'id in (1, 2)', members: 'true', todos: 'list in (1, 2)' }

/** A site with the lists; `open(user, options)`: a client that follows all tables as this user. */
export function lists(options = {}) {
  const site = served({ ...options, schema: schema + (options.schema ?? ''), env: { ...environment, ...options.env } })
  site.tokenOf = (user, claims = {}) => token({ role: 'app', sub: String(user), ...claims }, secret)
  site.open = async (user, more = {}) => {
    const client = await openClient(site, { userId: String(user), getToken: () => site.tokenOf(user), ...more })
    site.onStop(() => client.close())
    for (const table of more.tables ?? tables) await client.follow({ table })
    return client
  }
  site.one = async (sql) => Object.values((await site.client.query(sql)).rows[0] ?? {})[0]
  return site
}

/** All tables are, here, what the server has, and nothing is left to send. */
export async function equal(...clients) {
  for (const client of clients) await client.settled()
  for (const client of clients) for (const table of tables) await client.equals(table, visible[table])
}
