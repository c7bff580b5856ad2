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
