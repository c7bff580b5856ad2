-- What the demo app needs of the extension; at each start, since a newer checkout makes the extension anew.
call shapefeed.allow_writes('companies');
call shapefeed.allow_writes('company_members');
call shapefeed.allow_writes('user_groups');
call shapefeed.allow_writes('user_group_members');
call shapefeed.allow_writes('workspaces');
call shapefeed.allow_writes('folders');
