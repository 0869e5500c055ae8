#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The storage that a disk lives on goes away under load, again and again, and comes back: the guest
# waits, sees no error, and nothing is lost; also what a server had acknowledged and forgets. Another
# image in its place is refused.
# shellcheck source-path=SCRIPTDIR/../system source=disk.bash
. "$(dirname "$0")/../system/disk.bash"

have nbdkit nbdcopy jq || { skip "storage that is lost" "nbdkit, libnbd-bin, jq"; exit; }
half=$((16 * M)) image_size=$((24 * M))
KILLS=${KILLS:-$([ -n "${LONG:-}" ] && echo 10 || echo 1)}
remote=$dir/remote.img

storage_is() { [ "$(show disk .storage.state)" = "$1" ]; }
storage_says() { show disk .storage.why | grep -q "$1"; }
losses() { [ "$(show disk .storage.losses)" -ge "$1" ]; }
rewritten() { [ "$(show disk .storage.rewritten_bytes)" -gt 0 ]; }
own() {
	start_blockmirror_nbd "$dir/s" "$remote" || return
	server=$pid
}
# It keeps what is not flushed in a file that has no name: killed, it has forgotten. A trim passes its
# cache by: what was trimmed reads as it was, until the server is killed.
forgetful() {
	start_nbdkit "$dir/s" --filter=cache file "$remote" cache=writeback || return
	server=$pid
}
unit() {
	fixtures/tgt.sh start "$dir/tgt" 24 >"$dir/tgt.uri" 2>>"$dir/log" || return
	uri=$(cat "$dir/tgt.uri"):disk/1 server=''
}
no_trim=(--mix "read=30,write=50,zero=5,nohole=3,flush=2")

# on_server NAME [OPTION…]: a disk that has moved to the server at $uri, under load.
on_server() {
	local name=$1
	shift
	rm -rf "$BLOCKMIRROR_STATE_DIR/disks/disk"
	rm -f "$dir/disk.img"
	truncate -s $image_size "$dir/disk.img"
	check "$name: a disk is served" serve disk "$dir/disk.img"
	start_load disk --initial any --sizes 4k:128k --iops 2000 "$@"
	check "$name: it moves there" "$bm" relocate disk "$target" --overwrite --guest-latency off
}

# new_server NAME START: at $target, with an empty image; its process is $server.
new_server() {
	rm -f "$remote"
	truncate -s $image_size "$remote"
	check "$1: it serves" "$2"
	target=$uri
}

kill_server() {
	if [ -n "$server" ]; then kill9 "$server"; else fixtures/tgt.sh kill "$dir/tgt"; fi
}

# dies START: the server, and is started again.
dies() {
	kill_server
	wait_for 10 storage_is unreachable || not_ok "the loss is noticed" <("$bm" show disk)
	sleep 0.$((1 + RANDOM % 5))
	"$1" || not_ok "it is started again" "$dir/log"
	wait_for 20 storage_is reachable || not_ok "it is back" <("$bm" show disk)
	sleep 0.$((2 + RANDOM % 8))
}

# kills NAME START [OPTION…]: again and again.
kills() {
	local name=$1 start=$2
	shift 2
	new_server "$name" "$start"
	on_server "$name" "$@"
	for _ in $(seq "$KILLS"); do dies "$start"; done
	check "$name: it was lost $KILLS times" losses "$KILLS"
}

# ends NAME
ends() {
	check "$1: the guest noticed nothing" end_load
	check "$1: the disk is what was written" state_fits "$(disk_uri disk)"
	check "$1: it is stopped" unserve disk
	[ -z "$server" ] || stop "$server"
}

stops_for_a_while() {
	kill -STOP "$server"
	sleep 3
	kill -CONT "$server"
}

is_refused() {
	kill9 "$server"
	wait_for 10 storage_is unreachable
	mv "$remote" "$dir/right.img"
	head -c $image_size /dev/urandom >"$remote"
	fingerprint "$remote"
	own
	wait_for 10 storage_says 'other content' && storage_is unreachable && untouched "$remote"
}

comes_back() {
	kill9 "$server"
	mv "$dir/right.img" "$remote"
	own
	wait_for 20 storage_is reachable
}

name="blockmirror-nbd"
kills "$name" own
check "$name: it stands still for 3 s" stops_for_a_while
check "$name: another image in its place is refused, and not written to" is_refused
check "$name: show says since when" grep -q 'unreachable since' <("$bm" show disk)
check "$name: the right one is taken" comes_back
ends "$name"
check "$name: the image holds what the guest wrote" image_fits "$remote"

name="a server that forgets"
kills "$name" forgetful "${no_trim[@]}"
check "$name: what it forgot was written again" rewritten
ends "$name"

if [ -n "${LONG:-}" ] && have tgtd tgtadm; then
	on_exit "fixtures/tgt.sh stop '$dir/tgt' >>'$dir/log' 2>&1"
	name="tgtd"
	kills "$name" unit
	ends "$name"
fi

# The time is over: errors, and it comes back all the same.
name="a time limit"
new_server "$name" own
rm -r "$BLOCKMIRROR_STATE_DIR/disks/disk"
check "$name: a disk is served" serve disk "$uri" --reconnect-timeout 1s
kill9 "$server"
check_fails "$name: the guest gets an error" 1 'Input/output error' \
	nbdcopy "$(disk_uri disk)" null:
check "$name: show says so" storage_is failed
check "$name: the server is back" own
check "$name: so is the disk" wait_for 20 storage_is reachable
check "$name: and can be read" nbdcopy "$(disk_uri disk)" null:
check "$name: it is stopped" unserve disk

# Who ends the disk's process while its storage is away does not wait for it.
check "$name: the disk is served again" serve disk
kill9 "$server"
spawn timeout 60 nbdcopy "$(disk_uri disk)" null:
reader=$pid
check "$name: its storage is away" wait_for 10 storage_is unreachable
stop "$reader"
check "$name: it can be stopped all the same" unserve disk
