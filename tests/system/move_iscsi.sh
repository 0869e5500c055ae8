#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# From a file to a unit of an iSCSI target and back, while a guest writes at full speed.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have tgtd tgtadm nbdcopy qemu-img jq || { skip "moves" "tgt, libnbd-bin, qemu-utils, jq"; exit; }
unset LIBISCSI_CHAP_USERNAME LIBISCSI_CHAP_PASSWORD
image=$dir/a/disk.img
mkdir -p "$dir/b"
make_image "$image"
cp --sparse=always "$image" "$dir/original"
start_tgt "$dir/tgt" $((image_size / M)) || { not_ok "the target starts" "$dir/log"; exit; }
target=$uri
serve disk "$image"

# The target's own file is read for comparison.
move "file to iSCSI" "$image" "$target:disk/1" "$dir/tgt/lun1.1.img"
check "it is stopped there" unserve disk
check "and served from there, by name" serve disk
move "iSCSI to file" "$dir/tgt/lun1.1.img" "$dir/b/back.img" "$dir/b/back.img"
move "file to a unit with blocks of 4096 bytes" "$dir/b/back.img" "$target:disk/5" \
	"$dir/tgt/lun1.5.img"
if have fio; then
	check "fio verifies through a move from unit to unit" \
		witness disk "$bm" relocate disk "$target:disk/1" --overwrite
fi
check "the disk serves what is in the file" serves disk "$dir/tgt/lun1.1.img"
check "it is stopped in the end" unserve disk
