#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A move with an undo window: the old copy follows the new one, so that the disk can go back without
# losing what was written since; the window's end, by time or by release, is the end of that.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have jq getfattr nbdcopy || { skip "undo" "jq, attr, libnbd-bin"; exit; }
image_size=$((64 * M)) half=$((32 * M)) # behind it no load touches
a=$dir/a/disk.img b=$dir/b/disk.img
mkdir "$dir/a" "$dir/b"
head -c $image_size /dev/urandom >"$a"
cp "$a" "$dir/original"

in_sync() { [ "$(show disk .state)" = in-sync ]; }
move() { "$bm" relocate disk "$@"; }
state_is() { job_is disk '"\(.state) \(.phase)"' "$1"; }
same_end() { cmp -i $half -n $half "$1" "$dir/original"; }

# in_window OLD NEW: what holds while it is open.
in_window() {
	check "$name: the disk is on the new image" disk_is_on "$2"
	check "$name: the job says that it can be undone" state_is "running undo-window"
	check "$name: job wait does not wait for the window" timeout 5 "$bm" job wait disk
	check "$name: the old image is marked as old" wait_for 5 marked "$1" retired
	check "$name: the new one as the truth" marked "$2" active
	check_fails "$name: the old one is not served" 3 "E_(RETIRED|LOCKED)" "$bm" serve thief "$1"
	check "$name: the guest goes on" works
	check "$name: both are equal all the time" wait_for 10 in_sync
}

going_back() {
	name="a window"
	check "$name: a move" move "$dir/b" --undo-window 10m
	in_window "$a" "$b"
	check_fails "$name: it cannot be cancelled" 3 "E_FINISHED.*undo" "$bm" job cancel disk
	check_fails "$name: or begun again" 3 E_BUSY "$bm" relocate disk "$dir/c.img"
	check_fails "$name: nor is the disk stopped" 3 "E_BUSY.*release" "$bm" stop disk
	check "$name: both are compared" "$bm" verify disk
	check "undo: the disk goes back" "$bm" undo disk
	check "undo: it is on its old image" disk_is_on "$a"
	check "undo: the job is undone" state_is "undone ended"
	check "undo: the old image is the truth again" marked "$a" active
	check "undo: the new one is old" marked "$b" retired
	check "undo: the guest goes on" works
	check_fails "undo: once is enough" 4 E_NOT_FOUND "$bm" undo disk
}

# Whoever serves the disk is killed: the next one keeps the window, and the old image up to date.
killed() {
	name="killed in a window"
	check "$name: a move" move "$b" --overwrite --undo-window 10m
	check "$name: both are flushed" sleep 6
	kill -KILL "$disk_pid"
	lib_forget "$disk_pid"
	check "$name: the disk is served again" serve disk
	in_window "$a" "$b"
	check "$name: with its map" job_is disk .resumed.from map
	check "$name: undo" "$bm" undo disk
	check "$name: it is on its old image" disk_is_on "$a"
	check "$name: the guest goes on" works
}

ending() {
	name="a short window"
	check "$name: a move" move "$b" --overwrite --undo-window 2s
	check "$name: it ends by itself" timeout 20 "$bm" job wait disk --for released
	check "$name: the move is done" state_is "done ended"
	check "$name: the disk stays" disk_is_on "$b"
	check_fails "$name: it cannot be undone any more" 4 E_NOT_FOUND "$bm" undo disk
	name="released"
	check "$name: a move" move "$a" --overwrite --undo-window 1h --delete-source
	check "$name: the source is there as long as it may be needed" test -e "$b"
	check "$name: release" "$bm" release disk
	check "$name: the source is gone then" test ! -e "$b"
	check "$name: the disk stays" disk_is_on "$a"
	check "without a window: a move" move "$b"
	check_fails "without a window: no undo" 4 E_NOT_FOUND "$bm" undo disk
	check_fails "a window that is no time" 2 E_USAGE "$bm" relocate disk "$dir/c.img" \
		--undo-window soon
}

serve disk "$a"
start_load disk --initial any --reconnect 60 --iops 500 --sizes 512:128k
going_back
killed
ending
check "the guest lost nothing, through all of that" end_load
check "it is there for others, too" image_fits "$b"
check "so is what it never touched" same_end "$b"
check "it is stopped in the end" unserve disk
