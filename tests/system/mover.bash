# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests that look at a machine's move half way: its process stops at a step, or dies there. After
# hosts.bash or what sources it.
#
#	steps_known			# before the daemons start
#	check "one begins" holds source-voted move a b
#	kill -CONT "$mover"
#	check "it ends well" ends 0 "runs on host host-b"

step_file=$dir/step
steps_known() { host_before=([a]="env BLOCKMIRROR_MOVE_STEP=$step_file" [b]="env BLOCKMIRROR_MOVE_STEP=$step_file"); }
# at STEP WHAT: the process of a move that comes to SIDE-STEP next does that: die, stop.
at() { echo "$1 $2" >"$step_file"; }
came_there() { [ ! -e "$step_file" ]; }

# holds STEP COMMAND…: which makes a move ($client, and $dir/move is what it says), whose process waits at that
# step, in $mover.
holds() {
	rm -f "$dir/move"
	at "$1" stop
	log=$dir/move spawn "${@:2}"
	client=$pid
	wait_for 60 came_there && wait_for 5 find_mover
}
find_mover() {
	local p
	for p in $(host_processes a; host_processes b); do
		[ "$(cut -d ' ' -f 3 "/proc/$p/stat" 2>/dev/null)" = T ] && mover=$p && return
	done
	return 1
}
# ends STATUS TEXT: so does the command.
ends() {
	local status
	wait_for 60 lib_gone "$client" || return
	wait "$client"
	status=$?
	lib_forget "$client"
	cat "$dir/move"
	grep -qE "$2" "$dir/move" && [ $status -eq "$1" ]
}
