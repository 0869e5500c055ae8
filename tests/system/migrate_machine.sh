#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A whole machine moves to a host that shares no storage with its own, and back: a real Linux with two
# disks, by its memory and both of them, in one pause; no record is lost, no request fails, and what was its
# memory here is its memory there. $ROUNDS there and back, by default one, LONG=1: 20.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "$0")/machine.bash"

need_machine
steps_known
rounds=${ROUNDS:-${LONG:+20}}
pauses=()

# goes FROM TO [OPTION…]: it moves, is there alone, has lost nothing, and was stopped once.
goes() {
	check "it is watched" watch "$1"
	check "$1 to $2: its memory has arrived, and it runs nowhere" begins "$1" "$2" source-voted "${@:3}"
	check "the memory of both is noted" both_saved
	check "it moves" goes_through
	pauses+=("$(sed -n 's/.*stopped for \(.*\), once.*/\1/p' "$dir/out")")
	check "it was the same" same_memory
	[ "$lib_failed" -eq 0 ] || exit
	check "it runs there" wait_for 10 machine_is "$2" running
	check "its disks are there, and nowhere else" wait_for 20 only_on "$2" "$1"
	check "its guest goes on" goes_on
	check "nothing is lost" sound_machine "$2"
	check "$1 knows where it is" grep_out "on host host-$2" bm_on "$1" machine list
	check "it was stopped once, and its QEMU on $1 is gone" stopped_once
	echo "# its pause: $(bm_on "$1" machine show vm --json | jq -c .last.pause)"
}
grep_out() { "${@:2}" | grep "$1"; }
goes_through() { kill -CONT "$mover" && ends 0 "once"; }

# The other side waits no more than 1.5 s for a process that is stopped: what takes long is done before or after.
copies=$(mktemp -d /dev/shm/blockmirror-test.XXXXXX)
on_exit "rm -rf '$copies'"
both_saved() {
	local first
	save a &
	first=$!
	save b &
	wait "$first" "$!"
	[ -s "$copies/a" ] && [ -s "$copies/b" ]
}
save() {
	/usr/bin/python3 tests/system/qmp.py "$dir/$1/watch/look" pmemsave \
		"{\"val\": 0, \"size\": $((128 << 20)), \"filename\": \"$copies/$1\"}"
}
same_memory() { cmp "$copies/a" "$copies/b" && rm "$copies"/*; }

# shellcheck disable=SC2119 # not these
machine_up
for _ in $(seq "${rounds:-1}"); do
	goes a b
	goes b a
done
echo "# pauses: ${pauses[*]}"
