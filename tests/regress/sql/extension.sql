-- What CREATE EXTENSION makes, and that it goes again.
select extname, extversion, nspname from pg_extension join pg_namespace on pg_namespace.oid = extnamespace where extname = 'shapefeed';
drop extension shapefeed;
select count(*) from pg_class where relnamespace = (select oid from pg_namespace where nspname = 'shapefeed');
