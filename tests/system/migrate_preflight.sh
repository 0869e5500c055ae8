#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What speaks against a machine's move is found out before anything is changed, is told in one line each, with its
# code, and nothing is changed. The machines are QEMUs without a system in them: they have a disk of ours each.
# What another host is like is what its hook host-facts says.
# shellcheck source-path=SCRIPTDIR source=plain_machine.bash
hook_time=3s
. "$(dirname "$0")/plain_machine.bash"

need_plain

qemu_of() { local memory=$1; qemu "${@:2}"; }

machine_itself() {
	too vm stop >>"$dir/log"
	refused "one that does not run" E_NOT_READY 'it is "paused"'
	too vm cont >>"$dir/log"
	check "one with a device that QEMU cannot move" qemu two -object memory-backend-ram,id=m,size=1M,share=on \
		-device ivshmem-plain,memdev=m
	check_fails "QEMU's own words are told" 3 "E_UNSUPPORTED: its VMM cannot move machine two: .*ivshmem" \
		bm_on a migrate two --to host-b
	stop "$machine"
	check "one whose QEMU does not note all that it writes" qemu_of 16M two
	check_fails "it would lose that, and hears how not to" 3 \
		"E_UNSUPPORTED: machine two would lose what its guest writes .* without KVM, .*pc.ram is; start it with 16392k" \
		bm_on a migrate two --to host-b
	check "a newer one does" seen_as newer '{"query-version": {"qemu": {"major": 9, "minor": 0, "micro": 0}, "package": ""},
		"query-memdev": [{"id": "pc.ram", "size": 16777216}]}'
	check "it could go" move --dry-run
	check "as could one of such a size with KVM" seen_as by_kvm '{"query-kvm": {"enabled": true, "present": true},
		"query-memdev": [{"id": "pc.ram", "size": 16777216}]}'
	check "it could go, too" move --dry-run
	check "but not that one" seen_as older '{"query-memdev": [{"id": "pc.ram", "size": 16777216}]}'
	refused "a plan says so, too" E_UNSUPPORTED "machine vm would lose" 3 --dry-run
	stop "$machine"
	check "one that has a device of the host" seen_as usb '{"qom-list": [{"name": "stick", "type": "child<usb-host>"},
		{"name": "gpu", "type": "child<vfio-pci>"}, {"name": "net", "type": "child<virtio-net-pci>"}]}'
	refused "it is named" E_UNSUPPORTED "passed through .*stick .usb-host"
	check "each of them" grep "E_UNSUPPORTED: .*gpu (vfio-pci)" "$dir/said"
	check "and nothing else" not grep virtio "$dir/said"
	check "it is as it is again" as_it_is
}

other_host() {
	facts '{"memory_available": 1000000}'
	refused "too little memory" E_MEMORY "too little free memory"
	facts '{"overcommit": {"mode": 2, "ratio": 50}}'
	refused "memory is committed by other rules" E_MEMORY "vm.overcommit_memory is [01] here and 2 there"
	facts '{"cpus_free": 0}'
	refused "too few processors" E_CPU "too few processors: the machine has 1, 0 are free"
	facts '{"page_size": 65536}'
	refused "pages of another size" E_HOST "65536 bytes, not 4096"
	facts '{"machine_types": ["pc-q35-7.2", "none"]}'
	refused "another machine type" E_HOST "does not know the machine type pc-i440fx"
	facts '{"cpu_features": ["fpu"], "accelerators": ["tcg"]}'
	check "one that uses the processor itself" seen_as kvm '{"query-kvm": {"enabled": true, "present": true}}'
	refused "its processor lacks something" E_CPU "lack what the machine has seen here:.* sse2"
	check "and there is no such accelerator" grep "E_HOST: .*no accelerator kvm" "$dir/said"
	facts '{"arch": "s390x", "cpu_features": '"$(sed -n 's/^flags.*: //p' /proc/cpuinfo | head -n 1 | jq -Rc 'split(" ")')"'}'
	refused "it is of another kind" E_HOST "s390x, not"
	check "as for the processor, there is nothing else" not grep E_CPU "$dir/said"
	check "it is as it is again" as_it_is
	facts '{}'
	touch "$dir/b/state/maintenance"
	refused "it is in maintenance" E_MAINTENANCE "in maintenance"
	rm "$dir/b/state/maintenance"
	facts '{"memory_available": 1, "page_size": 1, "cpus": 0}'
	refused "all that speaks against it is told" E_HOST "pages"
	check "each in a line of its own" [ "$(grep -c '^blockmirror: E_' "$dir/said")" -eq 3 ]
	facts '{}'
}

places() {
	check "something is there by that name" on b touch "$store/vm.img"
	refused "a file that is there" E_EXISTS "$store/vm.img exists"
	on b rm "$store/vm.img"
	check "there is a disk of that name" on b serve vm "$store/other.img" --create 8M
	refused "a disk that is there" E_EXISTS "has a disk vm itself"
	bm_on b forget vm >>"$dir/log" 2>&1 || bm_on b stop vm >>"$dir/log"
	rm -rf "$dir/b/state/disks/vm"
	on b rm "$store/other.img"
	check "its store is full" on b fallocate -l 930M "$store/full"
	refused "no space" E_ENOSPC "take 40.* MiB there yet"
	on b rm "$store/full"
	refused "a folder that is not allowed" E_ACCESS "does not let disks into /etc" 3 --into /etc
}

bridge() {
	check "a machine in a network" on a ip link add br-vm type bridge
	on a ip tuntap add tap0 mode tap && on a ip link set tap0 master br-vm
	check "it runs" qemu two -netdev tap,id=n,ifname=tap0,script=no,downscript=no -device virtio-net-pci,netdev=n
	check_fails "b has no such bridge" 3 "E_HOST: the other host has no network bridge br-vm" bm_on a migrate two --to host-b
	check "b has one" on b ip link add br-vm type bridge
	check "then it could go" bm_on a migrate two --to host-b --dry-run
	stop "$machine"
}

by_hooks() {
	hook check-target "echo not on a Friday >&2; exit 1"
	refused "a hook refuses" E_HOOK "check-target .*not on a Friday"
	hook check-target "sleep 30"
	refused "a hook hangs" E_HOOK "check-target of machine vm does not end"
	rm "$hooks_b/check-target"
	hook host-facts "echo it is broken >&2; exit 3"
	refused "facts are not to be had" E_HOOK "host-facts .*it is broken"
	hook host-facts "echo nonsense"
	refused "facts that are none" E_HOOK "host-facts .*prints no JSON"
	facts '{}'
}

dry() {
	check "a dry run" move --dry-run --json
	json_is <(jq -c . "$dir/out") '.state == "dry-run" and .forecast.disk_bytes >= 40 * 1048576 and .forecast.bytes > .forecast.disk_bytes
		and .forecast.pause_ns > 0 and .forecast.time_ns > .forecast.pause_ns and .way.bandwidth > 0 and .way.rtt_ns > 0'
	result $? "it says how much, how long and which pause" "$dir/out"
	check "for people, too" move --dry-run
	sed 's/^/# /' "$dir/out"
	check_fails "it refuses as the move does" 2 "one of them" move --dry-run --rehearse
}

plain_up
for part in machine_itself other_host places bridge by_hooks dry; do
	$part
	check "$part: nothing has changed" wait_for 10 unchanged
done
