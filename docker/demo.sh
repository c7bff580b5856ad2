#!/usr/bin/env bash
# The demo's tables in DATABASE_URL, where they are not there yet, and its page in /page, with tokens that JWT_SECRET signs.
set -euo pipefail
cd "$(dirname "$0")"

sql() { psql -X -q -v ON_ERROR_STOP=1 "$DATABASE_URL" "$@"; }

if [ "$(sql -A -t -c "select to_regclass('public.company_access') is null")" = t ]; then
  sql --single-transaction -o /dev/null -f scripts/sample/app.sql
fi
sql -f scripts/sample/app-feeds.sql
sql -f scripts/sample/visitor.sql
cp -r page/. /page/
node tokens.mjs "$JWT_SECRET" >/page/users.json
