# SPDX-License-Identifier: BSD-3-Clause
# Sourced by dev_*.sh: TAP, a folder of one's own, and processes that end with the test.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
build=$(realpath "${BUILD:-build}")
devcheck=$build/fixtures/devcheck
dir=$(mktemp -d)
pids=()
count=0

finish() {
	local pid
	for pid in "${pids[@]}"; do kill -CONT "$pid"; kill -KILL "$pid"; done 2>/dev/null
	wait 2>/dev/null
	type -t cleanup >/dev/null && cleanup
	rm -rf "$dir"
	echo "1..$count"
}
trap finish EXIT

# result STATUS NAME: one line of TAP, with what the command said when it failed.
result() {
	count=$((count + 1))
	if [ "$1" -eq 0 ]; then
		echo "ok $count - $2"
	else
		echo "not ok $count - $2"
		sed 's/^/# /' "$dir/out" 2>/dev/null | tail -n 20
	fi
}

# check NAME COMMAND…: it must succeed.
check() {
	local name=$1
	shift
	timeout 120 "$@" >"$dir/out" 2>&1
	result $? "$name"
}

# refused NAME STATUS CODE COMMAND…: it must end with that status and say that code.
refused() {
	local name=$1 expected=$2 code=$3 status
	shift 3
	timeout 120 "$@" >"$dir/out" 2>&1
	status=$?
	echo "exit status $status, $expected with $code expected" >>"$dir/out"
	[ $status -eq "$expected" ] && grep -q "^$code: " "$dir/out"
	result $? "$name"
}

skip() {
	count=$((count + 1))
	echo "ok $count - $1 # SKIP $2"
}

# begin COMMAND…: in the background; its process is $!.
begin() {
	"$@" >>"$dir/log" 2>&1 </dev/null &
	pids+=($!)
	disown
}

# wait_for FILE: until it exists.
wait_for() {
	for _ in $(seq 200); do
		[ -e "$1" ] && return
		sleep 0.02
	done
}

# has_begun FILE: waits until the devcheck that writes there is in the middle of it.
has_begun() {
	for _ in $(seq 1000); do
		grep -q ^begun "$1" && break
		sleep 0.02
	done
	sleep 0.3
}

# dies_with PID NAME URI [OPTION…]: devcheck while the server PID is killed.
dies_with() {
	local pid=$1 name=$2 uri=$3 check
	shift 3
	timeout 120 "$devcheck" -k "$@" "$uri" 20 >"$dir/out" 2>&1 &
	check=$!
	has_begun "$dir/out"
	kill -KILL "$pid"
	wait $check
	result $? "$name"
}
