#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# From file to file while a guest writes at full speed: nothing is lost, nothing differs, holes stay
# holes, and the source is left alone. Back and forth, and with flushes and FUA all through the
# switch.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-nbd qemu-img nbdcopy jq || { skip "moves" "qemu-utils, libnbd-bin, jq"; exit; }
a=$dir/a/disk.img b=$dir/b/disk.img
mkdir -p "$dir/b"
make_image "$a"
cp --sparse=always "$a" "$dir/original"

under_full_load() {
	check "the disk is served" serve disk "$a"
	start_load disk --iops 0
	check "it moves under full load" "$bm" relocate disk "$dir/b"
	result "$(job disk '.progress.mirrored_writes > 100 | not | if . then 1 else 0 end')" \
		"writes were mirrored meanwhile"
	fingerprint "$a"
	check "the guest noticed nothing" end_load
	check "the source was not touched after the switch" untouched "$a"
	check "the disk serves the target, byte for byte" serves disk "$b"
	check "holes and zeros take no space in the target" is_sparse "$b"
	check "what no guest wrote is what it was" cmp -i $half "$dir/original" "$b"
	result "$(show disk ".uri == \"$b\" | not | if . then 1 else 0 end")" "it is known to be there"
	check "the source is marked" marked "$a" retired
	check "the target is marked" marked "$b" active
	check "it is stopped" unserve disk
	check "the target holds what the guest wrote" image_fits "$b"
	check "and is served from then on, by name" serve disk
	check "and still holds it" state_fits "$(disk_uri disk)"
}

back_and_forth() {
	local to
	start_load disk --initial any --iops 0 --sizes 512:256k
	for to in a b a b a; do
		check "to $to" "$bm" relocate disk "$dir/$to" --overwrite --guest-latency off
	done
	check "five moves under load: the guest noticed nothing" end_load
	check "the disk serves what is in the file" serves disk "$a"
	unserve disk
	check "the file holds what the guest wrote" image_fits "$a"
	serve disk
}

# Flushes and FUA go to one side, then to both, then to the other.
durable_writes() {
	local to
	start_load disk --initial any --sizes 512:64k --iops 1500 --fua 60 --mix read=15,write=40,zero=5,trim=5,flush=35
	for to in b a b; do
		check "to $to, with flushes and FUA" "$bm" relocate disk "$dir/$to" --overwrite \
			--guest-latency off
	done
	check "flushes and FUA through three switches" end_load
	check "the disk serves what is in the file, again" serves disk "$b"
	unserve disk
	check "the file holds what was made durable" image_fits "$b"
	serve disk
}

foreign_witness() {
	have fio || { skip "fio" "fio is missing"; return; }
	check "fio verifies through a move" witness disk "$bm" relocate disk "$dir/a" --overwrite
}

under_full_load
back_and_forth
durable_writes
foreign_witness
check "it is stopped in the end" unserve disk
