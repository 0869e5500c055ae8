#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What can be done with a job: switch by hand, pause, cancel, limit, delete the source; copies of
# disks that are served and of images that are not; comparisons.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-img nbdcopy nbdkit jq || { skip "jobs" "qemu-utils, libnbd-bin, nbdkit, jq"; exit; }
a=$dir/a/disk.img b=$dir/b/disk.img
mkdir -p "$dir/b" "$dir/c"
make_image "$a"
serve disk "$a"

manual_switch() {
	start_load disk --initial any
	check "--switch manual waits in sync" "$bm" relocate disk "$dir/b" --switch manual
	grep -q "in sync; 'blockmirror switch disk' switches over" "$dir/out"
	result $? "and says how to go on"
	sleep 0.5
	check "it stays in sync" phase_is disk in-sync
	check "the disk is where it was" disk_is_on "$a"
	check_fails "a second move is refused meanwhile" 3 E_BUSY "$bm" relocate disk "$dir/c"
	check "switch switches" "$bm" switch disk
	check "now it is on the target" disk_is_on "$b"
	check "the guest noticed nothing" end_load
	check "the target is what is served" serves disk "$b"
	check_fails "there is nothing to switch any more" 4 E_NOT_FOUND "$bm" switch disk
}

copied_bytes() { job disk '.progress.copied_bytes + .progress.zero_bytes'; }

# A target that takes its time, so that there is something to pause, cancel, and limit.
slow() { echo "fault:op=write,delay=20ms;$dir/$1"; }

pausing() {
	local before after
	truncate -s $image_size "$dir/slow.img"
	start_load disk --initial any --iops 300
	check "a move begins" "$bm" relocate disk "$(slow slow.img)" --detach --overwrite --rate 4M
	[ "$(cat "$dir/out")" = disk.2 ]
	result $? "--detach prints the job's id and does not wait"
	check "it is paused" "$bm" job pause disk.2
	sleep 0.3 # what was in flight
	before=$(copied_bytes)
	sleep 0.7
	after=$(copied_bytes)
	check "nothing is copied: $before, $after" test "$before" -eq "$after"
	check "it says so" job_is disk .state paused
	check_fails "and is in no hurry" 124 "" timeout 0.5 "$bm" job wait disk
	check "it goes on" "$bm" job resume disk
	wait_for 5 more_copied "$after"
	result $? "and copies"
	check "the guest noticed nothing of the pause" end_load
}
more_copied() { [ "$(copied_bytes)" -gt "$1" ]; }

cancelling() {
	start_load disk --initial any
	check "the move is cancelled" "$bm" job cancel disk.2
	check "it is over" job_is disk '"\(.state) \(.error.code)"' "cancelled E_CANCELLED"
	check "the disk is where it was" disk_is_on "$b"
	check "what was there before stays there" test -e "$dir/slow.img"
	check "a move to a new file begins" "$bm" relocate disk "$dir/c" --switch manual
	check "its target is there" test -e "$dir/c/disk.img"
	check "it is cancelled" "$bm" job cancel disk
	check "its target is gone" test ! -e "$dir/c/disk.img"
	check "the guest noticed nothing" end_load
	check "the disk goes on" state_fits "$(disk_uri disk)"
	check_fails "a job that is over is not cancelled" 3 E_FINISHED "$bm" job cancel disk.2
	check_fails "job wait tells how it ended" 1 "E_CANCELLED" "$bm" job wait disk
}

# rate SECONDS: bytes a second that the copy makes, holes not counted.
rate() {
	local before after
	before=$(job disk .progress.copied_bytes)
	sleep "$1"
	after=$(job disk .progress.copied_bytes)
	awk "BEGIN { print int(($after - $before) / $1) }"
}

# Data to copy: what the load has left, and 12 MiB of noise.
limiting() {
	local slow fast
	check "a move with a limit" "$bm" relocate disk "$dir/c" --rate 4M --guest-latency off --detach
	sleep 0.5
	slow=$(rate 1)
	# No second of a busy machine says that a limit is too low; one says that it is too high.
	[ "$slow" -gt $((5 * M / 2)) ] || slow=$(rate 1)
	check "it copies 4 MiB/s: $slow" test "$slow" -gt $((5 * M / 2)) -a "$slow" -lt $((6 * M))
	check "the limit is raised" "$bm" job set disk --rate 16M
	sleep 0.3
	fast=$(rate 1.5)
	check "it copies 16 MiB/s: $fast" test "$fast" -gt $((10 * M)) -a "$fast" -lt $((22 * M))
	check "it is lowered" "$bm" job set disk --rate 1M
	sleep 0.5
	slow=$(rate 1)
	check "it copies 1 MiB/s: $slow" test "$slow" -lt $((5 * M / 2))
	[ "$(job disk .progress.limiter)" = "rate cap" ]
	result $? "the limiter is named"
	check "it is taken away" "$bm" job set disk --rate 0
	check "and the job ends soon" timeout 15 "$bm" job wait disk
	check "the disk is on the target" disk_is_on "$dir/c/disk.img"
}

deleting() {
	start_load disk --initial any
	check "--delete-source" "$bm" relocate disk "$dir/d.img" --delete-source --guest-latency off
	check "the source is gone" test ! -e "$dir/c/disk.img"
	check "the guest noticed nothing" end_load
	check "the target is what is served" serves disk "$dir/d.img"
}

# The guest writes while it is copied, and stops before the end: the copy is what it has left.
copying() {
	start_load disk --initial any
	log=$dir/copy.out spawn "$bm" copy disk "$dir/copy.img" --rate 4M
	local copy=$pid
	check "a disk is copied, with a guest on it, that notices nothing" end_load
	check "which is still going on then" job_is disk '"\(.kind) \(.state)"' "copy running"
	"$bm" job set disk --rate 0 >>"$dir/log"
	wait "$copy"
	result $? "it ends" "$dir/copy.out"
	lib_forget "$copy"
	check "the disk is where it was" disk_is_on "$dir/d.img"
	check "the copy is the disk, byte for byte" serves disk "$dir/copy.img"
	check "and has its holes" is_sparse "$dir/copy.img"
	check "it may be served" serve twin "$dir/copy.img"
	check "verify: two disks by name" "$bm" verify disk twin
	unserve twin
	check "a cold copy, into a folder" "$bm" copy "$dir/copy.img" "$dir/c"
	check "is the same" cmp "$dir/copy.img" "$dir/c/copy.img"
	check "and has its holes, too" is_sparse "$dir/c/copy.img"
	check_fails "a cold copy of a disk's image is refused" 3 E_LOCKED \
		"$bm" copy "$dir/d.img" "$dir/e.img"
	check "and leaves nothing behind" test ! -e "$dir/e.img"
}

verifying() {
	local one=$dir/one.img two=$dir/two.img
	truncate -s 32M "$one"
	dd if=/dev/urandom of="$one" bs=1M count=4 seek=3 conv=notrunc status=none
	cp "$one" "$two"
	check "verify: equal" "$bm" verify "$one" "$two"
	grep -q "are equal" "$dir/out"
	result $? "and says so"
	printf x | dd of="$two" bs=1 seek=20000001 conv=notrunc status=none
	check_fails "verify: different in one byte" 1 "differ, first at byte 20000001\$" \
		"$bm" verify "$one" "$two"
	check_fails "verify: the other way round" 1 "differ, first at byte 20000001\$" \
		"$bm" verify "$two" "$one"
	truncate -s 33M "$one"
	check_fails "verify: different in size" 1 "differ in size: 34603008 and 33554432" \
		"$bm" verify "$one" "$two"
	cp "$two" "$one"
	check_fails "verify: cannot be read" 8 "E_COMPARE: .*two.img cannot be read at 4194304: Input" \
		"$bm" verify "$one" "fault:op=read,range=4M-5M,error=EIO;$two"
	check_fails "verify: not there" 4 E_NOT_FOUND "$bm" verify "$one" "$dir/three.img"
	check "verify: a disk and its image" "$bm" verify disk disk
}

manual_switch
pausing
cancelling
limiting
deleting
copying
verifying
check "it is stopped in the end" unserve disk
