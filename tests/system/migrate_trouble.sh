#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine's move that is refused, rehearsed, cancelled, late, or disturbed by more than the death of its own
# processes (tests/fault/machine_death.sh): the machine is on one host, with all of its disks.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "$0")/machine.bash"

need_machine
budget=30s now=''

refused() {
	check_fails "a machine that nobody knows" 4 "E_NOT_FOUND: machine other is not known" bm_on a migrate other --to host-b
	check_fails "a host that nobody knows" 4 "E_NOT_FOUND" bm_on a migrate vm --to host-c
	check_fails "no host" 2 "to HOST is wanted" bm_on a migrate vm
	check_fails "a verb that there is not" 2 "one machine, or the verbs" bm_on a migrate vm vm --to host-b
	check_fails "a budget that is none" 2 "pause-budget" bm_on a migrate vm --to host-b --pause-budget much
	check_fails "nobody listens there" 4 "E_NOT_FOUND" bm_on a machine add other --qmp "$dir/none.qmp"
	spawn_on a socat "UNIX-LISTEN:$dir/false.qmp" EXEC:'echo hello'
	wait_for 5 test -S "$dir/false.qmp"
	check_fails "who answers is no QEMU" 3 "E_QMP: .*not QEMU" bm_on a machine add other --qmp "$dir/false.qmp"
	check_fails "a machine that is on no host can not be cancelled" 4 "is not being moved" bm_on a machine cancel vm
	check "b is without hooks" restart_b --machine-hooks "$dir/none"
	check_fails "it takes no machine" 3 "E_ACCESS: host host-b does not take machines: it has no hook" move a b
	check "b has its hooks again" restart_b
	mkdir "$dir/hooks"
	printf '#!/bin/sh\necho it cannot >&2\nexit 3\n' >"$dir/hooks/start-target"
	chmod +x "$dir/hooks/start-target"
	check "b has one that fails" restart_b --machine-hooks "$dir/hooks"
	check_fails "nothing comes of it" 1 "E_IO: hook start-target of machine vm failed .status 3.: it cannot" move a b
	check "b has its hooks again" restart_b
	stays "after that"
}
restart_b() { host_stop b && host_start b "$@"; }

# stays NAME: it is on a, and b has nothing of it.
stays() {
	check "$1: it is here, with its disks" wait_for 40 settles a b
	[ "$now" = a ] || { not_ok "$1: here" "$dir/out"; tail -n 20 "$dir"/{a,b}/run/moves/*.log; exit; }
	check "$1: b has no copy" wait_for 10 no_copy
	check "$1: its guest goes on" goes_on
	check "$1: nothing is lost" sound_machine a
}
no_copy() { [ ! -e "$(in_store b disk0.img)" ] && [ ! -e "$(in_store b disk1.img)" ]; }

rehearsed() {
	check "it is watched" watch a
	check "it is rehearsed" move a b --rehearse
	grep -o 'its pause was.*' "$dir/out" | sed 's/^/# /'
	check "it was stopped once, and ran on" grep_both
	stop "$watcher"
	stays "rehearsed"
}
grep_both() {
	cat "$dir/events"
	[ "$(grep -cx STOP "$dir/events")" -eq 1 ] && [ "$(grep -cx RESUME "$dir/events")" -eq 1 ]
}


ended_early() {
	check "one begins" begins a b source-joined
	bm_on a machine cancel vm >>"$dir/log" 2>&1 &
	kill -CONT "$mover"
	check "it is cancelled" ends 1 "E_CANCELLED"
	stays "cancelled"
	check_fails "one that takes too long" 5 "E_BUDGET: machine vm has not moved within its --timeout" \
		move a b --timeout 1ms
	stays "late"
	check "one begins" begins a b source-joined
	kill9 "$(on a show disk1 .pid)"
	kill -CONT "$mover"
	check "the death of a disk's process ends it" ends 1 "E_INTERRUPTED: the process of disk disk1 has died"
	stays "a disk has died"
}

network() {
	check "one begins" begins a b source-streaming
	check "the network is cut" cut_network
	kill -CONT "$mover"
	check "its guest goes on" goes_on
	check "the network is back" join_network
	check "it comes to an end" ends 7 "E_UNREACHABLE"
	stays "cut off"
}

# Both daemons die in the pause, and the network is cut after the decision.
decided() {
	check "one begins" begins a b source-passed
	check "the network is cut" cut_network
	check "both daemons die" both_die
	kill -CONT "$mover"
	sleep 3
	check "it runs nowhere" nowhere
	check "a's daemon is back" host_start a
	check "b's daemon is back" host_start b
	sleep 1
	check "it runs nowhere still" nowhere
	check "the network is back" join_network
	check "it comes to an end" ends 0 "runs on host host-b"
	check "it is there, with its disks" wait_for 40 settles a b
	check "there" [ "$now" = b ]
	check "its guest goes on" goes_on
	check "nothing is lost" sound_machine b
}
both_die() { host_kill a && host_kill b; }
nowhere() {
	echo "gates: $(gate disk0) $(gate disk1); $(tail -n 3 "$dir"/{a,b}/run/moves/*.log)"
	[ "$(gate disk0)$(gate disk1)" = fencedfenced ] && ! grep -q ": started" "$dir"/b/run/moves/*.log
}
gate() { on a show "$1" .gate; }

# A disk whose storage is on b already, and served by a.
storage_there() {
	mkdir -p "$(in_store b sub)"
	check "disk1 has its storage on b" bm_on a relocate disk1 "bm://host-b$store/sub/" --guest-latency off
	check "its guest goes on" goes_on
	check "it moves" move a b
	check "it is there, with its disks" wait_for 40 settles a b
	check "there" [ "$now" = b ]
	check "its guest goes on there" goes_on
	check "a has disk1 no more" wait_for 10 retired_there
	machine_qmp b stop >>"$dir/log"
	check "disk1 has lost nothing" "$records" check "$(in_store b sub/disk1.img)" "$console.1"
	check "disk0 neither" "$records" check "$(in_store b disk0.img)" "$console.0"
}

retired_there() { [ "$(role a disk1)" = retired ] && [ "$(gate disk1)" != active ]; }

steps_known
# shellcheck disable=SC2119 # not these
machine_up
for part in ${PARTS:-refused rehearsed ended_early network decided}; do $part; done
