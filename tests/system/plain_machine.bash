# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of what is asked and decided before a machine moves: hosts.bash, and QEMUs on host a without a
# system in them, which have a disk of ours each. What host b is like is what its hook host-facts says.
#
#	. "$(dirname "$0")/plain_machine.bash"
#	need_plain
#	plain_up
#	facts '{"page_size": 65536}'
#	refused "pages of another size" E_HOST "65536 bytes"
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "${BASH_SOURCE[0]}")/hosts.bash"
# shellcheck source=mover.bash
. "$(dirname "${BASH_SOURCE[0]}")/mover.bash"

hooks_b=$dir/hooks hook_time=${hook_time:-30s}

need_plain() {
	have qemu-system-x86_64 socat || { skip "machines" "qemu-system-x86, socat"; exit; }
	need_hosts
}

# facts JSON: what b's hook says from here on; its other hooks have nothing against it.
facts() {
	printf '#!/bin/sh\necho %q\n' "$1" >"$hooks_b/host-facts"
	chmod +x "$hooks_b/host-facts"
	rm -f "$hooks_b/check-target"
}
# hook NAME LINE…: b's.
hook() {
	{ echo '#!/bin/sh'; printf '%s\n' "${@:2}"; } >"$hooks_b/$1"
	chmod +x "$hooks_b/$1"
}

# qemu NAME WORD…: on a, with the disk of that name; known as that machine.
qemu() {
	local name=$1
	spawn_on a qemu-system-x86_64 -name "$name" -machine pc,accel=tcg -cpu qemu64 -m "${memory:-16392k}" -nodefaults -display none \
		-qmp "unix:$dir/a/$name.qmp,server=on,wait=off" -qmp "unix:$dir/a/$name.too,server=on,wait=off" \
		-blockdev "driver=nbd,node-name=d,server.type=unix,server.path=$dir/a/run/disks/$name.nbd,export=$name" \
		-device virtio-blk-pci,drive=d "${@:2}"
	machine=$pid
	wait_for 20 test -S "$dir/a/$name.qmp" && bm_on a machine add "$name" --qmp "$dir/a/$name.qmp"
}
too() { /usr/bin/python3 tests/system/qmp.py "$dir/a/$1.too" "${@:2}"; }
# seen_as NAME JSON: vm is known as that, by a monitor that lies.
seen_as() {
	spawn_on a /usr/bin/python3 tests/system/qmp_proxy.py "$dir/a/$1.lies" "$dir/a/vm.too" answer "$2"
	wait_for 10 test -S "$dir/a/$1.lies" && bm_on a machine add vm --qmp "$dir/a/$1.lies"
}
as_it_is() { bm_on a machine add vm --qmp "$dir/a/vm.qmp"; }

up() {
	mkdir "$hooks_b" && cp etc/hooks/qemu/start-target "$hooks_b/" && facts '{}'
	host_options=([a]="--machine-hooks $PWD/etc/hooks/qemu --hook-timeout $hook_time" [b]="--machine-hooks $hooks_b --hook-timeout $hook_time")
	steps_known
	hosts_up && bm_on a peer allow host-b --receive "$store" && bm_on b peer allow host-a --receive "$store"
}
serve_both() {
	on a dd if=/dev/urandom of="$store/vm.img" bs=1M count=40 status=none &&
		on a serve vm "$store/vm.img" && on a serve two "$store/two.img" --create 8M
}
plain_up() {
	check "two hosts are there" up
	check "a has disks" serve_both
	check "a machine runs" qemu vm
}
not() { ! "$@"; }

move() { bm_on a migrate vm --to host-b "$@"; }
# refused NAME CODE TEXT [STATUS [OPTION…]]
refused() { check_fails "$1" "${4:-3}" "^blockmirror: $2: .*$3" move "${@:5}" && cp "$dir/out" "$dir/said"; }
no_move() { [ -z "$(find "$dir/a/state/moves" "$dir/b/state/moves" -mindepth 1 -maxdepth 1 -type d)" ]; }
is_empty_there() { [ "$(ls "$(in_store b "")")" = lost+found ] && [ -z "$(ls "$dir/b/state/disks" 2>/dev/null)" ]; }
# unchanged: nothing of it is on b, no move is left, and its disk has never had a job.
unchanged() {
	no_move && is_empty_there && [ "$(on a show vm .job)" = null ] && [ "$(on a show vm .gate)" = active ]
}
