# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of disks on storage that two hosts reach: hosts.bash, and a folder, a server and
# an iSCSI target that both have.
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "${BASH_SOURCE[0]}")/hosts.bash"

# By b also at $other.
pool=$dir/pool other=$dir/other

# pool_up: one file system, mounted at $pool by both hosts; on b at $other, too.
pool_up() {
	local device
	mkdir -p "$pool" "$other"
	truncate -s 1G "$dir/pool.img" && mkfs.ext4 -q "$dir/pool.img" &&
		on a mount -o loop "$dir/pool.img" "$pool" || return
	on_exit pool_down
	device=$(on a findmnt -n -o SOURCE "$pool") && on b mount "$device" "$pool" &&
		on b mount --bind "$pool" "$other"
}
pool_down() {
	on b umount -l "$other"
	on b umount -l "$pool"
	on a umount -l "$pool"
} >>"$dir/log" 2>&1
in_pool() { echo "/proc/${host_holder[a]}/root$pool/$1"; } # as in_store

# allow HOST OTHER PLACE…: on HOST, disks of OTHER's may be there.
allow() {
	local host=$1 of=$2
	shift 2
	bm_on "$host" peer allow "host-$of" "${@/#/--shared=}"
}
allow_pool() { allow a b "$pool" && allow b a "$pool" "$other" "$store"; }
allow_uri() { allow a b "$1" && allow b a "$1"; }
# shares HOST OTHER [=WHERE]: HOST's disk is handed over.
shares() { bm_on "$1" hand-over disk --to "host-$2" "--shared${3:-}"; }

# start_server IMAGE [PORT]: on a, where both reach it; $uri is its address.
start_server() {
	[ -e "$1" ] || make_image "$1"
	uri=nbd://10.77.0.1:${2:-10809}/
	spawn_on a qemu-nbd -b 10.77.0.1 -p "${2:-10809}" -t -e 32 -f raw --cache=none --discard=unmap "$1"
	wait_for 10 on a nbdinfo "$uri" >>"$dir/log" 2>&1
}

# start_target: an iSCSI target on a, where both reach it; $uri is its first unit.
start_target() {
	uri=$(TGT_ADDRESS=10.77.0.1 on a fixtures/tgt.sh start "$dir/tgt" $((image_size / M)) 2>>"$dir/log") || return
	uri+=:disk/1
	on_exit "on a fixtures/tgt.sh stop '$dir/tgt' >>'$dir/log' 2>&1"
}

# guest HOST PROGRAM: a client of the disk there; h is libnbd's handle.
guest() { on "$1" /usr/bin/python3 -c "import nbd, time; h = nbd.NBD(); h.connect_uri('$(nbd_uri "$dir/$1/run/disks/disk.nbd" disk)'); $2"; }
writes() { guest "$1" 'h.pwrite(h.pread(4096, 0), 0)'; } # what is there, once more
role_is() { [ "$(on "$1" show disk .role 2>/dev/null)" = "$2" ]; }
gate_is() { [ "$(on "$1" show disk .gate 2>/dev/null)" = "$2" ]; }
no_offer() { [ "$(on "$1" show disk .offer)" = null ]; }
has_none() { [ -z "$(bm_on "$1" list --json | jq -r '.disks[].name')" ] && [ ! -e "$dir/$1/state/serve/disk.json" ]; }
record() { jq -R -r "fromjson? | $2" "$dir/$1/state/disks/disk/record"; }
# one_has HOST OTHER: HOST has the disk, and nobody else, by a later record.
one_has() {
	one_has_alone "$1" && [ ! -e "$dir/$2/state/disks/disk/record" ] && return
	one_has_alone "$1" && [ "$(record "$2" .role)" != null ] &&
		{ [ "$(record "$2" .role)" = standby ] || [ "$(record "$1" .generation)" -gt "$(record "$2" .generation)" ]; }
}
one_has_alone() { role_is "$1" active && [ "$(record "$1" .role)" = null ]; }
all_on() { state_fits "$(nbd_uri "$dir/$1/run/disks/disk.nbd" disk)"; }
forget_all() {
	local host
	for host in a b; do
		[ ! -e "$dir/$host/state/serve/disk.json" ] || bm_on "$host" forget disk
		rm -rf "$dir/$host/state/disks/disk"
	done
}
