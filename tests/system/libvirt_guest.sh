#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A real libvirtd with our hook, and a guest of it: defined and started, its disks with it; a disk moves
# while it runs; a disk's process dies; the guest ends, its disks with it; and a domain whose disk nobody
# knows does not start.
# shellcheck source-path=SCRIPTDIR source=libvirt.bash
. "$(dirname "$0")/libvirt.bash"

need_hosts
need_libvirt
need_guest
disks=(disk0 disk1)

begin() {
	local disk
	check "a guest is made" make_guest
	check "two hosts" hosts_up
	install -Dm 755 /dev/stdin "$dir/a/libvirt/etc/hooks/qemu.d/blockmirror" <<-END
		#!/bin/sh
		PATH=$BUILD:\$PATH
		$(grep -v '^#' etc/libvirt/qemu.d/blockmirror)
	END
	check "each has a libvirtd, and one our hook" libvirt_up
	for disk in "${disks[@]}"; do
		check "a knows $disk" on a serve "$disk" "$store/$disk.img" --create 32M
		check "it is not served" bm_on a stop "$disk"
	done
	check "the XML that is told is libvirt's" valid_disk
}
valid_disk() {
	bm_on a show disk0 --xml >"$dir/disk.xml" && xmllint --noout "$dir/disk.xml" &&
		[ "$(xmllint --xpath 'string(/disk/source/host/@socket)' "$dir/disk.xml")" = "$dir/a/run/disks/disk0.nbd" ]
}
role_is() { [ "$(on a show "$1" .role 2>/dev/null)" = "$2" ]; }
not() { ! "$@"; }
state_is() { [ "$(virsh_on a domstate guest)" = "$1" ]; }

life() {
	local p
	check "the domain is defined" virsh_on a define "$dir/guest.xml"
	check "and started, and its disks are" virsh_on a start guest
	check "disk0 is served" role_is disk0 active
	check "disk1 is, too" role_is disk1 active
	check "it boots and writes to both" wait_for 60 ticked 100 100
	mkdir -p "$(in_store a new)"
	check "a disk moves while it runs" bm_on a relocate disk0 "$store/new/" --guest-latency off
	check "the guest goes on" wait_for 30 ticked $(($(ticks 0) + 30)) $(($(ticks 1) + 30))
	p=$(on a show disk1 .pid)
	check "a disk's process dies" kill -KILL "$p"
	check "another one serves it" wait_for 10 role_is disk1 active
	check "the guest goes on: nobody but the daemon resumes it" goes_on
	check "so it does when it happens again and again" dies_often disk1 5
	check "the daemon has had it go on at least once" resumed
	paused_by_hand
	check "it is sound" no_errors
	check "it is ended" virsh_on a destroy guest
	check "disk0 is served no more" wait_for 10 not role_is disk0 active
	check "nor is disk1" wait_for 10 not role_is disk1 active
}
# This libvirt cannot have QEMU wait for a connection: a request that finds none stops the guest.
dies_often() { # DISK TIMES
	local i p
	for i in $(seq "$2"); do
		p=$(on a show "$1" .pid)
		kill -KILL "$p"
		if ! { wait_for 10 served_by_another "$1" "$p" && goes_on; }; then
			echo "the time no. $i"
			virsh_on a domstate --reason guest
			virsh_on a domblkerror guest
			tail -n 5 "$dir/a/log"
			return 1
		fi
	done
}
served_by_another() { role_is "$1" active && [ "$(on a show "$1" .pid)" != "$2" ]; }
resumed() { grep "domain guest, stopped by an error of disk disk1, goes on" "$dir/a/log"; }
reason_is() { [ "$(virsh_on a domstate --reason guest)" = "$1" ]; }
paused_by_hand() {
	local p
	p=$(on a show disk0 .pid)
	check "an administrator pauses it" virsh_on a suspend guest
	check "a disk's process dies" kill -KILL "$p"
	check "another one serves it" wait_for 10 served_by_another disk0 "$p"
	sleep 3
	check "it stays paused" reason_is "paused (user)"
	check "the administrator has it go on" virsh_on a resume guest
	check "and it does: it meets the error now, and the daemon resumes it" goes_on
}
no_errors() { ! grep -aE 'I/O error|ERROR|BAD' "$console.0" "$console.1"; }

refused() {
	check "disk1 is unknown" bm_on a forget disk1
	check_fails "a domain without its disk does not start" 1 "domain guest has disk disk1" virsh_on a start guest
	check "it says so in libvirt's words, too" state_is "shut off"
	check "it is known again" bm_on a serve disk1 "$store/disk1.img"
	check "and starts" virsh_on a start guest
	check "once more its disks end with it" virsh_on a destroy guest
	check "really" wait_for 10 not role_is disk1 active
}

begin
life
refused
