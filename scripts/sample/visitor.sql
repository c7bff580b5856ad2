-- Who asks without a token is `visitor`: he sees the flights, and tables that are made later, but not the app's.
do $$ begin
  if to_regrole('visitor') is null then create role visitor; end if;
end $$;
grant select on all tables in schema public to visitor;
revoke all on users, companies, company_members, company_access, user_groups, user_group_members, workspaces, folders from visitor;
alter default privileges in schema public grant select on tables to visitor;
