#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk on storage that both hosts reach is not handed over in a machine's move, nor is it made its own copy:
# whatever is said such a move is refused, the guest runs on, and the image is as it was.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "$0")/machine.bash"

need_machine
have qemu-nbd nbdinfo || { skip "a server that both reach" "qemu-utils, libnbd-bin"; exit; }
budget=30s pool=$dir/pool

# untouched NAME: it runs here with both disks, b has nothing of it, disk1's image is the same file.
untouched() {
	check "$1: it is here, with its disks" only_on a b
	check "$1: b has no disk, and no copy" nothing_there
	check "$1: its storage is the same" same_storage
	check "$1: its guest goes on" goes_on
}
nothing_there() { [ -z "$(bm_on b list --json | jq -r '.disks[].name')" ] && [ ! -e "$(in_store b disk0.img)" ]; }
storage_of() { stat -c '%d %i %s' "$(in_pool disk1.img)"; }
same_storage() { [ "$(storage_of)" = "$storage" ] && [ "$(ls "$(in_pool .)")" = "$pool_had" ]; }

# One file system, mounted by both hosts.
pool_up() {
	local device
	mkdir -p "$pool"
	truncate -s 1G "$dir/pool.img" && mkfs.ext4 -q "$dir/pool.img" &&
		on a mount -o loop "$dir/pool.img" "$pool" && on_exit pool_down &&
		device=$(on a findmnt -n -o SOURCE "$pool") && on b mount "$device" "$pool" &&
		bm_on b peer allow host-a --receive "$store" --receive "$pool" --shared "$pool"
}
pool_down() {
	on b umount -l "$pool"
	on a umount -l "$pool"
} >>"$dir/log" 2>&1
in_pool() { echo "/proc/${host_holder[a]}/root$pool/$1"; } # as in_store
# moves_to IMAGE: disk1 has its storage there.
moves_to() { bm_on a relocate disk1 "$1" --overwrite --guest-latency off && bm_on a job wait disk1 --for released; }

# On a, with the disk's size.
start_server() {
	truncate -s 32M "$dir/served.img"
	uri=nbd://10.77.0.1:10809/
	spawn_on a qemu-nbd -b 10.77.0.1 -p 10809 -t -e 32 -f raw --cache=none --discard=unmap "$dir/served.img"
	wait_for 10 on a nbdinfo "$uri" >>"$dir/log" 2>&1
}

machine_up pool_up
check "disk1 is on storage of both hosts" moves_to "$pool/disk1.img"
storage=$(storage_of)
pool_had=$(ls "$(in_pool .)")
check_fails "there is no option for it" 2 "shared goes with .migrate arm. alone" move a b --shared
check_fails "by its path it is there already" 3 "E_EXISTS: $pool/disk1.img exists on the other host" move a b
untouched "a path"
check_fails "and is not written over itself" 3 "E_OWNED" move a b --overwrite
untouched "overwritten"
check "disk1 is armed for b by itself" bm_on a migrate arm disk1 --to host-b --shared
check_fails "its machine does not move then" 3 "E_EXISTS: $pool/disk1.img exists on the other host" move a b
check_fails "nor is it written over itself" 3 "E_BUSY: the disk was offered to host host-b" move a b --overwrite
check "it is armed no more" bm_on a migrate disarm disk1
untouched "armed"
check "a server that both reach" start_server
check "disk1 is there" moves_to "$uri"
check "both reach it" on b nbdinfo "$uri"
pool_had=$(ls "$(in_pool .)")
check_fails "by a server's address" 2 "E_USAGE: disk disk1 is on nbd:.*, which is no file" move a b
untouched "a server"
