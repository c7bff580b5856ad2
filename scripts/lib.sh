# What the scripts share: where things are, as whom Postgres runs, and a few words of shell. Sourced, never run.
set -euo pipefail
umask 022

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" "$root/extension/shapefeed.control")
target=${CARGO_TARGET_DIR:-$root/target}
command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH

say() { printf '== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need TOOL HOW-TO-GET-IT
need() { command -v "$1" >/dev/null || die "$1 is not installed: $2"; }

need_rust() { need cargo "install Rust from https://rustup.rs"; }
need_node() {
  need node "install Node.js 20.14 or newer, https://nodejs.org"
  need npm "install npm, https://nodejs.org"
  node -e 'const [a, b] = process.versions.node.split("."); process.exit(+a > 20 || +a === 20 && +b >= 14 ? 0 : 1)' ||
    die "Node.js $(node --version) is too old: install 20.14 or newer, https://nodejs.org"
}

# Root may not run Postgres: then it runs as `postgres` where that user exists, and as `nobody` elsewhere.
cluster_user() {
  if [ "$EUID" -ne 0 ]; then id -un; elif id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

# Words before a command that shall run as that user: from /, which every user may read; without backtraces of errors that
# are part of a test. They only exec: a background job's $! is the command's own.
as_cluster_words=(env -C / -u RUST_BACKTRACE)
if [ "$EUID" -eq 0 ]; then
  as_cluster_words+=(HOME=/ setpriv --reuid="$(cluster_user)" --regid="$(id -g "$(cluster_user)")" --clear-groups)
fi
as_cluster_user() { "${as_cluster_words[@]}" "$@"; }

# As root, through sudo otherwise.
as_root() {
  if [ "$EUID" -eq 0 ]; then "$@"; else need sudo "or run as root: $*"; sudo "$@"; fi
}

update_apt() {
  say "updating apt's package lists"
  as_root apt-get update -q
}

# download_debs DIR PACKAGE...: Debian's packages as files, not installed.
download_debs() {
  local dir=$1
  shift
  local download=(env -C "$dir" apt-get -q -o APT::Sandbox::User=root download "$@")
  "${download[@]}" || { update_apt && "${download[@]}"; } || die "apt has no $*: Debian 12's package sources are needed"
}

# pip ARGUMENTS...: Python's, which is installed where there is none.
pip() {
  local words
  for words in "python3 -m pip" pip3 "command pip"; do
    if $words --version >/dev/null 2>&1; then break; fi
    words=
  done
  if [ -z "$words" ]; then
    say "installing python3-pip, to fetch from PyPI"
    as_root apt-get install -q -y --no-install-recommends python3-pip ||
      { as_root apt-get update -q && as_root apt-get install -q -y --no-install-recommends python3-pip; }
    words="python3 -m pip"
  fi
  PIP_ROOT_USER_ACTION=ignore $words --quiet --disable-pip-version-check "$@"
}

# reachable_dir DIR: makes DIR, of which the cluster's user can reach what lies in it. Where it cannot (a checkout under
# /root), DIR becomes a link to a folder below /var/tmp/shapefeed-<uid>.
reachable_dir() {
  local dir base elsewhere
  dir=$(realpath -m "$1")
  mkdir -p "$dir" || die "cannot make the folder $dir"
  as_cluster_user test -x "$dir" && return
  if as_cluster_user test -x "$(dirname "$dir")"; then
    chmod a+x "$dir"
    return
  fi
  base=/var/tmp/shapefeed-$EUID
  mkdir -p "$base"
  [ -O "$base" ] && [ ! -L "$base" ] || die "$base belongs to somebody else: remove it"
  elsewhere=$base/$(printf '%s' "$dir" | cksum | cut -d' ' -f1)
  mkdir -p "$elsewhere"
  chmod 755 "$base" "$elsewhere"
  rmdir "$dir" 2>/dev/null ||
    die "user $(cluster_user) cannot reach $dir: empty that folder, or work in one that every user can reach"
  ln -sfn "$elsewhere" "$dir"
}

# Once more after bring-postgres, which may have made .local a link: as the cluster's user can reach it.
# SHAPEFEED_PG_TREE: another server tree than the one that bring-postgres makes.
find_local() {
  local_dir=$(realpath -m "$root/.local")
  pg_tree=${SHAPEFEED_PG_TREE:-$local_dir/pg}
  pg_bin=${SHAPEFEED_PG_BIN:-$pg_tree/usr/lib/postgresql/15/bin}
}
find_local

# What cargo needs to build the extension.
export_build_env() {
  need_rust
  export PGRX_PG_CONFIG_PATH=${PGRX_PG_CONFIG_PATH:-$pg_tree/usr/lib/postgresql/15/bin/pg_config}
  export LIBCLANG_PATH=${LIBCLANG_PATH:-$local_dir/pg/usr/lib/llvm-14/lib}
  [ -x "$PGRX_PG_CONFIG_PATH" ] || die "$PGRX_PG_CONFIG_PATH is not there: run scripts/bring-postgres"
}

# psql_at PORT DATABASE ARGUMENTS...
psql_at() {
  local port=$1 database=$2
  shift 2
  "$pg_bin/psql" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$port" -U postgres -d "$database" "$@"
}

# free_port: one that nothing listens on now.
free_port() {
  node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close() })'
}

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# The first line of a pid file, if it is a number.
pid_in() { [ -r "$1" ] && sed -n '1s/^\([0-9][0-9]*\)$/\1/p' "$1" || true; }

# is_running PID WORD: the process lives and its command line has WORD. A number alone says little: numbers are used again.
is_running() {
  [ -n "$1" ] && [ -r "/proc/$1/cmdline" ] && tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF -- "$2"
}

# stop_process PID WORD: SIGTERM, after ten seconds SIGKILL.
stop_process() {
  is_running "$1" "$2" || return 0
  kill -TERM "$1" 2>/dev/null || true
  for _ in $(seq 100); do
    is_running "$1" "$2" || return 0
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
}

# The install script of the extension.
install_sql() {
  (cd "$root/sql" && LC_ALL=C && cat schema/*.sql $(ls functions/*.sql grants.sql 2>/dev/null || true))
}
