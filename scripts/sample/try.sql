select * from shapefeed.tracked_tables;
select * from shapefeed.status;
update flights set dep_delay = 120 where id = 1;
