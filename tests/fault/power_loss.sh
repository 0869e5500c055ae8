#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The host loses power while a disk moves under load: images, record and checkpoint are on a file
# system that drops what is not durable, RUN is gone. The job goes on from the checkpoint, copies a
# small part of the disk, and both copies are equal in the end; on the way there, and in the window
# in which the mirror runs the other way round.
# In a mount namespace of its own: one that somebody else makes meanwhile would keep the file system.
[ -n "${OWN_MOUNTS:-}" ] || [ "$(id -u)" != 0 ] || OWN_MOUNTS=1 exec unshare -m "$0" "$@"
# shellcheck source-path=SCRIPTDIR/../system source=../system/disk.bash
. "$(dirname "$0")/../system/disk.bash"

have jq mkfs.xfs xfs_io nbdcopy || { skip "power loss" "jq, xfsprogs, libnbd-bin"; exit; }
[ "$(id -u)" = 0 ] || { skip "power loss" "root mounts file systems"; exit; }
export BLOCKMIRROR_CHECKPOINT=0.2
image_size=$((64 * M)) half=$((4 * M)) # behind it no load touches
disk=$dir/m a=$dir/m/a.img b=$dir/m/b.img
export BLOCKMIRROR_STATE_DIR=$disk/state
mkdir "$disk"
truncate -s 400M "$dir/medium"
mkfs.xfs -q "$dir/medium"

plug_in() { mount -o loop "$dir/medium" "$disk"; }
unplug() { umount "$disk" 2>/dev/null; }
# shellcheck disable=SC2016 # for eval, at the end
on_exit 'stop "${lib_pids[@]}"; unplug || umount -l "$disk" 2>/dev/null'
plug_in || { skip "power loss" "no loop device can be mounted"; exit; }
head -c $image_size /dev/urandom >"$a"
cp "$a" "$dir/original"
sync -f "$disk"

# The checkpoint claims most of what no load touches.
claimed() { job_is disk ".progress.checkpoint_bytes >= $((image_size * 3 / 4))" true; }
# The file system goes first: what is written after that is lost.
power_cut() {
	xfs_io -x -c shutdown "$disk" || return
	kill -KILL "$disk_pid"
	lib_forget "$disk_pid"
	wait_for 10 lib_gone "$disk_pid"
	wait "$load"
	lib_forget "$load"
	rm -rf "$BLOCKMIRROR_RUN_DIR"
	wait_for 10 unplug && plug_in
}
load() { start_load disk --initial any --cut-ok --iops 300 --sizes 512:64k "$@"; }
resumed() { job_is disk '"\(.state) \(.resumed.from)"' "running checkpoint"; }
little() { job_is disk ".resumed.dirty_bytes <= $((image_size / 4))" true; }
in_sync() { job_is disk .progress.target in-sync; }
resent() {
	local bytes
	bytes=$(job disk '.progress.copied_bytes + .progress.zero_bytes')
	echo "$bytes of $image_size bytes were sent again"
	[ "$bytes" -le $((image_size / 3)) ]
}
cut_and_go_on() { # NAME
	check "$1: the checkpoint claims most of the disk" wait_for 30 claimed
	check "$1: the host loses power" power_cut
	check "$1: the disk is served again" serve disk
	check "$1: its job goes on from the checkpoint" resumed
	check "$1: with little to copy" little
	check "$1: what was flushed is there" state_fits "$(disk_uri disk)" --after-crash --adopt
	check "$1: both copies are in sync" wait_for 30 in_sync
	check "$1: little was sent again" resent
	sed 's/^/# /' "$dir/out"
	check "$1: both copies are equal" cmp "$a" "$b"
	check "$1: what no load touched is what it was" \
		cmp -i $half -n $((image_size - half)) "$b" "$dir/original"
}

serve disk "$a"
check "a move begins" "$bm" relocate disk "$b" --switch manual --undo-window 1h --detach
load
cut_and_go_on "to the target"
check "it switches" "$bm" switch disk
check "it can be undone" wait_for 20 phase_is disk undo-window
load --resume
cut_and_go_on "in the window"
check "the disk is where it moved to" test "$(show disk .uri)" = "$b"
check "it is undone" "$bm" undo disk
check "that is the whole disk, again" serves disk "$a"
check "it is stopped in the end" unserve disk
