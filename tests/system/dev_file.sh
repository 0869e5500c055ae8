#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The file device on file systems and block devices, with each engine; its locks beside QEMU's.
# shellcheck source-path=SCRIPTDIR source=dev.bash
. "$(dirname "$0")/dev.bash"
image=$dir/disk.img
truncate -s 64M "$image"
loops=()
shm=$(mktemp -p /dev/shm)
cleanup() {
	local loop
	for loop in "${loops[@]}"; do losetup -d "$loop"; done
	rm -f "$shm"
}

check "file" "$devcheck" "$image" 0.8
check "file, by file:" "$devcheck" "file://$image" 0.4
check "file, threads" "$devcheck" -a threads "$image" 0.8
check "file, through the page cache" "$devcheck" -b "$image" 0.4
check "file, without order device, more requests than slots" "$devcheck" -n -d 400 "$image" 0.4
check "file, threads, more requests than slots" "$devcheck" -a threads -n -d 400 "$image" 0.4
check "file, cancelled with requests in flight" "$devcheck" -x "$image" 0.4
check "file, cancelled with requests waiting" "$devcheck" -x -n -d 400 "$image" 0.4
check "file, read-only" "$devcheck" -r "$image" 0.4
truncate -s $((64 * 1024 * 1024 + 512)) "$dir/odd.img"
check "file that ends with half a page" "$devcheck" "$dir/odd.img" 0.4
truncate -s 64M "$shm"
check "tmpfs" "$devcheck" "$shm" 0.4

# Block devices
for sector in 512 4096; do
	name="loop device, sectors of $sector bytes"
	if loop=$(losetup -f --show --direct-io=on -b $sector "$image" 2>"$dir/out"); then
		loops+=("$loop")
		check "$name" "$devcheck" "$loop" 0.8
		begin "$devcheck" -h "$loop" 3
		sleep 0.5
		refused "$name, open already" 3 E_LOCKED "$devcheck" -i "$loop"
	else
		skip "$name" "$(head -n 1 "$dir/out")"
	fi
done

# Locks: the image is disk2.img, which nobody else has open.
image=$dir/disk2.img
truncate -s 16M "$image"
if command -v qemu-io >/dev/null; then
	begin qemu-io -f raw -c 'sleep 4500' "$image"
	sleep 0.5
	refused "QEMU has it open" 3 E_LOCKED "$devcheck" -i "$image"
	refused "QEMU has it open, read-only here" 3 E_LOCKED "$devcheck" -r -i "$image"
	check "QEMU has it open, and we take no locks" "$devcheck" -u -i "$image"
	check "with a fence one waits for QEMU's end" "$devcheck" -f -i "$image"
	begin "$devcheck" -h "$image" 30
	holder=$!
	sleep 0.5
	! timeout 20 qemu-io -f raw -c 'read 0 512' "$image" >"$dir/out" 2>&1
	result $? "QEMU refuses what we have open"
	grep -q lock "$dir/out"
	result $? "QEMU says that it is locked"
	refused "we refuse it, too" 3 E_LOCKED "$devcheck" -i "$image"
	kill $holder
	sleep 0.2
	begin qemu-io -r -f raw -c 'sleep 2000' "$image"
	sleep 0.5
	check "readers beside readers" "$devcheck" -r -i "$image"
else
	skip "locks" "no qemu-io"
fi
begin "$devcheck" -r -h "$image" 2
sleep 0.5
refused "no writer beside a reader of ours" 3 E_LOCKED "$devcheck" -i "$image"

# Refusals
image=$dir/disk.img
refused "no such file" 4 E_NOT_FOUND "$devcheck" -i "$dir/nothing.img"
refused "a folder" 3 E_NOT_IMAGE "$devcheck" -i "$dir"
refused "a character device" 3 E_NOT_IMAGE "$devcheck" -i /dev/null
truncate -s 1000 "$dir/short.img"
refused "not whole sectors" 3 E_SIZE "$devcheck" -i "$dir/short.img"
: >"$dir/empty.img"
refused "empty" 3 E_SIZE "$devcheck" -i "$dir/empty.img"
refused "unknown engine" 2 E_USAGE "$devcheck" -a magic -i "$image"
