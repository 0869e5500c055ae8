#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A target fills up while a disk waits in sync to be switched by hand: the guest goes on, nobody
# takes it for in sync, and when there is space again it comes to be, and is switched over.
# shellcheck source-path=SCRIPTDIR/../system source=../system/disk.bash
. "$(dirname "$0")/../system/disk.bash"

have nbdkit nbdcopy jq || { skip "a full target" "nbdkit, libnbd-bin, jq"; exit; }
half=$((40 * M)) # the guest writes this part
image_size=$((64 * M))
image=$dir/disk.img
truncate -s $image_size "$image"

# room FOLDER SIZE: a file system of its own.
room() {
	mkdir "$1"
	mount -t tmpfs -o "size=$2" none "$1" 2>"$dir/out" || return
	on_exit "umount -l '$1'"
}
target_is() { job_is disk .progress.target "$1"; }
waits() { # what was begun as $pid
	sleep 1.5
	! lib_gone "$pid"
}
ends_well() {
	wait_for 20 lib_gone "$pid" && wait "$pid"
}

# fills TARGET: in sync at first; then the guest writes more than there is room for.
fills() {
	check "$name: it waits in sync" "$bm" relocate disk "$1" --switch manual --guest-latency off
	start_load disk --initial any --fill 100 --iops 1000
	check "$name: the target is full" wait_for 20 target_is target-full
	check "$name: the guest goes on" wait_for 5 more_writes "$(show disk .requests.write)"
	check "$name: it is not in sync" phase_is disk copying
}

# grows TARGET: and what waits ends.
grows() {
	check "$name: the file system grows" mount -o remount,size=128M "${1%/*}"
	check "$name: the job is told to go on" "$bm" job resume disk
	check "$name: what waited ends well" ends_well
	lib_forget "$pid"
}

# ends TARGET
ends() {
	check "$name: the disk is on the target" disk_is_on "$1"
	check "$name: the guest noticed nothing" end_load
	check "$name: the disk serves the target, byte for byte" serves disk "$1"
	check "$name: which holds what the guest wrote" image_fits "$1"
}

wait_for_sync() {
	local name="job wait --for in-sync" target=$dir/one/disk.img
	fills "$target"
	log=$dir/said spawn "$bm" job wait disk --for in-sync
	check "$name waits" waits
	grows "$target"
	check "$name: it is in sync" phase_is disk in-sync
	check "$name: the disk is where it was" disk_is_on "$image"
	check "$name: switch succeeds" "$bm" switch disk
	ends "$target"
}

switch_when_full() {
	local name="switch while the target is full" target=$dir/two/disk.img
	unserve disk
	rm -r "$BLOCKMIRROR_STATE_DIR/disks/disk"
	image=$dir/disk2.img
	truncate -s $image_size "$image"
	serve disk "$image"
	fills "$target"
	log=$dir/said spawn "$bm" switch disk
	check "$name: it waits" waits
	check "$name: the disk is where it was" disk_is_on "$image"
	grows "$target"
	ends "$target"
}

room "$dir/one" 24M || { skip "a full target" "$(cat "$dir/out")"; exit; }
room "$dir/two" 24M
serve disk "$image"
wait_for_sync
switch_when_full
check "it is stopped in the end" unserve disk
