# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of a machine that moves whole: libvirt.bash's guest with two disks, in a plain QEMU on
# host a, which blockmirror moves; no libvirt. The hook of etc/hooks/qemu starts it on the other host. It runs
# without KVM, or as ACCEL=kvm says. Without KVM a host that is busy may be too slow for how the kernel tries its
# timer, and it panics: no_timer_check.
#
#	. "$(dirname "$0")/machine.bash"
#	need_machine
#	machine_up
#	check "it moves" move a b
#	check "nothing is lost" sound_machine b
# shellcheck source-path=SCRIPTDIR source=libvirt.bash
. "$(dirname "${BASH_SOURCE[0]}")/libvirt.bash"
# shellcheck source=mover.bash
. "$(dirname "${BASH_SOURCE[0]}")/mover.bash"

hooks=$PWD/etc/hooks/qemu budget=${BUDGET:-10s} accel=${ACCEL:-tcg}
machine_disks=(disk0 disk1)
machine_more=() # words of its command line

need_machine() {
	need_hosts
	have qemu-system-x86_64 jq setsid || { skip "a machine" "qemu-system-x86, jq, util-linux"; exit; }
	need_guest
	[ "$accel" != kvm ] || { : <>/dev/kvm; } 2>/dev/null || { skip "a machine" "no /dev/kvm"; exit; }
}

# machine_up [COMMAND…]: two hosts that take each other's disks and machines; vm runs on a, and is known
# there. COMMAND puts into the hosts what the machine needs beside.
machine_up() {
	local disk host
	host_options=([a]="--machine-hooks $hooks" [b]="--machine-hooks $hooks")
	check "a guest is made" make_guest
	check "two hosts are paired" hosts_up
	check "each takes the other's disks" may_receive
	for host in a b; do watchable $host || return; done
	[ $# -eq 0 ] || check "each has what the machine needs" "$@"
	for disk in "${machine_disks[@]}"; do
		check "a serves $disk" on a serve "$disk" "$store/$disk.img" --create 32M
	done
	check "a machine runs on a" start_machine
	check "it is known there" bm_on a machine add vm --qmp "$dir/a/vm.qmp"
	check "it boots and writes to both" wait_for "${BOOT:-90}" ticked 60 60
}
# The other QMP sockets have the same name on both hosts, and are others on each.
watchable() { mkdir -p "$dir/watch" "$dir/$1/watch" && on "$1" mount --bind "$dir/$1/watch" "$dir/watch"; }
may_receive() { bm_on a peer allow host-b --receive "$store" && bm_on b peer allow host-a --receive "$store"; }

# machine_command: prints how QEMU is started on a, word by word.
machine_command() {
	local i
	printf '%s\n' qemu-system-x86_64 -name vm -machine "pc,accel=$accel" -cpu qemu64 -smp 1 -m 131080k -nodefaults \
		-display none -kernel "$cache/vmlinuz" -initrd "$dir/initrd.gz" -append "console=ttyS0 quiet panic=-1 no_timer_check${guest_words:+ $guest_words}" \
		-qmp "unix:$dir/a/vm.qmp,server=on,wait=off" -qmp "unix:$dir/watch/qmp,server=on,wait=off" \
		-qmp "unix:$dir/watch/look,server=on,wait=off"
	for i in 0 1; do
		printf '%s\n' -chardev "file,id=console$i,path=$console.$i,append=on" -serial "chardev:console$i" \
			-blockdev "driver=nbd,node-name=disk$i,server.type=unix,server.path=$dir/a/run/disks/disk$i.nbd,export=disk$i,reconnect-delay=60,discard=unmap" \
			-device "virtio-blk-pci,id=vd$i,drive=disk$i"
	done
	[ ${#machine_more[@]} -eq 0 ] || printf '%s\n' "${machine_more[@]}"
}
start_machine() {
	local words
	mapfile -t words < <(machine_command)
	spawn_on a "${words[@]}"
	machine=$pid
	wait_for 20 test -S "$dir/a/vm.qmp"
}

# machine_qmp HOST COMMAND: of the machine there; nobody else may talk to it.
machine_qmp() {
	local socket=$dir/$1/run/machines/vm.qmp
	[ -S "$socket" ] || socket=$dir/$1/vm.qmp
	/usr/bin/python3 tests/system/qmp.py "$socket" "${@:2}"
}
machine_is() { [ "$(machine_qmp "$1" query-status 2>/dev/null | jq -r .status)" = "$2" ]; }
not() { ! "$@"; }

# move FROM TO [OPTION…]
move() { bm_on "$1" migrate vm --to "host-$2" --pause-budget "$budget" "${@:3}"; }

# watched_there HOST: the same of the machine that comes, from the beginning: $dir/events.there.
watched_there() {
	rm -f "$dir/events.there"
	log=$dir/events.there spawn /usr/bin/python3 tests/system/qmp.py --events "$dir/$1/watch/qmp"
	watcher_there=$pid
}
# watch HOST: from here on what happens to the machine there is noted; stopped_once: its guest was stopped
# once since then, and did not run on there.
watch() {
	rm -f "$dir/events"
	[ -z "${watcher_there:-}" ] || stop "$watcher_there" # QEMU has one socket for us, and takes one
	watcher_there=''
	log=$dir/events spawn /usr/bin/python3 tests/system/qmp.py --events "$dir/$1/watch/qmp"
	watcher=$pid
	wait_for 20 grep -q connected "$dir/events"
}
stopped_once() {
	wait_for 10 lib_gone "$watcher" || { echo "the machine's QEMU is still there"; return 1; }
	lib_forget "$watcher"
	cat "$dir/events"
	[ "$(grep -cx STOP "$dir/events")" -eq 1 ] && [ "$(grep -cx RESUME "$dir/events")" -eq 0 ]
}

# sound_machine HOST: as sound, of a machine that QMP stops meanwhile.
sound_machine() {
	local i status=0
	machine_qmp "$1" stop >/dev/null || return
	for i in 0 1; do
		"$records" check "$(in_store "$1" "disk$i.img")" "$console.$i" || status=1
		in_order $i || status=1
		! grep -aE 'I/O error|ERROR|BAD' "$console.$i" || status=1
	done
	machine_qmp "$1" cont >/dev/null && return $status
}

# role HOST DISK: what the record there says; nothing where there is none.
role() { jq -R -r 'fromjson? | .role // "active"' "$dir/$1/state/disks/$2/record" 2>/dev/null; }
# only_on HOST OTHER: all disks are there, and nowhere else, and no move is left.
only_on() {
	local disk
	for disk in "${machine_disks[@]}"; do
		[ "$(role "$1" "$disk")" = active ] && [ "$(role "$2" "$disk")" != active ] &&
			[ ! -e "$dir/$1/state/disks/$disk/move" ] && [ "$(on "$1" show "$disk" .gate)" = active ] ||
			{ echo "$disk: $(role "$1" "$disk") on $1, $(role "$2" "$disk") on $2, gate $(on "$1" show "$disk" .gate)"; return 1; }
	done
	[ -z "$(ls "$dir/a/state/moves" "$dir/b/state/moves" | grep -v : | grep .)" ] || { ls -R "$dir/a/state/moves" "$dir/b/state/moves"; return 1; }
}

# Moves that are disturbed

# begins FROM TO STEP [OPTION…]: a move, whose process waits at that step.
begins() { holds "$3" move "$1" "$2" "${@:4}"; }

# settles FROM TO: the machine runs on one of them, with all that is its own; which one is in $now.
settles() {
	local host
	for host in "$1" "$2"; do
		machine_is "$host" running || continue
		now=$host
		[ "$host" = "$1" ] && only_on "$1" "$2" && return
		[ "$host" = "$2" ] && only_on "$2" "$1" && return
	done
	return 1
}
