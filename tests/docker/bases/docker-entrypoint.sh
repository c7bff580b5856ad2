#!/usr/bin/env bash
# Does what the official image's entrypoint does with POSTGRES_DB, POSTGRES_PASSWORD, /docker-entrypoint-initdb.d and arguments.
set -eo pipefail

if [ "${1:0:1}" = - ]; then set -- postgres "$@"; fi
if [ "$1" = postgres ] && [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA"
  chown -R postgres "$PGDATA" /var/run/postgresql
  exec gosu postgres "${BASH_SOURCE[0]}" "$@"
fi
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  if [ -z "$POSTGRES_PASSWORD" ]; then
    echo "error: database is uninitialized and POSTGRES_PASSWORD is not set" >&2
    exit 1
  fi
  chmod 700 "$PGDATA"
  initdb --username=postgres --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD")
  printf '\nhost all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
  # This server does not listen by TCP; it is given the arguments of the later one.
  pg_ctl -D "$PGDATA" -o "$(printf '%q ' "${@:2}" -c listen_addresses='' -p 5432)" -w start
  psql=(psql -v ON_ERROR_STOP=1 --no-psqlrc --username postgres --no-password)
  if [ -n "$POSTGRES_DB" ] && [ "$POSTGRES_DB" != postgres ]; then
    "${psql[@]}" --dbname postgres --set db="$POSTGRES_DB" <<<'create database :"db"'
  fi
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      *.sql)
        echo "running $file"
        "${psql[@]}" --dbname "${POSTGRES_DB:-postgres}" -f "$file"
        ;;
      *) echo "ignoring $file" ;;
    esac
  done
  pg_ctl -D "$PGDATA" -m fast -w stop
  printf '\nPostgreSQL init process complete; ready for start up.\n\n'
fi
exec "$@"
