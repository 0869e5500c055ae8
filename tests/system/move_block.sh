#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# From a file to block devices (loop) and back, while a guest writes at full speed in pieces of 512
# bytes: to one with sectors of 512 bytes, and to one with 4096, which cannot write such pieces.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have losetup qemu-img nbdcopy jq || { skip "moves" "losetup, qemu-utils, libnbd-bin, jq"; exit; }
image=$dir/a/disk.img
mkdir -p "$dir/b"
make_image "$image"
cp --sparse=always "$image" "$dir/original"

# start_loop SECTOR FILE: a loop device, $loop.
start_loop() {
	rm -f "$2"
	truncate -s $image_size "$2"
	loop=$(losetup -f --show --direct-io=on -b "$1" "$2" 2>"$dir/out") || return
	on_exit "losetup -d $loop"
}
start_loop 512 "$dir/loop512.img" || { skip "moves" "$(head -n 1 "$dir/out")"; exit; }
small=$loop
start_loop 4096 "$dir/loop4096.img"
large=$loop
serve disk "$image"

move "file to 512-byte sectors" "$image" "$small" "$dir/loop512.img"
check "it is stopped there" unserve disk
check "and served from there, by name" serve disk
move "512-byte sectors to file" "$dir/loop512.img" "$dir/b/back.img" "$dir/b/back.img"

load_options=(--sizes 512:8k)
move "file to 4096-byte sectors, small writes" "$dir/b/back.img" "$large" "$dir/loop4096.img"
check "it is stopped there, too" unserve disk
check "and served from there, by name, too" serve disk
start_load disk --initial any --iops 0 --sizes 512:2k
check "with writes of 512 bytes" end_load
if have fio; then
	check "fio verifies through a move from one to the other" \
		witness disk "$bm" relocate disk "$small" --overwrite
fi
check "the disk serves what is in the file" serves disk "$dir/loop512.img"
check "it is stopped in the end" unserve disk
