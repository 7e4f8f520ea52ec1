#!/bin/sh
# All tests: on a PostgreSQL of their own, which goes away with them. Called by ./dev test.
set -eu
cd "$(dirname "$0")/.."

bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
test -n "$bin" || bin=$(dirname "$(command -v initdb)")
data=$(mktemp -d /tmp/rdev-test-pg.XXXXXX)
as_owner() { "$@"; }
if test "$(id -u)" = 0; then
    chown postgres "$data"
    as_owner() { (cd / && setpriv --reuid postgres --regid postgres --clear-groups "$@"); }
fi
. tests/cluster.sh
stop() {
    cluster_down
    as_owner "$bin/pg_ctl" -D "$data/db" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$data"
}
trap stop EXIT
trap 'exit 1' INT TERM
as_owner "$bin/initdb" -D "$data/db" -U postgres -E UTF8 --locale=C.UTF-8 --auth=trust >/dev/null
# Tests do not survive a power cut, so nothing is synced; the crash tests kill rdev, not the kernel.
as_owner "$bin/pg_ctl" -D "$data/db" -w -l "$data/log" -o "-c listen_addresses='' -c unix_socket_directories=$data -c fsync=off \
    -c full_page_writes=off -c max_connections=400" start >/dev/null
export DATABASE_URL="postgres:///postgres?host=$data&user=postgres"

clients="${CARGO_TARGET_DIR:-target}/test-clients"
tests/clients/install.sh "$clients"
RDEV_TEST_CLIENTS=$(cd "$clients" && pwd)
export RDEV_TEST_CLIENTS

cargo nextest run --locked --no-fail-fast "$@"
if test $# = 0; then
    # Stories for a cluster that is one: shown as skipped unless there is one.
    cluster_up "$data/cluster.log"
    cluster_say_skipped
    if test -n "${RDEV_TEST_KUBECONFIG:-}"; then
        # One after the other: the cluster's node is this machine.
        cargo nextest run --locked --no-fail-fast --test-threads 1 --test it --run-ignored only -E 'test(/^kube::real::/)'
        cluster_down
    fi
    cargo test --locked --doc --quiet
    cargo build --locked
    RDEV="${CARGO_TARGET_DIR:-target}/debug/rdev" tests/first_hour.sh
    cluster_say_skipped
fi
