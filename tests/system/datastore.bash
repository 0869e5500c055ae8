# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of whole datastores: file systems of their own, in loop devices. After lib.sh.
#
#	need_stores "drain"
#	check "there is one" store "$dir/old" 500M
#	on_exit stores_down

stores=()
need_stores() { losetup -f >"$dir/out" 2>&1 || { skip "$1" "$(head -n 1 "$dir/out")"; exit; }; }
# store FOLDER SIZE
store() {
	mkdir "$1"
	stores+=("$1")
	truncate -s "$2" "$1.fs"
	mkfs.ext4 -q -m 0 "$1.fs" && mount -o loop "$1.fs" "$1" && rmdir "$1/lost+found"
}
stores_down() {
	local folder
	for folder in "${stores[@]}"; do ! mountpoint -q "$folder" || umount -l "$folder"; done
}
# random FILE MIB
random() { dd if=/dev/urandom bs=1M count="$2" of="$1" 2>>"$dir/log"; }
