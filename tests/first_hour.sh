#!/bin/sh
# What the README promises for the first hour, with nothing but curl and git: keys, a project
# from a repository on disk, a checkout and its push, a session and its commands, a stream that
# is cut and resumed, and a server that is killed in the middle of a command.
# RDEV names the program; it runs on its embedded defaults in a folder of its own.
set -eu

rdev=$(realpath "${RDEV:?the program to try}")
work=$(mktemp -d /tmp/rdev-first-hour.XXXXXX)
chmod 755 "$work"
cd "$work"
server=
finish() {
    code=$?
    test -z "$server" || kill "$server" 2>/dev/null || true
    test $code = 0 || { echo "--- the server's log"; tail -n 20 "$work/err"; } >&2
    sleep 0.5
    cd / && rm -rf "$work"
    exit $code
}
trap finish EXIT

step() { echo "first hour: $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
# field JSON PATH: a value out of a JSON text.
field() { printf '%s' "$1" | python3 -c 'import json,sys
v = json.load(sys.stdin)
for part in sys.argv[1].split("."):
    v = v[int(part)] if part.isdigit() else v[part]
print(v if isinstance(v, str) else json.dumps(v))' "$2"; }
# api METHOD PATH [BODY]: fails on an error status.
api() { curl -sS --fail-with-body -X "$1" "$url$2" -H "Authorization: Bearer $key" ${3:+-d "$3"}; }
expect() { case "$1" in *"$2"*) ;; *) fail "no \"$2\" in: $1" ;; esac; }

start() {
    RDEV_IMPORT_ROOT="$work/sources" RDEV_LISTEN="127.0.0.1:${port:-0}" RDEV_DATA_DIR="$work/data" \
        "$rdev" serve >"$work/out" 2>>"$work/err" &
    server=$!
    for _ in $(seq 400); do
        grep -q '^listening on ' "$work/out" && break
        kill -0 "$server" 2>/dev/null || fail "the server did not start"
        sleep 0.1
    done
    url=$(sed -n 's/^listening on //p' "$work/out")
    port=${url##*:}
}

step "a repository on disk"
mkdir -p sources
git init -q -b main sources/hello
cd sources/hello
mkdir src
printf '[package]\nname = "hello"\nversion = "0.1.0"\nedition = "2021"\n' >Cargo.toml
printf 'pub fn two() -> u32 { 2 }\n#[test]\nfn two_is_two() { assert_eq!(two(), 2); }\n' >src/lib.rs
printf 'all:\n\t@echo made\n' >Makefile
printf 'print("from python", 6 * 7)\n' >answer.py
git add . && git -c user.name=me -c user.email=me@example.com commit -qm 'a crate'
cd "$work"

step "the server on its defaults"
start
key=$(cat data/admin.key)

step "1. the admin key makes a narrower one"
made=$(api POST /keys '{"name":"ci","scopes":["projects:read","projects:execute"]}')
admin=$key
ci=$(field "$made" data.key)

step "2. a project from the repository"
api POST /projects "{\"id\":\"hello\",\"import_url\":\"file://$work/sources/hello\"}" >/dev/null
key=$ci
code=$(curl -s -o /dev/null -w '%{http_code}' -X POST "$url/projects" -H "Authorization: Bearer $key" -d '{"id":"other"}')
test "$code" = 403 || fail "the narrow key made a project: $code"

step "3. branches, a checkout, a push, a refused one, checkin, a dead token"
expect "$(api GET /projects/hello/checkout/branches)" '"name":"main"'
checkout=$(api POST /projects/hello/checkout '{"new_branch":"feature/one"}')
clone=$(field "$checkout" data.clone_url)
git clone -q --branch feature/one "$clone" clone
cd clone
git config user.name me && git config user.email me@example.com
echo more >more.txt && git add . && git commit -qm more && git push -q origin feature/one
if git push origin HEAD:main 2>"$work/refused"; then fail "a push to main went through"; fi
expect "$(cat "$work/refused")" "feature/one"
cd "$work"
expect "$(api POST "/projects/hello/checkout/$(field "$checkout" data.id)/checkin" '{}')" "Token has been revoked."
if git ls-remote "$clone" >/dev/null 2>&1; then fail "the token is alive after the checkin"; fi

step "4. a session: cargo test, make, python, git push"
session=$(api POST /projects/hello/sessions '{"branch":"feature/one"}')
sid=$(field "$session" data.id)
run() { api POST "/projects/hello/sessions/$sid/exec" "$1"; }
tested=$(run '{"args":["cargo","test"],"wait":"60s"}')
test "$(field "$tested" data.exit_code)" = 0 || fail "cargo test: $tested $(api GET "$(field "$tested" data.output_url)")"
expect "$(api GET "$(field "$tested" data.output_url)")" "two_is_two ... ok"
expect "$(api GET "$(field "$(run '{"command":"make","wait":"30s"}')" data.output_url)")" made
expect "$(api GET "$(field "$(run '{"command":"python3 answer.py","wait":"30s"}')" data.output_url)")" "from python 42"
pushed=$(run '{"script":"echo work > work.txt && git add . && git commit -qm work && git push","wait":"30s"}')
test "$(field "$pushed" data.exit_code)" = 0 || fail "git push in the session: $(api GET "$(field "$pushed" data.output_url)")"

step "   a live stream, cut and resumed by Last-Event-ID"
counted=$(run '{"script":"for i in $(seq 1 60); do echo line $i; sleep 0.1; done"}')
events=$(field "$counted" data.events_url)
stream=$(field "$counted" data.stream_id)
curl -sN --max-time 2 "$url$events" -H "Authorization: Bearer $key" >first || true
last=$(sed -n 's/^id: //p' first | tail -n 1)
test -n "$last" || fail "nothing was streamed within two seconds"
ticket=$(field "$(api POST /stream-tickets "{\"path\":\"$events\"}")" data.url)

step "5. SIGKILL in the middle of the command, and a new start"
kill -9 "$server"
wait "$server" 2>/dev/null || true
start
curl -sN --max-time 60 "$url$ticket" -H "Last-Event-ID: $last" >second
cat first second | sed -n 's/^id: //p' >ids
{ seq -f "$stream:%.0f" 1 60; echo "$stream:final"; } >wanted
cmp ids wanted || fail "the stream has a gap or a repeat: $(diff ids wanted)"
expect "$(cat second)" '"exit_code":0'
expect "$(api GET /whoami)" '"name":"ci"'
expect "$(api GET "/projects/hello/sessions/$sid")" '"status":"active"'
pushed=$(run '{"script":"date > again.txt && git add . && git commit -qm again && git push","wait":"30s"}')
test "$(field "$pushed" data.exit_code)" = 0 || fail "git push after the restart: $(api GET "$(field "$pushed" data.output_url)")"

step "   cancel ends the whole group, checkin ends the session"
sleeper=$(run '{"script":"sleep 4711 & sleep 4711"}')
cancelled=$(api DELETE "/projects/hello/commands/$(field "$sleeper" data.command_id)")
test "$(field "$cancelled" data.termination)" = cancelled || fail "cancel: $cancelled"
if pgrep -f '^sleep 4711$' >/dev/null; then fail "a process outlived its command"; fi
run '{"script":"echo lost > lost.txt","wait":"10s"}' >/dev/null
ended=$(api POST "/projects/hello/sessions/$sid/checkin" '{}')
expect "$ended" "Session ended."
expect "$ended" "rdev/rescue/$sid"
git clone -q --branch "rdev/rescue/$sid" "$(printf %s "$url" | sed "s#://#://rdev:$admin@#")/git/hello.git" rescued
test "$(cat rescued/lost.txt)" = lost || fail "the work was not rescued"

step "   a review passes and its branch is merged"
curl -sf -o /dev/null -X PATCH "$url/projects/hello" -H "Authorization: Bearer $admin" -d '{"review_command":["make"]}'
checkout=$(api POST /projects/hello/checkout '{"branch":"feature/one"}')
checked=$(api POST "/projects/hello/checkout/$(field "$checkout" data.id)/checkin" '{"auto_merge":true}')
expect "$checked" "Review task queued."
review=$(field "$checked" data.review_task_id)
expect "$(api GET "/jobs/$review?wait=60s")" '"verdict":"pass"'
for _ in $(seq 50); do
    shown=$(api GET "/projects/hello/reviews/$review")
    case $shown in *completed_at*) break ;; esac
    sleep 0.1
done
expect "$shown" '"merge":"merged"'

echo "first hour: all of it works"
