call shapefeed.track('planes');
select * from shapefeed.visible_rows('flights', $$carrier = 'UA' and dep_delay > 600$$);
select * from shapefeed.changes('flights', $$carrier = 'UA'$$) order by position desc limit 10;
select * from shapefeed.status;
