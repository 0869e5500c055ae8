#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The storage that a disk lives on goes away under full load, again and again, and comes back: the
# guest waits, sees no error, and nothing is lost; also what a server had acknowledged and forgets.
# shellcheck source-path=SCRIPTDIR/../system source=disk.bash
. "$(dirname "$0")/../system/disk.bash"

have nbdkit nbdcopy jq || { skip "storage that is lost" "nbdkit, libnbd-bin, jq"; exit; }
half=$((24 * M)) image_size=$((48 * M))
KILLS=${KILLS:-3}

storage_is() { [ "$(show disk .storage.state)" = "$1" ]; }
losses() { [ "$(show disk .storage.losses)" -ge "$1" ]; }
new_disk() {
	rm -rf "$dir/run/disks/disk.log" "$BLOCKMIRROR_STATE_DIR/disks/disk"
	rm -f "$dir/disk.img"
	truncate -s $image_size "$dir/disk.img" "$1"
	serve disk "$dir/disk.img"
}

# kills NAME START…: the server, which START starts at $uri, is killed again and again.
kills() {
	local name=$1 i server
	shift
	check "$name: it serves" "$@"
	server=$pid
	check "$name: the disk is served from a file" new_disk "$dir/remote.img"
	start_load disk --initial any --sizes 4k:128k "${load_options[@]}"
	check "$name: and moves there" "$bm" relocate disk "$uri" --overwrite --guest-latency off
	for i in $(seq "$KILLS"); do
		sleep 0.$((2 + RANDOM % 8))
		kill9 "$server"
		wait_for 5 storage_is unreachable || not_ok "$name: the loss is noticed"
		sleep 0.$((1 + RANDOM % 5))
		"$@" || not_ok "$name: it is started again"
		server=$pid
		wait_for 10 storage_is reachable || not_ok "$name: it is back" <("$bm" show disk)
	done
	check "$name: it was lost $KILLS times" losses "$KILLS"
	check "$name: the guest noticed nothing" end_load
	check "$name: the disk is what was written" state_fits "$(disk_uri disk)"
	check "$name: it is stopped" unserve disk
	stop "$server"
}

own() { start_blockmirror_nbd "$dir/s" "$dir/remote.img"; }
# It keeps what is not flushed in a file that has no name: killed, it has forgotten.
forgetful() { start_nbdkit "$dir/s" --filter=cache file "$dir/remote.img" cache=writeback; }

truncate -s $image_size "$dir/remote.img"
kills "blockmirror-nbd" own
check "blockmirror-nbd: the image holds what the guest wrote" image_fits "$dir/remote.img"
rm "$dir/remote.img"
truncate -s $image_size "$dir/remote.img"
# A trim passes its cache by: what was trimmed reads as it was, until the server is killed.
load_options=(--mix read=30,write=50,zero=5,nohole=3,flush=2)
kills "a server that forgets" forgetful
