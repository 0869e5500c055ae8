#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Machines on their way have what they need kept for them; what comes up meanwhile is seen before their memory goes;
# moves begin in their window; all machines of a host go one after the other; a host that cannot be reached is told
# of. The machines are QEMUs without a system in them.
# shellcheck source-path=SCRIPTDIR source=plain_machine.bash
. "$(dirname "$0")/plain_machine.bash"

need_plain

# begins STEP [OPTION…]: a move of vm, whose process waits at that step.
begins() { holds "$1" move "${@:2}"; }

stays() { no_move && is_empty_there && [ "$(on a show vm .gate)" = active ]; }

# Each needs 80 MiB, with what its QEMU needs itself; there is room for one.
kept() {
	check "a second machine runs" qemu two
	facts '{"memory_available": 115343360, "cpus": 8}'
	check "vm is on its way" begins source-checked
	check_fails "the memory is counted once" 3 "E_MEMORY: .*30.0 MiB are free, beside 80.0 MiB that are kept" \
		bm_on a migrate two --to host-b
	facts '{"cpus_free": 1}'
	check_fails "so are processors" 3 "E_CPU: .*0 are free, beside 1 that" bm_on a migrate two --to host-b
	bm_on a machine cancel vm >>"$dir/log" 2>&1 &
	kill -CONT "$mover"
	check "vm stays" ends 1 E_CANCELLED
	facts '{"memory_available": 115343360, "cpus_free": 1}'
	check "now there is room" bm_on a migrate two --to host-b --dry-run
	facts '{}'
}

again() {
	check "vm is on its way" begins source-joined
	touch "$dir/b/state/maintenance"
	kill -CONT "$mover"
	check "maintenance came up: it stays" ends 3 E_MAINTENANCE
	rm "$dir/b/state/maintenance"
	check "vm is on its way again" begins source-joined
	facts '{"machine_types": ["none"]}'
	kill -CONT "$mover"
	check "all is looked at again" ends 3 "E_HOST: .*machine type"
	facts '{}'
	check "b has nothing of it" wait_for 20 stays
}

# from_now MINUTES: that time of the day.
from_now() { date -d "$1 minutes" +%H:%M; }
window() {
	local opens
	check_fails "a window that is none" 2 "times like 22:00-06:00" move --window night
	opens=$(from_now 120)-$(from_now 180)
	log=$dir/move spawn move --window "$opens" --progress plain
	client=$pid
	check "it waits for its window" wait_for 10 grep "waits for its window" "$dir/move"
	check "as a move" [ "$(bm_on a machine show vm --json | jq -r .move.id | cut -c 1-3)" = vm- ]
	check "it can be cancelled" bm_on a machine cancel vm
	check "it stays" ends 1 E_CANCELLED
	check "in its window it goes on at once" move --window "$(from_now -60)-$(from_now 60)" --rehearse --pause-budget 20s
}

cut_off() {
	check "the network is cut" cut_network
	LIMIT=60 check_fails "b is out of reach" 7 E_UNREACHABLE bm_on a migrate vm --to host-b
	check "the network is back" join_network
	check "nothing has changed" wait_for 20 stays
}

all() {
	check_fails "one machine, or all" 2 "" bm_on a migrate vm --all --to host-b
	# shellcheck disable=SC2016 # the hook's
	hook check-target 'grep -q "\"machine\": *\"two\"" "$1" || exit 0; echo not two >&2; exit 1'
	check_fails "one is refused, the other goes" 3 "^vm .* is on host-b" bm_on a migrate --all --to host-b --pause-budget 20s && cp "$dir/out" "$dir/out.all"
	check "which, and why, is said" grep "^two .*stays: exit status 3" "$dir/out.all"
	rm "$hooks_b/check-target"
	check "the rest goes" bm_on a migrate --all --to host-b --pause-budget 20s
	check "both are there" [ "$(bm_on b machine list --json | jq -r '[.machines[].name] | sort | join(" ")')" = "two vm" ]
	check "a has none any more" bm_on a migrate --all --to host-b
}

plain_up
for part in ${PARTS:-kept again window cut_off all}; do $part; done
