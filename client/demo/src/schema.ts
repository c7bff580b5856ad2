import type { LocalSchema } from 'shapefeed'

/** The tables of sql/examples/foundation.sql as this app has them: without foreign keys, for rows come in any order. */
export const schema: LocalSchema = {
  version: 1,
  sql: `
    create table users (id int primary key, name text not null, email text);
    create table companies (id int primary key, name text not null);
    create table company_members (company_id int, user_id int, role text not null default 'member', primary key (company_id, user_id));
    create table user_groups (id int primary key, company_id int not null, name text not null);
    create table user_group_members (group_id int, user_id int, primary key (group_id, user_id));
    create table workspaces (id int primary key, company_id int not null, name text not null);
    create table folders (id int primary key, workspace_id int, parent_id int, name text not null);
    create index on user_groups (company_id);
    create index on workspaces (company_id);
    create index on folders (workspace_id);
  `,
}
