-- What this server's shared memory says about the database: no row is missing, but columns are null without preloading.
create function shapefeed._server(out preloaded bool, out worker_pid int4, out head int8) returns setof record
  strict language c as 'MODULE_PATHNAME', 'server_wrapper';
