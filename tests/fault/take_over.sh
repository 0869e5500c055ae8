#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A process takes over a disk while the dead one still has I/O in the kernel, and while the state
# directory cannot be written to: it waits for the one, and serves in spite of the other.
# shellcheck source-path=SCRIPTDIR/../system source=../system/disk.bash
. "$(dirname "$0")/../system/disk.bash"

have nbdkit jq getfattr fsfreeze mkfs.ext4 ||
	{ skip "taking over" "nbdkit, jq, attr, util-linux, e2fsprogs"; exit; }
half=$((16 * M)) # all of it
record=$BLOCKMIRROR_STATE_DIR/disks/disk/record

# mounted FOLDER ARGUMENT…: of mount.
mounted() {
	mkdir -p "$1"
	mount "${@:2}" "$1" 2>"$dir/out" || return
	on_exit "fsfreeze -u '$1' 2>/dev/null; umount -l '$1'"
}
started() { # a disk on the image, with a guest at work
	truncate -s $half "$1"
	serve disk "$1"
	start_load disk --reconnect 60 --iops 500 --sizes 512:64k
}
is_there() { ! lib_gone "$1"; }
record_says() { head -n 1 "$record" | jq -e "$1"; }

# A file system that is frozen holds writes, and nothing can end who waits for them.
lingering() {
	local fs=$dir/fs old
	truncate -s 128M "$dir/fs.img"
	mkfs.ext4 -q "$dir/fs.img"
	mounted "$fs" -o loop "$dir/fs.img" || { skip "I/O of the dead" "$(cat "$dir/out")"; return; }
	started "$fs/disk.img"
	check "the image's file system is frozen" fsfreeze -f "$fs"
	sleep 0.5
	old=$disk_pid
	kill -KILL "$old"
	lib_forget "$old"
	log=$dir/said spawn "$bm" serve disk
	sleep 6
	check "the dead process is not gone" is_there "$old"
	check "the next one waits" is_there "$pid"
	check "it has not given up" test ! -s "$dir/said"
	fsfreeze -u "$fs"
	wait "$pid"
	result $? "it takes over when the I/O has ended" "$dir/said"
	lib_forget "$pid"
	disk_pid=$(show disk .pid)
	lib_pids+=("$disk_pid")
	check "the dead process is gone then" lib_gone "$old"
	check "the guest goes on" works
	check "and has lost nothing" end_load
	check "the disk is stopped" unserve disk
	check "what it has is on its image" image_fits "$fs/disk.img"
	rm -r "$BLOCKMIRROR_STATE_DIR"
}

# A crash while a move runs, when the state directory is as COMMAND makes it; UNDO ends that.
no_record() {
	local name=$1 command=$2 undo=$3
	"$bm" relocate disk "$dir/target.img" --overwrite --rate 1M --detach >>"$dir/log" 2>&1
	check "$name: a move runs" phase_is disk copying
	eval "$command" >>"$dir/log" 2>&1
	kill -KILL "$disk_pid"
	lib_forget "$disk_pid"
	check "$name: the disk is served all the same" serve disk
	check "$name: from its source" test "$(show disk .uri)" = "$dir/image.img"
	check "$name: the guest goes on" works
	check "$name: the job goes on" job_is disk '"\(.state) \(.resumed.from)"' "running map"
	check "$name: the target is marked" marked "$dir/target.img" incomplete
	check "$name: the record still says that it runs" record_says '.job.state == "running"'
	check_fails "$name: another move is refused" 3 . "$bm" relocate disk "$dir/other.img"
	check "$name: and leaves nothing" test ! -e "$dir/other.img"
	eval "$undo" >>"$dir/log" 2>&1
	kill -KILL "$disk_pid"
	lib_forget "$disk_pid"
	check "$name: it is served again when all is well" serve disk
	check "$name: the job still goes on" job_is disk '"\(.state) \(.resumed.from)"' "running map"
	check "$name: and can be given up" "$bm" job cancel disk
	check "$name: the record has its end" record_says '.job.state == "cancelled"'
	check "$name: the guest still goes on" works
}

state_directory() {
	local fill=$BLOCKMIRROR_STATE_DIR/fill
	mounted "$BLOCKMIRROR_STATE_DIR" -t tmpfs -o size=256k none ||
		{ skip "a state directory that fails" "$(cat "$dir/out")"; return; }
	started "$dir/image.img"
	no_record "read-only state" "mount -o remount,ro '$BLOCKMIRROR_STATE_DIR'" \
		"mount -o remount,rw '$BLOCKMIRROR_STATE_DIR'"
	no_record "full state" "head -c 1M /dev/zero >'$fill'" "rm '$fill'"
	check "the guest has lost nothing" end_load
	check "the disk moves" "$bm" relocate disk "$dir/target.img" --overwrite
	check "all of it" image_fits "$dir/target.img"
	check "it is stopped in the end" unserve disk
}

lingering
state_directory
