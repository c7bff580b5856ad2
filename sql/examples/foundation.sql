-- Users, the companies that they are members of, and what companies have: the tables of docs/where.md and of the tests.
-- Each column that links a row to a set has an index: a membership that comes or goes costs what it brings in or out.

create table users (
  id    int  primary key,
  name  text not null,
  email text
);

create table companies (
  id   int  primary key,
  name text not null
);

create table company_members (
  company_id int  not null references companies on delete cascade,
  user_id    int  not null references users on delete cascade,
  role       text not null default 'member',
  primary key (company_id, user_id)
);
create index on company_members (user_id);

create table user_groups (
  id         int  primary key,
  company_id int  not null references companies on delete cascade,
  name       text not null
);
create index on user_groups (company_id);

create table user_group_members (
  group_id int not null references user_groups on delete cascade,
  user_id  int not null references users on delete cascade,
  primary key (group_id, user_id)
);
create index on user_group_members (user_id);

create table workspaces (
  id         int  primary key,
  company_id int  not null references companies on delete cascade,
  name       text not null
);
create index on workspaces (company_id);

create table folders (
  id           int  primary key,
  workspace_id int  references workspaces on delete cascade,
  parent_id    int  references folders on delete cascade,
  name         text not null
);
create index on folders (workspace_id);
create index on folders (parent_id);

-- Who sees what. The caller is the claim `sub` of his token; whom these tables are granted to is for you to say:
--   grant select on users, companies, company_members, user_groups, user_group_members, workspaces, folders to app;
create function current_user_id() returns int language sql stable as
  $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::int $$;

alter table users enable row level security;
create policy all_users on users for select using (true);

alter table company_members enable row level security;
create policy own on company_members for select using (user_id = (select current_user_id()));

-- The policies of company_members are applied in here, too: a user sees his own memberships.
alter table companies enable row level security;
create policy of_members on companies for select using (id in (select company_id from company_members));

alter table user_groups enable row level security;
create policy of_members on user_groups for select using (company_id in (select company_id from company_members));

alter table user_group_members enable row level security;
create policy of_members on user_group_members for select using (group_id in (select id from user_groups));

alter table workspaces enable row level security;
create policy of_members on workspaces for select using (company_id in (select company_id from company_members));

alter table folders enable row level security;
create policy of_members on folders for select using (workspace_id in (select id from workspaces));

-- No folder is inside itself. One move at a time: two that are fine by themselves may close a circle together. It is judged at
-- the end of a transaction, as what all users see.
create function refuse_folder_cycle() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
begin
  perform pg_advisory_xact_lock('folders'::regclass::oid::int8);
  if exists (
    with recursive above (id, parent_id) as (
      select f.id, f.parent_id from folders f where f.id = (select n.parent_id from folders n where n.id = new.id)
      union
      select f.id, f.parent_id from folders f join above a on f.id = a.parent_id
    )
    select from above where id = new.id
  ) then
    raise exception using errcode = 'check_violation', constraint = 'folders_no_cycle', message = 'a folder cannot be inside itself';
  end if;
  return null;
end $$;
create constraint trigger folders_no_cycle after insert or update of parent_id on folders
  deferrable initially deferred for each row when (new.parent_id is not null) execute function refuse_folder_cycle();

-- What an app asks for: GET /v1/shape?shape=my_folders. Policies decide what is in them.
select shapefeed.create_shape('all_users', 'users'),
       shapefeed.create_shape('my_companies', 'companies'),
       shapefeed.create_shape('my_memberships', 'company_members'),
       shapefeed.create_shape('my_groups', 'user_groups'),
       shapefeed.create_shape('my_group_members', 'user_group_members'),
       shapefeed.create_shape('my_workspaces', 'workspaces'),
       shapefeed.create_shape('my_folders', 'folders');
