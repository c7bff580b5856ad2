-- What CREATE EXTENSION makes, and that it goes again.
select extname, extversion, nspname from pg_extension join pg_namespace on pg_namespace.oid = extnamespace where extname = 'shapefeed';
drop extension shapefeed;
select count(*) from pg_class where relnamespace = (select oid from pg_namespace where nspname = 'shapefeed');
-- Not into a schema of somebody else.
drop schema shapefeed;
create role regress_squatter;
create schema shapefeed authorization regress_squatter;
\set SHOW_CONTEXT never
create extension shapefeed;
drop schema shapefeed;
drop role regress_squatter;
create extension shapefeed;
