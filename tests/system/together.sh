#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Disks that were armed with one another are one machine's: when its guest writes to one of them on the
# other host, the others pass, too, those that it never writes to as well; and they come back the same way.
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "$0")/hosts.bash"

need_hosts
image_size=$((16 * M))

begin() {
	local name
	check "two hosts are paired" hosts_up
	bm_on a peer allow host-b --receive "$store" >>"$dir/log"
	bm_on b peer allow host-a --receive "$store" >>"$dir/log"
	for name in one two three alone; do
		check "a serves $name" bm_on a serve $name "$store/$name.img" --create $image_size
	done
}

guest() { on "$1" /usr/bin/python3 -c "import nbd, time; h = nbd.NBD(); h.connect_uri('$(nbd_uri "$dir/$1/run/disks/$2.nbd" "$2")'); $3"; }
writes() { guest "$1" "$2" "h.pwrite(b'$3' * 4096, 0)"; }
has() { guest "$1" "$2" "assert h.pread(4096, 0) == b'$3' * 4096"; }
role_is() { [ "$(on "$1" show "$2" .role 2>/dev/null)" = "$3" ]; }
all_active() { local name; for name in "${@:2}"; do role_is "$1" "$name" active || return; done; }
armed() { [ "$(on "$1" show "$2" .gate 2>/dev/null)" = armed ]; }
all_armed() { local name; for name in "${@:2}"; do armed "$1" "$name" || return; done; }
said() { grep -q "$2" "$dir/$1/run/disks/$3.log"; }

follow() {
	check "they are armed" bm_on a migrate arm one two three --to host-b
	check "another one is armed by itself" bm_on a migrate arm alone --to host-b
	check "b's guest writes to one" writes b one 1
	check "b has all of them" wait_for 10 all_active b one two three
	check "a has none of them" all_armed a one two three
	check "the one that was armed by itself is a's" role_is a alone active
	check "what was written is there" has b one 1
	check "the others work" writes b two 2
}
come_back() {
	local name
	check "a's guest writes to another one" writes a three 3
	check "a has all of them again" wait_for 10 all_active a one two three
	for name in one two three; do check "b has not: $name" role_is b $name standby; done
	check "what b's guest wrote is there" has a one 1
	check "also in two" has a two 2
}

# Its offers outlive the processes.
after_deaths() {
	check "they are armed again" bm_on a migrate arm one two three --to host-b
	host_kill b
	kill -KILL "$(on b show two .pid)"
	check "b's daemon and a disk's process died" host_start b
	check "two is armed still" wait_for 10 armed b two
	check "b's guest writes to two" writes b two 4
	check "b has all of them" wait_for 10 all_active b one two three
}

# One that cannot be had just now passes by its own first write.
copies_follow() { local n; for n in "${@:2}"; do on "$1" job_is "$n" .progress.target in-sync || return; done; }
unheard() {
	local hangs
	check "a's copies follow" wait_for 20 copies_follow b one two three
	check "they are armed for a" bm_on b migrate arm one two three --to host-a
	hangs=$(on b show three .pid)
	kill -STOP "$hangs"
	check "a's guest writes to one, while three's process on b hangs" writes a one 5
	check "a has two, too" wait_for 10 all_active a one two
	kill -CONT "$hangs"
	check "and three, when it can be had" wait_for 45 all_active a three
}

# Two machines run: what a's guest goes on writing to stays with it.
split() {
	local load
	check "they are armed once more" bm_on a migrate arm one two three --to host-b
	spawn guest a two "
end = time.monotonic() + 4
while time.monotonic() < end: h.pwrite(b'6' * 4096, 4096)"
	load=$pid
	sleep 1
	check "b's guest writes to one" writes b one 6
	check "b has one and three" wait_for 10 all_active b one three
	check "a's guest keeps two" role_is a two active
	check "and notices nothing" wait "$load"
	lib_forget "$load"
	check "both are told" said a "both run" two
}

begin
follow
come_back
after_deaths
unheard
split
