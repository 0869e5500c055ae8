#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A target goes away while the guest writes: how long the guest waits for it, what becomes of the job
# (--on-target-loss), and that these choices outlive the process.
# shellcheck source-path=SCRIPTDIR/../system source=../system/target.bash
. "$(dirname "$0")/../system/target.bash"

have qemu-nbd nbdcopy jq || { skip "a target that goes away" "qemu-utils, libnbd-bin, jq"; exit; }
cp "$image" "$dir/original"
start_server() {
	start_qemu_nbd "$dir/t" "$file"
	server=$pid
}

serve disk "$image"
start_load disk --initial any --sizes 512:64k
name="wait"
fresh
check "$name: a foreign server" start_server
check "$name: a mirror, whose writes wait 600 ms at most" begin
check "$name: show says so" grep -q '^target .* 600.0 ms .*lost: wait$' <("$bm" show disk)
kill -STOP "$server"
check "$name: the target is stopped, and lost" target_lost
check "$name: the guest goes on" guest_goes_on
kill -CONT "$server"
check "$name: it goes on: in sync again" in_sync
kill9 "$server"
check "$name: it is killed, and lost" target_lost
check "$name: it is started again" start_server
check "$name: in sync again" in_sync

name="pause"
check "$name: chosen while it runs" "$bm" job set disk --on-target-loss pause
check "$name: job show says so" grep -q '^target: .*lost: pause$' <("$bm" job show disk)
kill9 "$server"
check "$name: it is killed, and the job pauses" wait_for 10 state_is paused
check "$name: it is started again" start_qemu_nbd "$dir/t" "$file"
server=$pid
sleep 1
check "$name: the job does not go on by itself" target_is target-lost
check "$name: the guest does" guest_goes_on
check "$name: resumed by somebody" "$bm" job resume disk
check "$name: in sync again" in_sync
kill9 "$server"
check "$name: it is killed again" wait_for 10 state_is paused
check "$name: resumed, though it is not there" "$bm" job resume disk
check "$name: it pauses again" wait_for 10 state_is paused

name="after a crash of ours"
check "$name: another choice" "$bm" job set disk --on-target-loss 2s --target-deadline 700ms
check "$name: the record has it" wait_for 5 grep -q '"on_target_loss": *2000000000' \
	"$BLOCKMIRROR_STATE_DIR/disks/disk/record"
guest_content
kill_disk disk
check "$name: the disk is served again" serve disk
start_load disk --initial any --sizes 512:64k
check "$name: the job has it, too" job_is disk '"\(.on_target_loss) \(.target_deadline)"' \
	"2000000000 700000000"

name="give up"
ends_with E_TARGET_LOST
check "$name: the target is as it was" cmp -i $half -n $half "$image" "$file"
check "$name: the guest goes on" guest_goes_on
check "$name: the server is there again" start_server
check "$name: a new mirror" begin --on-target-loss 1s
kill9 "$server"
ends_with E_TARGET_LOST
guest_content

check_fails "a choice that is none" 2 'wait, pause or a time' "$bm" relocate disk "$dir/x" \
	--on-target-loss never
check_fails "a deadline that is none" 2 '10ms or more' "$bm" relocate disk "$dir/x" --target-deadline 1us
check "it is stopped in the end" unserve disk
