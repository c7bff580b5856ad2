-- What the demo app is about: the tables of sql/examples/foundation.sql, who may change what, and a few companies at work.
-- Tokens name the role `app`.
\ir ../../sql/examples/foundation.sql

do $$ begin
  if to_regrole('app') is null then create role app; end if;
end $$;
grant select, insert, update, delete on users, companies, company_members, user_groups, user_group_members, workspaces, folders to app;

-- Who may see a company, kept by a trigger: a policy of company_members that asks company_members would ask itself for ever.
create table company_access (
  company_id int  not null references companies on delete cascade,
  user_id    int  not null references users on delete cascade,
  role       text not null,
  primary key (company_id, user_id)
);
create index on company_access (user_id);
grant select on company_access to app;
alter table company_access enable row level security;
create policy own on company_access for select using (user_id = (select current_user_id()));

create function keep_company_access() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
begin
  if tg_op <> 'INSERT' then
    delete from company_access where (company_id, user_id) = (old.company_id, old.user_id);
  end if;
  if tg_op <> 'DELETE' then
    insert into company_access values (new.company_id, new.user_id, new.role);
  end if;
  return null;
end $$;
create trigger keep_company_access after insert or update or delete on company_members
  for each row execute function keep_company_access();

-- Members see each other.
drop policy own on company_members;
create policy of_members on company_members for select using (company_id in (select company_id from company_access));

-- Whoever makes a company is its first member. Members change what it has; its admins change who is a member.
create function company_is_new(company int) returns boolean language sql stable security definer set search_path = public, pg_temp as
  $$ select not exists (select from company_members where company_id = company) $$;
create policy make on companies for insert with check (true);
create policy rename on companies for update using (id in (select company_id from company_access where role = 'admin'));
create policy remove on companies for delete using (id in (select company_id from company_access where role = 'admin'));
create policy invite on company_members for insert with check (
  company_id in (select company_id from company_access where role = 'admin')
  or user_id = (select current_user_id()) and company_is_new(company_id));
create policy promote on company_members for update using (company_id in (select company_id from company_access where role = 'admin'));
create policy expel on company_members for delete using (
  user_id = (select current_user_id()) or company_id in (select company_id from company_access where role = 'admin'));
create policy write on user_groups for insert with check (company_id in (select company_id from company_access));
create policy change on user_groups for update using (company_id in (select company_id from company_access));
create policy remove on user_groups for delete using (company_id in (select company_id from company_access));
create policy write on user_group_members for insert with check (group_id in (select id from user_groups));
create policy remove on user_group_members for delete using (group_id in (select id from user_groups));
create policy write on workspaces for insert with check (company_id in (select company_id from company_access));
create policy change on workspaces for update using (company_id in (select company_id from company_access));
create policy remove on workspaces for delete using (company_id in (select company_id from company_access));
create policy write on folders for insert with check (workspace_id in (select id from workspaces));
create policy change on folders for update using (workspace_id in (select id from workspaces));
create policy remove on folders for delete using (workspace_id in (select id from workspaces));

-- A rule that only the server knows, to see what a rejection looks like.
alter table folders add constraint folder_has_a_name check (name <> '' and length(name) <= 80);

insert into users values
  (1, 'Ada Brandt', 'ada@example.com'), (2, 'Bruno Castel', 'bruno@example.com'), (3, 'Chidi Okafor', 'chidi@example.com'),
  (4, 'Dana Levi', 'dana@example.com'), (5, 'Emil Novak', 'emil@example.com'), (6, 'Farah Haddad', 'farah@example.com');
insert into companies values (1, 'Northwind Studio'), (2, 'Harbor Coffee Roasters'), (3, 'Alpine Rescue Service');
insert into company_members values
  (1, 1, 'admin'), (1, 2, 'member'), (1, 3, 'member'), (1, 4, 'member'),
  (2, 2, 'admin'), (2, 1, 'member'), (2, 5, 'member'),
  (3, 6, 'admin'), (3, 3, 'member'), (3, 5, 'member');
insert into user_groups values
  (1, 1, 'Design'), (2, 1, 'Engineering'), (3, 2, 'Roastery'), (4, 2, 'Shops'), (5, 3, 'Pilots'), (6, 3, 'Medics');
insert into user_group_members values (1, 1), (1, 4), (2, 2), (2, 3), (3, 2), (4, 1), (4, 5), (5, 6), (6, 3), (6, 5);
insert into workspaces values
  (1, 1, 'Website relaunch'), (2, 1, 'Brand'), (3, 1, 'Handbook'),
  (4, 2, 'Beans and suppliers'), (5, 2, 'Store opening'), (6, 3, 'Missions'), (7, 3, 'Training');

-- Eight folders in each workspace, five in each of them, and now and then some below: about five hundred.
insert into folders
  select w.id * 1000 + n, w.id, null, (array['Plans', 'Contracts', 'Photos', 'Research', 'Budget', 'Meetings', 'Drafts', 'Archive'])[n]
  from workspaces w, generate_series(1, 8) n;
insert into folders
  select f.id * 10 + n, f.workspace_id, f.id,
    (array['Spring', 'Summer', 'Autumn', 'Winter', 'Reviews'])[n] || ' ' || 2022 + (f.id + n) % 5
  from folders f, generate_series(1, 5) n;
insert into folders
  select f.id * 10 + n, f.workspace_id, f.id, (array['Notes', 'Figures', 'Open questions'])[n]
  from folders f, generate_series(1, 3) n where f.parent_id is not null and f.id % 5 = 2;
