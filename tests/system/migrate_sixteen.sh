#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine with as many disks as may move, 16, moves with all of them or with none: when one of them
# cannot be passed on, all stay. One with 17 is refused. There is no guest in it: what a guest notices
# migrate_machine.sh has.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "$0")/machine.bash"

need_hosts
have qemu-system-x86_64 jq setsid || { skip "a machine" "qemu-system-x86, jq, util-linux"; exit; }
budget=30s now=''
machine_disks=()

hosts_ready() {
	host_options=([a]="--machine-hooks $hooks" [b]="--machine-hooks $hooks")
	check "two hosts are paired" hosts_up
	check "each takes the other's disks" may_receive
}

# disks COUNT: so many are there, each with something else in it, and a machine that has them.
disks() {
	local i
	machine_disks=()
	for ((i = 0; i < $1; i++)); do
		machine_disks+=("d$i")
		[ -e "$dir/d$i.img" ] || head -c 1M /dev/urandom >"$dir/d$i.img"
		cp "$dir/d$i.img" "$(in_store a "d$i.img")" || return
		on a serve "d$i" "$store/d$i.img" || return
	done
}
machine_command() {
	local disk
	printf '%s\n' qemu-system-x86_64 -name vm -machine pc,accel=tcg -m 32776k -nodefaults -display none \
		-qmp "unix:$dir/a/vm.qmp,server=on,wait=off"
	for disk in "${machine_disks[@]}"; do
		printf '%s\n' -blockdev "driver=nbd,node-name=$disk,server.type=unix,server.path=$dir/a/run/disks/$disk.nbd,export=$disk,reconnect-delay=60" \
			-device "virtio-blk-pci,id=v$disk,drive=$disk,multifunction=on,addr=$((3 + ${disk#d} / 8)).$((${disk#d} % 8))"
	done
}
same_there() {
	local disk
	for disk in "${machine_disks[@]}"; do
		cmp "$dir/$disk.img" "$(in_store "$1" "$disk.img")" || return
	done
}
none_there() {
	local disk
	for disk in "${machine_disks[@]}"; do [ ! -e "$(in_store "$1" "$disk.img")" ] || { echo "$disk"; return 1; }; done
}

# dies_at STEP STAYS|GOES: the process of one disk dies when the move comes there.
dies_at() {
	local where=a
	[ "$2" = STAYS ] || where=b
	at "$1" stop
	log=$dir/move spawn move a b
	client=$pid
	check "$1: a move comes there" wait_for 60 came_there
	check "$1: and waits" wait_for 10 find_mover
	kill9 "$(on a show d15 .pid)"
	kill -CONT "$mover"
	wait_for 60 lib_gone "$client"
	lib_forget "$client"
	sed 's/^/# /' "$dir/move" | tail -n 1
	check "$1: all disks are on one host, and the machine" wait_for 60 settles a b
	check "$1: on the right one" [ "$now" = "$where" ]
	check "$1: each of them is what it was" same_there "$now"
}

steps_known
hosts_ready
check "a has 17 disks" disks 17
check "and a machine with them" start_machine
check "it is known" bm_on a machine add vm --qmp "$dir/a/vm.qmp"
check_fails "17 are too many" 3 "E_UNSUPPORTED: .*has 17 disks, and 16 are moved" move a b
check "that one ends" stop "$machine"
machine_disks=("${machine_disks[@]::16}")
check "a machine with 16" start_machine
dies_at source-gone STAYS
check "b has none" wait_for 20 none_there b
# A disk that is fenced has nothing to do any more before the decision.
dies_at source-fenced GOES
check "all move back" move b a
check "the machine runs here again, with all" wait_for 20 settles b a
check "here" [ "$now" = a ]
check "each of them is still what it was" same_there a
