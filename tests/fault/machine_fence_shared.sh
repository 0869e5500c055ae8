#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine's move is in doubt, one of the two hosts is dead, and one of its disks is on storage of both: there is
# no copy of it, so the machine goes on only where its memory and that disk belong together. Else it is ended, and
# is begun anew with the disk as it is.
# shellcheck source-path=SCRIPTDIR/../system source=../system/machine.bash
. "$(dirname "$0")/../system/machine.bash"
# shellcheck source=../system/doubt.bash
. "$(dirname "$0")/../system/doubt.bash"
# shellcheck source=../system/pool.bash
. "$(dirname "$0")/../system/pool.bash"

need_machine
budget=30s mover='' now=a
shares=(--shared=disk1)

other() { [ "$1" = a ] && echo b || echo a; }
vm_is_gone() { ! machine_qmp "$1" query-status >/dev/null 2>&1; }
ours() { [ "$(on "$1" show disk1 .gate)" = active ] && [ "$(writers)" = "$2" ]; }

# S has decided; T dies before it has heard of that, so nobody has written: memory and disk fit.
target_dead() {
	check "it has decided" decides a b source-passed "${shares[@]}"
	check "b dies" dies b
	kill -CONT "$mover"
	check "a is in doubt" wait_for 20 in_doubt a
	check "its disk is let go of" test "$(writers)" = 0
	check "a person knows" bm_on a recover --machine vm --resume-here --peer-is-dead
	check "it runs on a" runs_on a
	check "its guest goes on" goes_on
	check "its disk is a's again" ours a 1
	check "nothing is lost" sound_both a
	over
	check "b is back" host_start b
	check "it forgets the move" wait_for 40 only_on a b
	stop_here
}

# T runs it already when it dies: what it wrote is on the disk, and a's memory does not know of that.
target_dead_late() {
	check "it runs there" decides a b target-runs "${shares[@]}"
	check "a is in doubt" cut_off
	fences b
	check "the hook knows: a has the disks" wait_for 60 ours a 1
	check "its machine is ended" wait_for 20 vm_is_gone a
	alive b
	check "b is back" host_start b
	check "it is told" wait_for 60 only_on a b
	check "the command says why" wait_for 20 grep "its memory does not know of that: start it anew" "$dir/move"
	over
	check "its machine is started again" started_again
	check "nothing is lost" sound_both a
	stop_here
}
# Its guest has time to write there, then its host dies.
cut_off() { goes_on && dies b && wait_for 20 in_doubt a; }

# S has decided, and dies; T begins alone, as S has not written since.
source_dead() {
	check "it has decided" decides a b source-passed "${shares[@]}"
	goes_on_alone
	check "one has it open" ours b 1
	check "nothing is lost" sound_both b
	now=b
	stop_here
}

# S has said that it is about to decide, and aborts; its guest writes; then it dies. T must not begin.
source_wrote() {
	local from=$now to
	to=$(other "$now")
	check "it has decided" decides "$from" "$to" source-passed "${shares[@]}"
	check "somebody has written since" unnoted
	check "$from dies, $to is in doubt" source_gone "$from" "$to"
	check_fails "$to must not begin" 3 "E_SPLIT: host host-$from may have written to disk disk1 since" \
		bm_on "$to" recover --machine vm --resume-here --peer-is-dead
	check "and does not" not_begun "$to"
	over
	stop_here
}
# What a's disk does before its guest goes on.
unnoted() { setfattr -x user.blockmirror.shared "$(in_pool disk1.img)"; }

steps_known
check "there are hooks" make_hooks
machine_up pool_up
check "disk1 is on storage of both hosts" moves_to "$pool/disk1.img"
for part in ${PARTS:-target_dead target_dead_late source_dead source_wrote}; do $part; done
[ "$lib_failed" -eq 0 ] || show_logs
