#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine's move is in doubt, and one of the two hosts is dead. Nothing runs by time alone; hook fence, or a person,
# says that it is dead, and then the machine runs on the other one, with all of its disks, of which nothing is lost.
# Never two run: also when the dead one comes back.
# shellcheck source-path=SCRIPTDIR/../system source=../system/machine.bash
. "$(dirname "$0")/../system/machine.bash"
# shellcheck source=../system/doubt.bash
. "$(dirname "$0")/../system/doubt.bash"

need_machine
budget=30s mover=''

# S has decided, and T dies before it has heard of that.
target_dead() {
	check "it has decided" decides a b source-passed
	check "b dies" dies b
	kill -CONT "$mover"
	check "a is in doubt, and says so" wait_for 20 in_doubt a
	check "so does the command" wait_for 10 grep "in doubt" "$dir/move"
	check "and how it ends" grep "recover --machine vm --resume-here --peer-is-dead" "$dir/said"
	check "asking changes nothing" says "not known whether machine vm runs" bm_on a recover --machine vm
	check "the hook is asked" wait_for 20 asked
	check "it does not know: nothing runs" fenced_on a
	check_fails "one of the two words is not enough" 2 "said together" bm_on a recover --machine vm --peer-is-dead
	check "a person knows" bm_on a recover --machine vm --resume-here --peer-is-dead
	check "it runs on a" runs_on a
	check "its guest goes on" goes_on
	check "nothing is lost" sound_machine a
	over
	check "b is back" host_start b
	check "it forgets the move, which a has forgotten" wait_for 40 only_on a b
	check_fails "a machine that is in no doubt" 4 "is in no move" bm_on a recover --machine vm
	stop_here
}

# T runs it already when it dies, and comes back with all disks.
target_dead_late() {
	check "it has begun there" decides a b target-started
	check "b dies" dies b
	check "a is in doubt" wait_for 20 in_doubt a
	check "nothing runs" fenced_on a
	fences b
	check "the hook knows: it runs on a" runs_on a
	check "its guest goes on" goes_on
	check "b does not know" wait_for 20 says "does not know that yet" bm_on a machine show vm
	alive b
	check "b is back" host_start b
	check "it is told" wait_for 60 only_on a b
	check "it runs on a still" machine_is a running
	check "nothing is lost" sound_machine a
	over
	stop_here
}

# As before; but its guest has written there.
target_dead_running() {
	check "it runs there" decides a b target-runs
	check "its guest goes on there" goes_on
	check "b dies" dies b
	check "a is in doubt" wait_for 20 in_doubt a
	fences b
	check "the hook knows: it runs on a" runs_on a
	alive b
	check "b is back, where all disks had been taken" host_start b
	check "it is told" wait_for 60 only_on a b
	over
	stop_here
}

# T has voted, and S dies before it could say that its disks are whole there: they may not be.
source_dead_early() {
	check "it has voted" decides a b source-voted
	check "b hears nothing, and is in doubt" source_gone
	check "the hook is asked" wait_for 40 asked
	check_fails "b must not begin" 3 "E_NOT_READY: host host-a had not said that its disks were whole here" \
		bm_on b recover --machine vm --resume-here --peer-is-dead
	check "and does not" not_begun b
	check "a is back" host_start a
	check "a has the disks" wait_for 60 only_on a b
	over
	check "its machine is started again" started_again
	stop_here
}

# It has decided, and could not say so.
source_dead() {
	check "it has decided" decides a b source-passed
	goes_on_alone
	check "it runs on b still" machine_is b running
	check "nothing is lost" sound_machine b
}

# As before, and the process that begins there dies, too, when it has written that it will.
alone_dies() {
	local from=a to=b
	machine_is a running || from=b to=a
	check "it has decided" decides $from $to source-passed
	check "$from dies, $to is in doubt" source_gone $from $to
	at target-alone die
	fences $from
	check "the hook knows, and the process that begins there dies" wait_for 40 came_there
	check "the next one goes on: it runs on $to" runs_on $to
	check "its guest goes on" goes_on
	over
	alive $from
	check "$from is back" host_start $from
	check "it learns of that" wait_for 60 only_on $to $from
	check "nothing is lost" sound_machine $to
}

steps_known
check "there are hooks" make_hooks
# shellcheck disable=SC2119 # not these
machine_up
for part in ${PARTS:-target_dead target_dead_late target_dead_running source_dead_early source_dead alone_dies}; do $part; done
[ "$lib_failed" -eq 0 ] || show_logs
