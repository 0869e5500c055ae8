#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine's move loses a process at each of its steps, on either host: before the decision the machine
# runs on where it was, after it where it was to go; with all of its disks, of which nothing is lost, and it
# never runs twice. LONG=1: at each step; else at the two around the
# decision.
# shellcheck source-path=SCRIPTDIR/../system source=../system/machine.bash
. "$(dirname "$0")/../system/machine.bash"

need_machine
here=a there=b now=''
budget=30s
before="source-begun source-prepared target-prepared source-in-sync source-joined source-streaming
	source-stopped target-loaded target-voted source-voted source-gone source-fenced"
after="source-passed target-started target-runs source-done source-left"
[ -n "${LONG:-}" ] || before="source-fenced" after="source-passed"

turn() { [ $here = a ] && here=b there=a || here=a there=b; }

# dies STEP STAYS|GOES
dies() {
	local where=$here
	[ "$2" = STAYS ] || where=$there
	at "$1" die
	move $here $there --overwrite >"$dir/move" 2>&1
	sed 's/^/# /' "$dir/move" | grep -v "memory, " | tail -n 1
	check "$1: the process has died" came_there
	check "$1: the machine is on one host" wait_for 40 settles $here $there
	check "$1: on the right one" [ "$now" = "$where" ]
	[ "$lib_failed" -eq 0 ] || { show_logs; exit; }
	check "$1: its guest goes on" goes_on
	check "$1: nothing is lost" sound_machine "$now"
	[ "$2" = STAYS ] || turn
}
# All that tells why: who fails once in many runs is not seen again soon.
show_logs() {
	local host
	{
		tail -n 25 "$dir"/{a,b}/run/moves/*.log "$dir"/{a,b}/log "$dir"/{a,b}/run/machines/*.log
		for host in a b; do
			echo "$host: $(machine_qmp $host query-status) $(machine_qmp $host query-migrate)"
			host_processes $host | xargs -r ps -o pid,stat,etimes,args -p
			for disk in "${machine_disks[@]}"; do
				echo "$host $disk: $(role $host "$disk") $(on $host show "$disk" .gate)"
			done
		done
		tail -n 5 "$console".?
	} 2>&1 | cut -c 1-300 | sed 's/^/# /'
}

steps_known
# shellcheck disable=SC2119 # not these
machine_up
for step in $before; do dies "$step" STAYS; done
for step in $after; do dies "$step" GOES; done
