-- Who may write what of the tables of foundation.sql, by POST /v1/write or otherwise. Rights are for you to grant:
--   grant insert, update, delete on companies, company_members, user_groups, user_group_members, workspaces, folders to app;

-- A policy that asks the table it is on would ask itself for ever.
create function is_member_of(company int) returns boolean language sql stable security definer set search_path = public, pg_temp as
  $$ select exists (select from company_members where company_id = company and user_id = current_user_id()) $$;
create function has_no_members(company int) returns boolean language sql stable security definer set search_path = public, pg_temp as
  $$ select not exists (select from company_members where company_id = company) $$;

-- Whoever makes a company is its first member, in the same transaction or later. Members change it and what it has.
create policy found on companies for insert with check (current_user_id() is not null);
create policy change on companies for update using (is_member_of(id));
create policy remove on companies for delete using (is_member_of(id));

create policy invite on company_members for insert
  with check (is_member_of(company_id) or user_id = current_user_id() and has_no_members(company_id));
create policy change on company_members for update using (is_member_of(company_id));
create policy leave on company_members for delete using (is_member_of(company_id));

create policy add on user_groups for insert with check (is_member_of(company_id));
create policy change on user_groups for update using (is_member_of(company_id));
create policy remove on user_groups for delete using (is_member_of(company_id));
create policy add on user_group_members for insert with check (group_id in (select id from user_groups));
create policy change on user_group_members for update using (group_id in (select id from user_groups));
create policy remove on user_group_members for delete using (group_id in (select id from user_groups));
create policy add on workspaces for insert with check (is_member_of(company_id));
create policy change on workspaces for update using (is_member_of(company_id));
create policy remove on workspaces for delete using (is_member_of(company_id));
create policy add on folders for insert with check (workspace_id in (select id from workspaces));
create policy change on folders for update using (workspace_id in (select id from workspaces));
create policy remove on folders for delete using (workspace_id in (select id from workspaces));

call shapefeed.allow_writes('companies');
call shapefeed.allow_writes('company_members');
call shapefeed.allow_writes('user_groups');
call shapefeed.allow_writes('user_group_members');
call shapefeed.allow_writes('workspaces');
call shapefeed.allow_writes('folders');
