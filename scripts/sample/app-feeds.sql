-- What the demo app needs of the extension; run at each start, since a newer checkout makes the extension anew.
\set ON_ERROR_STOP on
do $$ begin
  if to_regrole('visitor') is null then create role visitor; end if;
end $$;
grant select on airlines, airports, flights, planes, weather to visitor;
call shapefeed.allow_writes('companies', 'company_members', 'user_groups', 'user_group_members', 'workspaces', 'folders');
