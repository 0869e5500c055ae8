#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# From a file to NBD exports of three servers and back, while a guest writes at full speed.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-nbd nbdkit qemu-img nbdcopy jq || { skip "moves" "qemu-utils, nbdkit, libnbd, jq"; exit; }
image=$dir/a/disk.img
mkdir -p "$dir/b"
make_image "$image"
cp --sparse=always "$image" "$dir/original"
serve disk "$image"

truncate -s $image_size "$dir/qemu.img"
start_qemu_nbd "$dir/qemu.sock" "$dir/qemu.img" -x space
qemu=$(nbd_uri "$dir/qemu.sock" space)
move "file to qemu-nbd" "$image" "$qemu" "$dir/qemu.img" "$qemu"
check "it is stopped there" unserve disk
check "and served from there, by name" serve disk
move "qemu-nbd to file" "$dir/qemu.img" "$dir/b/back.img" "$dir/b/back.img"

# What is in the target before does not matter, and it may be larger.
head -c $((40 * M)) /dev/urandom >"$dir/kit.img"
truncate -s $((image_size + 4 * M)) "$dir/kit.img"
start_nbdkit "$dir/kit.sock" file "$dir/kit.img"
kit=$uri
move "file to nbdkit" "$dir/b/back.img" "$kit" "$dir/kit.img" "$kit"
check "what is behind the disk is as it was" \
	cmp -i $image_size:0 "$dir/kit.img" <(head -c $((4 * M)) /dev/zero)

truncate -s $image_size "$dir/own.img"
start_blockmirror_nbd "$dir/own.sock" "$dir/own.img"
own=$uri
move "nbdkit to blockmirror-nbd" "$dir/kit.img" "$own" "$dir/own.img" "$own"

if have fio; then
	check "fio verifies through a move from NBD to a file" \
		witness disk "$bm" relocate disk "$dir/b/again.img"
	check "fio verifies through a move from a file to NBD" \
		witness disk "$bm" relocate disk "$qemu" --overwrite
else
	skip "fio" "fio is missing"
fi
check "the disk serves what is in the file" serves disk "$dir/qemu.img"
check "it is stopped in the end" unserve disk
