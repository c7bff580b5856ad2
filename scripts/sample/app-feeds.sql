-- What the demo app needs of the extension; at each start, since a newer checkout makes the extension anew.
do $$ declare
  name regclass;
begin
  foreach name in array array['companies', 'company_members', 'user_groups', 'user_group_members', 'workspaces', 'folders']::regclass[] loop
    if to_regproc('shapefeed.allow_writes') is not null then execute format('call shapefeed.allow_writes(%L)', name); end if;
  end loop;
end $$;
