#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What tests of two hosts stand on: hosts that reach each other and share no storage, a network that
# can be cut, daemons that can be killed, disks with load (hosts.bash).
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "$0")/hosts.bash"

need_hosts
have nbdkit setfattr || { skip "two hosts" "nbdkit, attr"; exit; }
BEFORE=0.2 AFTER=0.2

pairing() {
	check "two hosts are paired" hosts_up
	check "a reaches b" bm_on a peer check host-b
	check "b reaches a" bm_on b peer check host-a
}

stores() {
	check "a has a file" on a bash -c "echo here >'$store/file'"
	check "b does not see it" on b test ! -e "$store/file"
	check "nor does anybody outside" test ! -e "$store/file"
	check "unless he looks into a" grep here "$(in_store a file)"
	check "b has a file of that name" on b bash -c "echo there >'$store/file'"
	check "a's is what it was" grep here "$(in_store a file)"
	check "files can be marked" on a setfattr -n user.x -v 1 "$store/file"
	check "and read past the cache" on a dd if="$store/file" of=/dev/null iflag=direct bs=4k
}

disks() {
	check "a serves a disk" on a serve disk "$store/disk.img" --create $image_size
	check "it is in a's namespaces" is_in a "$disk_pid"
	check_fails "b knows of none" 4 E_NOT_FOUND bm_on b show disk
	on a start_load disk --iops 3000
	check "so is its load" wait_for 10 is_in a "$load"
	check "the disk works" on a wait_for 20 more_writes 600
	check "the guest noticed nothing" end_load
	check "the image holds what it wrote" store_fits a disk.img
}
is_in() {
	local kind
	for kind in net mnt; do
		[ "/proc/$2/ns/$kind" -ef "/proc/${host_holder[$1]}/ns/$kind" ] || return
	done
}

# Until a connection is given up, there is time for what needs no network.
network() {
	local at_a at_b
	check "the network is cut" cut_network
	log=$dir/at_a spawn_on a timeout 15 "$BUILD/blockmirror" peer check host-b
	at_a=$pid
	log=$dir/at_b spawn_on b timeout 15 "$BUILD/blockmirror" peer check host-a
	at_b=$pid
	stores
	disks
	check_fails "a does not reach b" 7 E_UNREACHABLE ended "$at_a" "$dir/at_a"
	check_fails "b does not reach a" 7 E_UNREACHABLE ended "$at_b" "$dir/at_b"
	check "the network is joined" join_network
	check "a reaches b again" bm_on a peer check host-b
	check "b reaches a again" bm_on b peer check host-a
}
ended() { # PID LOG: with what status, and what it said
	local status
	wait "$1"
	status=$?
	cat "$2"
	lib_forget "$1"
	return $status
}

daemons() {
	check "b's daemon is killed" host_kill b
	check_fails "a does not reach b" 7 E_UNREACHABLE bm_on a peer check host-b
	check "it is started again" host_start b
	check "a reaches b" bm_on a peer check host-b
	check "a's daemon is stopped" host_stop a
	check "its disk is there" served_by "$disk_pid"
	check "a's daemon is started again" host_start a
	check "its disk is the same" served_by "$disk_pid"
}
served_by() { [ "$(on a show disk .pid)" = "$1" ]; }

# A disk that was killed has been followed by one that no test knows of.
end() {
	spawn_on b sleep infinity
	on a kill_disk disk
	check "a disk is killed, and served again" wait_for 10 served_again
	check "hosts are brought down" hosts_down
	check "no process is left there" nobody_there
	check "no store is left" unused "$dir/a/store.img" "$dir/b/store.img"
}
served_again() { on a show disk '.pid // empty' | grep -vqx "$disk_pid"; }
nobody_there() { [ -z "$(host_processes a; host_processes b)" ]; }
unused() {
	local file
	for file; do [ -z "$(losetup -j "$file")" ] || return; done
}

pairing
network
daemons
end
