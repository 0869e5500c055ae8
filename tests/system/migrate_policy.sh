#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine that changes its memory faster than it can be sent, by each policy: it waits until the way is
# wide enough, is given up at its time-out, is stopped for longer than it should be, or is slowed down. And a
# pause that gets longer than its budget is ended, and tried again.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "$0")/machine.bash"

need_machine
have tc || { skip "policies" "iproute2"; exit; }
# 24 MiB are changed at 24 MiB/s, and 8 MiB/s are sent, of which the records on the disks take up to 3: 5 s for
# what may take 2.4.
guest_words=ram=24:24 budget=4s rate=8M

# begins FROM TO [OPTION…]: a move, whose command is $client and says what it does in $dir/move.
begins() {
	: >"$dir/move"
	log=$dir/move spawn_on "$1" "$BUILD/blockmirror" migrate vm --to "host-$2" --pause-budget "$budget" \
		--overwrite "${@:3}"
	client=$pid
}
# ends STATUS TEXT: so does the command.
ends() {
	local status
	wait_for "${PATIENCE:-240}" lib_gone "$client" || { cat "$dir/move"; return 1; }
	wait "$client"
	status=$?
	lib_forget "$client"
	cat "$dir/move"
	grep -q "$2" "$dir/move" && [ $status -eq "$1" ]
}
in_round() { grep -qE "memory, (try [0-9]+, )?round ([$1-9]|[1-9][0-9])" "$dir/move"; }
# stopped TIMES RESUMED: so often was it stopped, and ran on.
stopped() { cat "$dir/events"; [ "$(grep -cx STOP "$dir/events")" -eq "$1" ] && [ "$(grep -cx RESUME "$dir/events")" -eq "$2" ]; }
has_stopped() { [ "$(grep -cx STOP "$dir/events")" -ge 1 ]; }
is_on() {
	check "$2: it is on $1, with its disks" wait_for 60 settles "$1" "$([ "$1" = a ] && echo b || echo a)"
	[ "$now" = "$1" ] || { not_ok "$2: on $1" "$dir/move"; tail -n 20 "$dir"/{a,b}/run/moves/*.log; exit; }
	check "$2: its guest goes on" goes_on
	check "$2: nothing is lost" sound_machine "$1"
}
rate_is() { [ "$(bm_on "$1" rate --json | jq .rate)" -eq "$2" ]; }
last() { bm_on "$1" machine show vm --json | jq "$2"; }

refused() {
	check_fails "a policy that is none" 2 "wait, cancel, force or throttle" bm_on a migrate vm --to host-b --policy hope
	check_fails "one that waits for ever, until then" 2 "no --timeout" bm_on a migrate vm --to host-b --policy wait --timeout 1s
	check_fails "one that ends at no time" 2 "after which --timeout" bm_on a migrate vm --to host-b --policy cancel
	check_fails "one that forces it at no time" 2 "after which --timeout" bm_on a migrate vm --to host-b --policy force
	check_fails "a rate that is none" 2 "rate" bm_on a migrate vm --to host-b --rate fast
}

cancelled() {
	check "it is watched" watch a
	check "one begins" begins a b --rate $rate --policy cancel --timeout 60s
	check "cancel: it does not get it over" ends 5 "E_BUDGET: machine vm has not moved within its --timeout"
	check "cancel: its guest was never stopped" stopped 0 0
	stop "$watcher"
	check "cancel: several rounds were sent" in_round 2
	check "cancel: the rate is as it was" rate_is a 0
	is_on a cancel
}

waited() {
	check "one begins" begins a b --rate $rate --policy wait
	check "wait: it goes round after round" wait_for 200 in_round 3
	check "wait: with the way as wide as it is" bm_on a rate off
	check "wait: it moves" ends 0 "runs on host host-b"
	check "wait: both are told, bytes of RAM and of the wire" grep -E "RAM: +[0-9.]+ MiB, [0-9.]+ MiB on the wire" "$dir/move"
	is_on b wait
}

# What that host sends.
link_is() { on "$1" tc qdisc replace dev eth0 root tbf rate "$2" burst 64k latency 50ms; }

# By a narrow way: what is left in the pause does not wait for the cap.
forced() {
	check "force: the way is narrow" link_is b 64mbit
	check "one begins" begins b a --policy force --timeout 1s --pause-budget 400ms
	check "force: it moves" ends 0 "runs on host host-a"
	check "force: it was stopped for longer" [ "$(last b .last.pause_ns)" -gt 400000000 ]
	check "force: a whole round was sent before" grep "round 1: .* MiB of RAM" "$dir/move"
	check "force: the way is wide again" on b tc qdisc del dev eth0 root
	is_on a force
}

throttled() {
	check "one begins" begins a b --rate $rate --policy throttle
	check "throttle: its guest is slowed down" wait_for 200 grep -q "slowed down by" "$dir/move"
	check "throttle: it moves" ends 0 "runs on host host-b"
	is_on b throttle
}

# 24 MiB take 6 s, and 7.2 are allowed in the end; then they take 50.
overrun() {
	local from=${now:-a} to=b
	[ "$from" = a ] || to=a
	check "it is watched" watch "$from"
	check "overrun: the way is narrow" link_is "$from" 32mbit
	check "one begins" begins "$from" "$to" --pause-budget 12s
	check "overrun: the guest is stopped" wait_for 200 has_stopped
	link_is "$from" 4mbit
	check "overrun: it runs on" wait_for 30 stopped 1 1
	check "overrun: the way is wide again" on "$from" tc qdisc del dev eth0 root
	check "overrun: it is tried again, and moves" ends 0 "runs on host host-$to"
	check "overrun: there were two" [ "$(last "$from" .last.memory.tries)" -ge 2 ]
	is_on "$to" overrun
}

# shellcheck disable=SC2119 # not these
machine_up
for part in ${PARTS:-refused cancelled waited forced throttled overrun}; do $part; done
