# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by system tests: TAP, a scratch folder, processes that end with the test, servers.
#
#	. "$(dirname "$0")/lib.sh"
#	have qemu-nbd || { skip "the name" "qemu-nbd is missing"; exit; }
#	truncate -s 64M "$dir/a.img"
#	start_qemu_nbd "$dir/a.sock" "$dir/a.img"
#	check "hammer is content" "$hammer" --time 2 "$uri"
#
# The plan comes last, by itself; the exit status is 1 when a line was "not ok". The working
# directory is the project's top. $BUILD, $dir and $hammer are absolute. Functions that start
# something leave its process in $pid and its address in $uri, and must not be called in a
# subshell: the trap would not know of the process.
# shellcheck disable=SC2034 # $uri, $hammer are for those who source this
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
export LC_ALL=C
export BLOCKMIRROR_CONFIG=/dev/null # that of the machine is not for tests
BUILD=$(realpath "${BUILD:-build}")
hammer=$BUILD/fixtures/hammer
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/blockmirror-test.XXXXXX") || exit 1
pid='' uri=''
lib_shell=$BASHPID lib_count=0 lib_failed=0 lib_planned='' lib_pids=() lib_hooks=()

# A child that is ended before it became the program that it is to run must not clean up.
lib_finish() {
	local status=$? hook
	[ "$BASHPID" = "$lib_shell" ] || exit "$status"
	trap - EXIT
	for hook in "${lib_hooks[@]}"; do eval "$hook"; done
	stop "${lib_pids[@]}"
	rm -rf "$dir"
	[ -n "$lib_planned" ] || plan "$lib_count"
	[ "$lib_failed" -eq 0 ] || status=1
	exit "$status"
}
trap lib_finish EXIT # signals that end bash lead here, too

# TAP

# plan NUMBER: how many lines there are. Without it the plan comes last: as many as there were.
plan() {
	echo "1..$1"
	lib_planned=yes
}

ok() {
	lib_count=$((lib_count + 1))
	echo "ok $lib_count - $1"
}

# not_ok NAME [FILE]: FILE tells why.
not_ok() {
	lib_count=$((lib_count + 1)) lib_failed=$((lib_failed + 1))
	echo "not ok $lib_count - $1"
	[ -z "${2:-}" ] || tail -n 30 "$2" | sed 's/^/# /'
}

skip() {
	lib_count=$((lib_count + 1))
	echo "ok $lib_count - $1 # SKIP $2"
}

# result STATUS NAME [FILE]
result() {
	if [ "$1" -eq 0 ]; then ok "$2"; else not_ok "$2" "${3:-}"; fi
}

# lib_run COMMAND…: within ${LIMIT:-120} s, output to $dir/out. Functions get no limit.
lib_run() {
	if [ "$(type -t "$1")" = file ]; then
		timeout -k 5 "${LIMIT:-120}" "$@" >"$dir/out" 2>&1
	else
		"$@" >"$dir/out" 2>&1
	fi
}

# check NAME COMMAND…: it must succeed. What it said is in $dir/out.
check() {
	local name=$1
	shift
	lib_run "$@"
	result $? "$name" "$dir/out"
}

# check_fails NAME STATUS TEXT COMMAND…: it must end with STATUS and say TEXT (a grep -E pattern,
# or empty).
check_fails() {
	local name=$1 expected=$2 text=$3 status
	shift 3
	lib_run "$@"
	status=$?
	echo "[exit status $status; $expected and \"$text\" expected]" >>"$dir/out"
	[ $status -eq "$expected" ] &&
		{ [ -z "$text" ] || grep -qE -- "$text" <(head -n -1 "$dir/out"); }
	result $? "$name" "$dir/out"
}

# have PROGRAM…: whether all of them are there.
have() {
	local program
	for program; do command -v "$program" >/dev/null || return 1; done
}

# Processes

# spawn COMMAND…: in the background; output to ${log:-$dir/log}.
spawn() {
	"$@" >>"${log:-$dir/log}" 2>&1 </dev/null &
	pid=$!
	lib_pids+=("$pid")
}

# stop PID…: SIGTERM, after 2 s SIGKILL, and waits. Only for what spawn has started.
stop() {
	local p
	for p; do kill -CONT "$p" 2>/dev/null; kill -TERM "$p" 2>/dev/null; done
	for p; do
		wait_for 2 lib_gone "$p" || kill -KILL "$p" 2>/dev/null
		wait "$p" 2>/dev/null
		lib_forget "$p"
	done
}

# kill9 PID…: SIGKILL, and waits.
kill9() {
	local p
	for p; do
		kill -KILL "$p" 2>/dev/null
		wait "$p" 2>/dev/null
		lib_forget "$p"
	done
}

# A process that has ended and was not waited for is gone, too.
lib_gone() {
	local state
	state=$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null)
	[ -z "$state" ] || [ "$state" = Z ]
}

# A number may be given to another process: it is not killed twice.
lib_forget() {
	local p left=()
	for p in "${lib_pids[@]}"; do [ "$p" = "$1" ] || left+=("$p"); done
	lib_pids=("${left[@]}")
}

# on_exit COMMAND: one string, for eval, when the test ends; processes are still there then.
on_exit() {
	lib_hooks+=("$1")
}

# wait_for SECONDS COMMAND…: until it succeeds; fails when it does not in time.
wait_for() {
	local end=$((${EPOCHREALTIME/./} + $1 * 1000000)) asked=0
	shift
	until "$@"; do
		[ "${EPOCHREALTIME/./}" -lt $end ] || return 1
		lib_nap "0.0$((asked++ < 10 ? 2 : 8))"
	done
}

# lib_nap SECONDS: without a process. What asks again and again leaves little to those it waits for.
exec {lib_never}<> <(:)
lib_nap() { read -rt "$1" -u "$lib_never" || true; }

# free_port: prints a TCP port that nobody listens to on 127.0.0.1.
free_port() {
	local port
	for _ in $(seq 50); do
		port=$((20000 + RANDOM % 12000))
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo $port; return; }
	done
	return 1
}

# Servers. Each returns when clients may connect; a socket that was left behind is removed.

nbd_uri() {
	echo "nbd+unix:///${2:-}?socket=$1"
}

# lib_serve SOCKET COMMAND…
lib_serve() {
	local socket=$1
	shift
	rm -f "$socket"
	uri=$(nbd_uri "$socket")
	spawn "$@"
	wait_for 10 lib_listens "$socket" "$pid" && ! lib_gone "$pid"
}

# Ends the waiting when the server has ended, too.
lib_listens() {
	lib_gone "$2" || grep -q " 00010000 .* $1\$" /proc/net/unix
}

# start_qemu_nbd SOCKET IMAGE [OPTION…]: raw, unless told otherwise; O_DIRECT where it works.
start_qemu_nbd() {
	local socket=$1 image=$2 cache=writeback
	shift 2
	dd if="$image" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && cache=none
	lib_serve "$socket" qemu-nbd -k "$socket" -t -e 16 -f raw --cache=$cache --discard=unmap "$@" \
		"$image"
}

# start_nbdkit SOCKET ARGUMENT…: of nbdkit; version 1.32 dies when a client goes without a word.
start_nbdkit() {
	local socket=$1
	shift
	lib_serve "$socket" nbdkit -f -U "$socket" "$@"
}

# start_blockmirror_nbd SOCKET URI [OPTION…]
start_blockmirror_nbd() {
	local socket=$1 image=$2
	shift 2
	lib_serve "$socket" "$BUILD/blockmirror-nbd" --unix "$socket" "$@" "$image"
}

# start_tgt DIR [MIB]: an iSCSI target (fixtures/tgt.sh); $uri:disk/1 is its first disk.
start_tgt() {
	uri=$(fixtures/tgt.sh start "$@" 2>>"$dir/log") || return
	on_exit "fixtures/tgt.sh stop '$1' >>'$dir/log' 2>&1"
}

# Contents

# json FILE FILTER: what jq prints of the last line of FILE (a report with --json).
json() {
	tail -n 1 "$1" | jq -r "$2"
}

# json_is FILE FILTER: whether it is true.
json_is() {
	tail -n 1 "$1" | jq -e "$2" >/dev/null
}

# compare_images A B SIZE: whether the first SIZE bytes are there in both, and equal.
compare_images() {
	local image
	for image in "$1" "$2"; do
		[ "$(stat -Lc %s "$image")" -ge "$3" ] || { echo "$image is shorter than $3"; return 1; }
	done
	cmp -n "$3" "$1" "$2"
}
