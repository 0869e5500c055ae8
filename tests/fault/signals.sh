#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# SIGTERM ends a disk's process soon, whatever it waits for; one that is stopped keeps nobody from
# seeing the others; Ctrl-C leaves a move alone, and says how to stop it, and ends a cold copy.
# shellcheck source-path=SCRIPTDIR/../system source=../system/disk.bash
. "$(dirname "$0")/../system/disk.bash"

have qemu-nbd jq getfattr || { skip "signals" "qemu-utils, jq, attr"; exit; }
size=$((32 * M))
image=$dir/disk.img
head -c $size /dev/urandom >"$image"

# begin COMMAND…: of blockmirror, in the background, $begun; what it says is in $dir/said.
begin() {
	: >"$dir/said"
	log=$dir/said spawn "$bm" "$@"
	begun=$pid
}

# ends_with NAME STATUS PATTERN: what was begun does, within 5 s.
ends_with() {
	local status
	wait_for 5 lib_gone "$begun" || { not_ok "$1" "$dir/said"; kill9 "$begun"; return; }
	wait "$begun"
	status=$?
	lib_forget "$begun"
	echo "exit status $status" >>"$dir/said"
	[ $status -eq "$2" ] && grep -qE "$3" "$dir/said"
	result $? "$1" "$dir/said"
}

# A server that takes connections and says nothing; speaks lets it. Its address is $hung.
hangs() {
	truncate -s $size "$dir/hung.img"
	start_qemu_nbd "$dir/hung.sock" "$dir/hung.img"
	kill -STOP "$pid"
	server=$pid hung=$uri
}
speaks() { kill -CONT "$server"; }

phase_of() { [ "$("$bm" job show disk --json 2>>"$dir/log" | jq -r .phase)" = "$1" ]; }

terminating() {
	hangs
	serve disk "$image"
	begin relocate disk "$hung" --overwrite
	sleep 0.5
	check "SIGTERM while a target is being opened: it is" phase_of preparing
	kill -TERM "$disk_pid"
	check "the process ends within 2 s" wait_for 2 lib_gone "$disk_pid"
	lib_forget "$disk_pid"
	ends_with "who waited is told" 1 "E_INTERRUPTED: "
	check "its sockets are gone" test "$(ls "$BLOCKMIRROR_RUN_DIR/disks")" = disk.log
	serve disk
	check "the disk is where it was" disk_is_on "$image"
	"$bm" relocate disk "$dir/target.img" --rate 1M --detach >>"$dir/log" 2>&1
	begin job wait disk
	sleep 0.3
	kill -TERM "$disk_pid"
	check "SIGTERM during a move: the process ends within 2 s" wait_for 2 lib_gone "$disk_pid"
	lib_forget "$disk_pid"
	ends_with "who waited is told, too" 1 "E_INTERRUPTED: "
	serve disk
	check "the next one goes on with the job" \
		job_is disk '"\(.state) \(.resumed.from)"' "running map"
	check "its target is marked" marked "$dir/target.img" incomplete
	check "it can be given up" "$bm" job cancel disk
	check "the target is gone then" test ! -e "$dir/target.img"
}

stopped() {
	truncate -s 4M "$dir/other.img"
	serve other "$dir/other.img"
	kill -STOP "$disk_pid"
	check "list, when a process is stopped" timeout 5 "$bm" list
	grep -q '^other .*does not answer' "$dir/out" && grep -q '^disk .*alone' "$dir/out"
	result $? "names it, and the others" "$dir/out"
	check "list --json, too" jq -e '[.disks[].state] == ["alone", "does not answer"]' \
		<(timeout 5 "$bm" list --json)
	check "job list does not hang, either" timeout 10 "$bm" job list
	kill -CONT "$disk_pid"
	check "when it goes on it is seen again" test "$(show other .state)" = alone
	unserve other
}

interrupting() {
	local id
	begin relocate disk "$dir/a.img" --rate 1M
	wait_for 5 phase_of copying
	sleep 0.3
	kill -INT "$begun"
	id=$(job disk .id)
	ends_with "Ctrl-C during relocate: says how to stop it" 130 "blockmirror job cancel $id"
	check "the job goes on" job_is disk '"\(.state) \(.phase)"' "running copying"
	check "it is stopped so" "$bm" job cancel "$id"
	check "the disk is where it was" disk_is_on "$image"
	check "the target is gone" test ! -e "$dir/a.img"
	begin relocate disk "$dir/a.img" --rate 1M
	wait_for 5 phase_of copying
	begin job wait disk
	sleep 0.3
	kill -INT "$begun"
	ends_with "Ctrl-C during job wait: the same" 130 "blockmirror job cancel disk"
	check "the job goes on, too" job_is disk .state running
	"$bm" job cancel disk >>"$dir/log"
}

interrupting_early() {
	begin relocate disk "$hung" --overwrite
	wait_for 5 phase_of preparing
	kill -INT "$begun"
	ends_with "Ctrl-C while the target is being opened: says how to stop it" 130 \
		"blockmirror job cancel disk"
	check "the job goes on" phase_of preparing
	check "it is stopped so" timeout 5 "$bm" job cancel disk
	check "nothing runs" test "$(show disk .state)" = alone
	begin relocate disk "$hung" --overwrite
	wait_for 5 phase_of preparing
	kill -INT "$begun"
	ends_with "Ctrl-C again" 130 "blockmirror job wait disk"
	begin job wait disk
	sleep 0.3
	check "it can be waited for" phase_of preparing
	speaks
	ends_with "until the end" 0 "ended"
	check "the job is done" job_is disk .state "done"
	check "the disk is on its target" disk_is_on "$hung"
	check "which is what the image was" cmp "$image" "$dir/hung.img"
	unserve disk
	stop "$server"
}

cold_copy() {
	begin copy "$image" "$dir/copy.img" --rate 1M
	check "a cold copy: it runs" wait_for 5 marked "$dir/copy.img" incomplete
	sleep 0.3
	kill -INT "$begun"
	ends_with "Ctrl-C during a cold copy" 130 "cancel"
	check "what it made is gone" test ! -e "$dir/copy.img"
	cp "$image" "$dir/copy.img"
	begin copy "$image" "$dir/copy.img" --overwrite --rate 1M
	wait_for 5 marked "$dir/copy.img" incomplete >>"$dir/log"
	sleep 0.3
	kill -INT "$begun"
	ends_with "over what exists" 130 "cancel"
	check "what was there before stays, and is marked" marked "$dir/copy.img" incomplete
	hangs
	begin copy "$hung" "$dir/copy2.img"
	sleep 0.5
	no_one_off
	check "while the source is being opened: a process does it" test $? -eq 1
	kill -INT "$begun"
	ends_with "while the source is being opened" 130 ""
	begin copy "$image" "$hung" --overwrite
	sleep 0.5
	kill -INT "$begun"
	ends_with "while the target is being opened" 130 ""
	wait_for 3 no_one_off
	result $? "no process is left behind"
	stop "$server"
}
no_one_off() { # of ours: they know our folders
	local p
	for p in $(pgrep -f '^blockmirror-disk --one-off'); do
		! grep -qF "$BLOCKMIRROR_RUN_DIR" "/proc/$p/environ" 2>>"$dir/log" || return 1
	done
}

terminating
stopped
interrupting
interrupting_early
cold_copy
