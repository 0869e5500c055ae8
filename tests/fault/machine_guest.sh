#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What a machine itself, or its VMM, does while it moves: it is shut down (nothing comes of the move, and
# the other host has nothing of it), it begins anew (the move goes on), the target's VMM is another one
# and refuses the state (it stays). And the network is cut in the pause, and both daemons die before it.
# shellcheck source-path=SCRIPTDIR/../system source=../system/network.bash
. "$(dirname "$0")/../system/network.bash"

need_machine
have cc || { skip "a guest with a network" "a C compiler"; exit; }
budget=60s now=''

no_copy() { [ ! -e "$(in_store b disk0.img)" ] && [ ! -e "$(in_store b disk1.img)" ]; }
logs() { tail -n 12 "$dir"/{a,b}/run/moves/*.log "$dir"/*/run/machines/*.log 2>&1 | sed 's/^/# /'; }
no_machine() { ! xargs -r ps -o args= -p < <(host_processes "$1") | grep -q '^qemu-system'; }
# stays NAME: it runs on a, and b has nothing of it.
stays() {
	check "$1: it is here, with its disks" wait_for 60 settles a b
	[ "$now" = a ] || { not_ok "$1: here"; logs; exit; }
	check "$1: b has no copy" wait_for 20 no_copy
	check "$1: its guest goes on" goes_on
	check "$1: nothing is lost" sound_machine a
}

# It takes a moment until the host that it came to has done with that move, too.
come_back() {
	[ "$now" = b ] || return
	check "back" move b a
	check "with its disks" wait_for 20 only_on a b
	sleep 2
}

# Who ends his own machine in the middle of a move.
shut_down() {
	local had
	come_back
	had=$(copies)
	check "one begins" begins a b source-joined
	check "the guest shuts down" guest_does off
	check "it does" wait_for 120 no_machine a
	kill -CONT "$mover"
	check "nothing comes of it" ends 1 "E_INTERRUPTED: machine vm was shut down"
	check "its disks are here alone" wait_for 20 only_on a b
	check "b has no copy that it had not before" wait_for 20 has_copies "$had"
	check "nor a VMM" wait_for 10 no_machine b
	check "every record is here" records_there a
	check "it has met no error" no_errors
}
# Those of a machine that was on b are there still.
copies() { find "$(in_store b "")" -maxdepth 1 -name 'disk*' -printf '%f\n' | sort; }
has_copies() { copies; [ "$(copies)" = "$1" ]; }
# Where a machine has ended or begun anew, a record may be there that it had no time to tell of.
records_there() {
	local i
	for i in 0 1; do "$records" check "$(in_store "$1" "disk$i.img")" "$console.$i" || return; done
}
no_errors() { ! grep -aE 'I/O error|ERROR|BAD' "$console".?; }

other_hook() { # NAME JQ-FILTER: what b's hook makes of the command line
	mkdir -p "$dir/hooks-$1"
	# shellcheck disable=SC2016 # the hook's
	printf '#!/bin/bash\njq %q "$1" >%q && exec %q %q\n' ".description.arguments |= $2" "$dir/other" \
		"$hooks/start-target" "$dir/other" >"$dir/hooks-$1/start-target"
	chmod +x "$dir/hooks-$1/start-target"
	host_stop b && host_start b --machine-hooks "$dir/hooks-$1"
}
rejected() {
	check "b starts another type of machine" other_hook type 'map(sub("^pc,accel"; "q35,accel"))'
	check_fails "it does not take the state" 3 "E_QMP: .*; the machine is here" move a b
	sed 's/^/# /' "$dir/out" | tail -n 1
	stays "another type"
	check "b starts one with another device" other_hook device 'map(sub("^virtio-net-pci,.*"; "virtio-rng-pci"))'
	check_fails "it does not take the state" 3 "E_QMP: .*; the machine is here" move a b
	sed 's/^/# /' "$dir/out" | tail -n 1
	stays "another device"
	check "b has its hooks again" restart_b
}
restart_b() { host_stop b && host_start b; }

cut_in_pause() {
	check "one begins, and the guest stands still" begins a b source-stopped
	check "the network is cut" cut_network
	kill -CONT "$mover"
	check "its guest goes on" goes_on
	check "the network is back" join_network
	check "it comes to an end" ends 7 "E_UNREACHABLE"
	stays "cut off in the pause"
}

# Who is moved has no need of them until it is over.
daemons_die() {
	check "one begins" begins a b source-streaming
	check "both daemons die" both_die
	kill -CONT "$mover"
	check "it runs there" wait_for 60 has_begun_there
	check "a's daemon is back" host_start a
	check "b's daemon is back" host_start b
	check "it has moved" ends 0 "runs on host host-b"
	check "it is there, with its disks" wait_for 40 settles a b
	check "there" [ "$now" = b ]
	check "its guest goes on" goes_on
	check "nothing is lost" sound_machine b
}
has_begun_there() { grep -q ': running$' "$dir"/b/run/moves/*.log; } # its QMP socket is taken
both_die() { host_kill a && host_kill b; }

# From b, where it may be.
begins_anew() {
	come_back
	check "one begins" begins a b source-streaming
	check "the guest begins anew" guest_does reset
	sleep 1
	kill -CONT "$mover"
	check "the move goes on" ends 0 "runs on host host-b"
	check "it is there, with its disks" wait_for 40 settles a b
	check "there" [ "$now" = b ]
	check "its guest boots there, and goes on" wait_for "${BOOT:-90}" ticked $(($(ticks 0) + 60)) $(($(ticks 1) + 60))
	machine_qmp b stop >>"$dir/log"
	check "every record is there" records_there b
	check "it has met no error" no_errors
	machine_qmp b cont >>"$dir/log"
}

steps_known
network_machine_up
for part in ${PARTS:-rejected cut_in_pause daemons_die begins_anew shut_down}; do $part; done
