#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A target goes away while the guest writes: how long the guest waits for it, what becomes of the job
# (--on-target-loss), and that these choices outlive the process.
# shellcheck source-path=SCRIPTDIR/../system source=../system/disk.bash
. "$(dirname "$0")/../system/disk.bash"

have qemu-nbd nbdcopy jq || { skip "a target that goes away" "qemu-utils, libnbd-bin, jq"; exit; }
image_size=$((32 * M)) half=$((16 * M)) # behind it no load touches
image=$dir/disk.img file=$dir/target.img
head -c $image_size /dev/urandom >"$image"

target_is() { job_is disk .progress.target "$1"; }
state_is() { job_is disk .state "$1"; }
more_writes() { [ "$(show disk .requests.write)" -gt "$1" ]; }
goes_on() { wait_for 5 more_writes "$(show disk .requests.write)"; }
is_on() { [ "$(show disk .uri)" = "$1" ] || { show disk .uri; return 1; }; }
# begin OPTION…: in sync with a foreign server, in $server, while the guest writes.
begin() {
	truncate -s 0 "$file"
	truncate -s $image_size "$file"
	start_qemu_nbd "$dir/t" "$file" || return
	server=$pid
	"$bm" relocate disk "$uri" --overwrite --switch manual --guest-latency off "$@"
}
# ends_with CODE: the job has failed, the disk is where it was, and the guest noticed nothing.
ends_with() {
	check "$name: the job ends $1" wait_for 10 job_is disk '"\(.state) \(.error.code)"' "failed $1"
	check "$name: the disk is where it was" is_on "$image"
	check "$name: the guest goes on" goes_on
}
# longest MS: no request of the guest took longer than that.
longest() { json_is "$report" ".longest_request.ms < $1"; }

serve disk "$image"
start_load disk --initial any --sizes 512:64k
name="wait"
check "$name: a mirror, whose writes wait 600 ms at most" begin --target-deadline 600ms
check "$name: show says so" grep -q '^target .* 600.0 ms .*lost: wait$' <("$bm" show disk)
kill -STOP "$server"
check "$name: the target is stopped, and lost" wait_for 10 target_is target-lost
check "$name: the guest goes on" goes_on
kill -CONT "$server"
check "$name: it goes on: in sync again" "$bm" job wait disk --for in-sync
kill9 "$server"
check "$name: it is killed, and lost" wait_for 10 target_is target-lost
check "$name: it is started again" start_qemu_nbd "$dir/t" "$file"
server=$pid
check "$name: in sync again" "$bm" job wait disk --for in-sync

name="pause"
check "$name: chosen while it runs" "$bm" job set disk --on-target-loss pause
check "$name: job show says so" grep -q '^target: .*lost: pause$' <("$bm" job show disk)
kill9 "$server"
check "$name: it is killed, and the job pauses" wait_for 10 state_is paused
check "$name: it is started again" start_qemu_nbd "$dir/t" "$file"
server=$pid
sleep 1
check "$name: the job does not go on by itself" target_is target-lost
check "$name: the guest does" goes_on
check "$name: resumed by somebody" "$bm" job resume disk
check "$name: in sync again" "$bm" job wait disk --for in-sync
kill9 "$server"
check "$name: it is killed again" wait_for 10 state_is paused
check "$name: resumed, though it is not there" "$bm" job resume disk
check "$name: it pauses again" wait_for 10 state_is paused

name="after a crash of ours"
check "$name: another choice" "$bm" job set disk --on-target-loss 2s --target-deadline 700ms
check "$name: the record has it" wait_for 5 grep -q '"on_target_loss": *2000000000' \
	"$BLOCKMIRROR_STATE_DIR/disks/disk/record"
check "$name: the guest noticed nothing so far" end_load
check "$name: no request took longer than the deadline, and some" longest 1500
kill_disk disk
check "$name: the disk is served again" serve disk
start_load disk --initial any --sizes 512:64k
check "$name: the job has it, too" job_is disk '"\(.on_target_loss) \(.target_deadline)"' \
	"2000000000 700000000"

name="give up"
ends_with E_TARGET_LOST
check "$name: the target is as it was" cmp -i $half -n $half "$image" "$file"
check "$name: a new mirror" begin --on-target-loss 1s
kill9 "$server"
ends_with E_TARGET_LOST
check "$name: the guest noticed nothing" end_load

check_fails "a choice that is none" 2 'wait, pause or a time' "$bm" relocate disk "$dir/x" \
	--on-target-loss never
check_fails "a deadline that is none" 2 '10ms or more' "$bm" relocate disk "$dir/x" --target-deadline 1us
check "it is stopped in the end" unserve disk
