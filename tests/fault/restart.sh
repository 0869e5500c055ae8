#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The process that serves a disk is killed in every phase of a move, with a guest at work. The next
# one takes over at once and serves what the record says, the source or the target, with all that
# the guest was told is written; it goes on with the job, and copies only what may differ.
# shellcheck source-path=SCRIPTDIR/../system source=../system/disk.bash
. "$(dirname "$0")/../system/disk.bash"

have qemu-nbd nbdkit nbdcopy jq getfattr strace ||
	{ skip "restarts" "qemu-utils, nbdkit, libnbd-bin, jq, attr, strace"; exit; }
image_size=$((64 * M)) half=$((32 * M)) # behind it no load touches
record=$BLOCKMIRROR_STATE_DIR/disks/disk/record
mkdir "$dir/a" "$dir/b"
head -c $image_size /dev/urandom >"$dir/a/disk.img"
cp "$dir/a/disk.img" "$dir/original"
tracer=''

# begun ARGUMENT…: a command in the background, $mover; what it says is in $dir/said.
begun() {
	: >"$dir/said"
	log=$dir/said spawn "$bm" "$@"
	mover=$pid
}

# mover_is_told NAME: what was begun ends with status 1, and says why.
mover_is_told() {
	local status
	wait "$mover"
	status=$?
	lib_forget "$mover"
	echo "exit status $status" >>"$dir/said"
	[ $status -eq 1 ] && grep -q "^blockmirror: E_INTERRUPTED: " "$dir/said"
	result $? "$1" "$dir/said"
}

# crash: SIGKILL; the next process begins while the kernel may still end the old one's I/O.
crash() {
	kill -KILL "$disk_pid"
	lib_forget "$disk_pid"
	[ -z "$tracer" ] || kill9 "$tracer" # who would hold it
	tracer=''
	timeout 60 "$bm" serve disk || return
	disk_pid=$(show disk .pid)
	lib_pids+=("$disk_pid")
}

# goes_on PHASE SOURCE TARGET: a crash now; the disk stays, and its job goes on.
goes_on() {
	check "$1: another process takes over" crash
	check "$1: the disk is on the source" disk_is_on "$2"
	mover_is_told "$1: who waited is told"
	check "$1: the guest goes on" works
	check "$1: the job runs" job_is disk '.state' running
	check "$1: it was taken up with its map" job_is disk '"\(.resumed.times) \(.resumed.from)"' "1 map"
	check "$1: which says what need not be copied again" job_is disk '.resumed.kept_bytes > 0' true
	check "$1: and what must" job_is disk '.resumed.dirty_bytes > 0' true
	check "$1: the target is marked" marked "$3" incomplete
	check_fails "$1: and not served" 3 "E_(UNUSABLE|LOCKED)" "$bm" serve thief "$3"
	check "$1: the source is marked" marked "$2" active
}

# resent: what was copied since the process began is what the map said might differ, not the disk.
resent() {
	job_is disk ".progress.copied_bytes + .progress.zero_bytes <
		1.5 * .resumed.dirty_bytes + 16 * 65536 * (1 + .progress.collisions)" true
}

given_up() { "$bm" job cancel disk && [ "$(job disk .state)" = cancelled ]; }

# passed PHASE SOURCE TARGET: a crash now, and the disk is on the target.
passed() {
	check "$1: another process takes over" crash
	check "$1: the disk is on the target" disk_is_on "$3"
	mover_is_told "$1: who waited is told"
	check "$1: the guest goes on" works
	check "$1: the job is done" job_is disk '"\(.state) \(.error.code)"' "done null"
	check "$1: job wait says so, too" "$bm" job wait disk
	check "$1: and the record" jq -e '.job.state == "done"' <(head -n 1 "$record")
	check "$1: the target is marked" marked "$3" active
	check "$1: the source is marked" marked "$2" retired
	check_fails "$1: and not served" 3 "E_RETIRED: .*$3" "$bm" serve thief "$2"
}

preparing() {
	truncate -s $image_size "$dir/hung.img"
	start_qemu_nbd "$dir/hung.sock" "$dir/hung.img"
	local server=$pid
	kill -STOP "$server"
	begun relocate disk "$uri" --overwrite
	sleep 0.5
	check "preparing: another process takes over" crash
	mover_is_told "preparing: who waited is told"
	check "preparing: the disk is where it was" disk_is_on "$dir/a/disk.img"
	check "preparing: the guest goes on" works
	check "preparing: there was no job yet" test "$(show disk .job)" = null
	kill9 "$server"
}

copying() {
	begun relocate disk "$dir/b" --rate 4M
	check "copying: it does" wait_for 20 job_is disk '.progress.copied_bytes > 32e6' true
	goes_on copying "$dir/a/disk.img" "$dir/b/disk.img"
	check "copying: at full speed" "$bm" job set disk --rate 0
	check "copying: it ends" "$bm" job wait disk
	check "copying: what was equal was not sent again" resent
	check "copying: the disk has moved" disk_is_on "$dir/b/disk.img"
	check "copying: and moves back" "$bm" relocate disk "$dir/a" --overwrite
}

in_sync() {
	check "in sync: it is" "$bm" relocate disk "$dir/b" --overwrite --switch manual
	begun job wait disk
	sleep 6 # both sides are flushed every five seconds
	check "in sync: it stays so" phase_is disk in-sync
	goes_on "in sync" "$dir/a/disk.img" "$dir/b/disk.img"
	check "in sync: it is again" "$bm" job wait disk --for in-sync
	check "in sync: what was equal was not sent again" resent
	check "in sync: it still waits to be switched" phase_is disk in-sync
	check "in sync: and can be given up" given_up
}

# hold INJECTION [PATH]: system calls of the disk's process, those about PATH, are held as that says
# (strace(1)).
hold() {
	: >"$dir/tracer"
	log=$dir/tracer spawn strace -f -q -q -p "$disk_pid" -o /dev/null -e "trace=${1%%:*}" \
		-e "inject=$1" ${2:+-P "$2"}
	tracer=$pid
	wait_for 10 traced
}

# switching_at INJECTION SOURCE TARGET: in sync; then it is told to switch.
switching_at() {
	"$bm" relocate disk "$3" --overwrite --switch manual >>"$dir/log" 2>&1
	hold "$1"
	begun switch disk
}
traced() { ! grep -q '^TracerPid:.0$' /proc/"$disk_pid"/task/*/status; }
record_is_on() { head -n 1 "$record" | jq -e --arg uri "$1" '.uri == $uri' >>"$dir/log"; }
marks_are_made() { [ "$(mark "$1")" = retired ] && [ "$(mark "$2")" = active ]; }

switching() {
	local a=$dir/a/disk.img b=$dir/b/disk.img held=20000000
	switching_at "/rename:delay_enter=$held" "$a" "$b"
	check "before the record: both outcomes are prepared" wait_for 10 test -e "$record.back"
	sleep 0.3
	check "before the record: it is switching" phase_is disk switching
	check "before the record: which says what it said" record_is_on "$a"
	goes_on "before the record" "$a" "$b"
	check "before the record: it can be given up" given_up

	switching_at "/rename:delay_exit=$held" "$a" "$b"
	check "after the record: it is" wait_for 10 record_is_on "$b"
	check "after the record: it is switching" phase_is disk switching
	passed "after the record" "$a" "$b"

	switching_at "/setxattr:delay_enter=$held" "$b" "$a"
	check "before the marks: it has switched" wait_for 10 phase_is disk finishing
	check "before the marks: they are what they were" marked "$b" active
	passed "before the marks" "$b" "$a"

	switching_at "/rename:delay_enter=$held:when=2" "$a" "$b"
	check "after the marks: they are made" wait_for 10 marks_are_made "$a" "$b"
	check "after the marks: the job is not done" \
		jq -e '.job.state == "running"' <(head -n 1 "$record")
	passed "after the marks" "$a" "$b"
}

# The way back, in an undo window: it is not gone again.
undoing() {
	local a=$dir/a/disk.img b=$dir/b/disk.img
	check "undoing: a move" "$bm" relocate disk "$a" --overwrite --undo-window 10m
	hold "/setxattr:delay_enter=20000000"
	begun undo disk
	check "undoing: the record says so" wait_for 10 record_is_on "$b"
	check "undoing: it is not done yet" phase_is disk finishing
	check "undoing: another process takes over" crash
	check "undoing: the disk is where it was" disk_is_on "$b"
	mover_is_told "undoing: who waited is told"
	check "undoing: the guest goes on" works
	check "undoing: the job is undone" job_is disk .state undone
	check "undoing: says the record" jq -e '.job.state == "undone"' <(head -n 1 "$record")
	check "undoing: the old image is the truth again" marked "$b" active
	check "undoing: the new one is old" marked "$a" retired
}

# The window is over when the source is removed, also for who comes after a crash.
releasing() {
	local a=$dir/a/disk.img b=$dir/b/disk.img
	check "releasing: a move" "$bm" relocate disk "$a" --overwrite --undo-window 10m --delete-source
	hold "unlink:delay_exit=20000000" "$b"
	begun release disk
	check "releasing: the source is removed" wait_for 10 test ! -e "$b"
	check "releasing: it is not done yet" phase_is disk finishing
	check "releasing: another process takes over" crash
	check "releasing: the disk is on the target" disk_is_on "$a"
	mover_is_told "releasing: who waited is told"
	check "releasing: the guest goes on" works
	check "releasing: the job is done" job_is disk .state "done"
	check "releasing: says the record" jq -e '.job.state == "done"' <(head -n 1 "$record")
	check "releasing: it moves back" "$bm" relocate disk "$dir/b"
}

serve disk "$dir/a/disk.img"
start_load disk --initial any --reconnect 60 --iops 500 --sizes 512:128k
preparing
copying
in_sync
switching
undoing
releasing
check "in the end it moves" "$bm" relocate disk "$dir/a" --overwrite
check "the guest lost nothing, through all of that" end_load
check "it is there for others, too" image_fits "$dir/a/disk.img"
check "so is what it never touched" cmp -i $half -n $half "$dir/a/disk.img" "$dir/original"
check "it was cut off each time" json_is "$report" '.reconnects >= 7'
check "it is stopped in the end" unserve disk
