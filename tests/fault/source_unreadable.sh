#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A source that cannot be read somewhere, and one that somebody cuts: the job says where, the guest is
# untouched, nothing is taken for zeros, and what is left out keeps the disk where it is.
# shellcheck source-path=SCRIPTDIR/../system source=disk.bash
. "$(dirname "$0")/../system/disk.bash"

have nbdkit nbdcopy jq qemu-io || { skip "unreadable sources" "nbdkit, libnbd-bin, jq, qemu-utils"; exit; }
image_size=$((16 * M)) half=$((4 * M))
bad=$((9 * M + 128 * 1024)) # a granule from here on
source=$dir/source.img

disk_is_on() { [ "$(show disk .uri)" = "$1" ] || { show disk .uri; return 1; }; }
writes_at() { qemu-io -f raw -c "write -P 7 $1 64k" "$(disk_uri disk)"; }
new_image() {
	rm -f "$source"
	head -c $image_size /dev/urandom >"$source"
}

# Reads of the granule fail while $dir/bad is there.
bad_source() {
	new_image
	start_blockmirror_nbd "$dir/s" \
		"fault:op=read,range=$bad-$((bad + 4096)),error=EIO,while=$dir/bad;file:$source"
	server=$pid
	touch "$dir/bad"
	serve disk "$uri"
}

name="stop"
check "$name: a disk with a granule that cannot be read is served" bad_source
start_load disk --initial any --iops 300
check_fails "$name: the job fails, and says where" 1 "cannot be read from $bad to $((bad + 65536))" \
	"$bm" relocate disk "$dir/b.img"
check "$name: the disk is where it was" disk_is_on "$uri"
result "$([ ! -e "$dir/b.img" ]; echo $?)" "$name: the target is removed"

name="skip"
check_fails "$name: all else is copied, exit 1, and it says where" 1 "from $bad to $((bad + 65536))" \
	"$bm" relocate disk "$dir/b.img" --on-source-error skip
check_fails "$name: so does job wait" 1 "cannot be read, and are not on the target" \
	"$bm" job wait disk
check "$name: the job has it" job_is disk ".unreadable == [{offset: $bad, length: 65536}]" true
check "$name: the disk is where it was" disk_is_on "$uri"
check "$name: the guest noticed nothing" end_load
check "$name: the guest writes the granule anew" writes_at $bad
check "$name: that switches over" wait_for 30 disk_is_on "$dir/b.img"
check "$name: the job is done" "$bm" job wait disk
check "$name: the disk holds what the guest wrote" state_fits "$(disk_uri disk)"
rm "$dir/bad"
check "$name: nothing is missing" cmp -i $half "$source" "$dir/b.img"
check "$name: it is stopped" unserve disk
stop "$server"

name="a source that is cut"
new_image
rm -rf "$BLOCKMIRROR_STATE_DIR/disks/disk"
check "$name: a disk is served" serve disk "$source"
check "$name: it is moved slowly" "$bm" relocate disk "$dir/c.img" --rate 1M --detach
truncate -s 12M "$source"
check "$name: the rate is lifted" "$bm" job set disk --rate 0
check_fails "$name: the job fails, and says where" 1 "cannot be read from [0-9]+ to" "$bm" job wait disk
check "$name: it was in what was cut off" \
	bash -c "[ \$($bm job show disk --json | jq -r '.error.message' | sed 's/.*from \\([0-9]*\\).*/\\1/') -ge $((12 * M)) ]"
check "$name: the disk is where it was" disk_is_on "$source"
check_fails "$name: a client reads no zeros there, but an error" 1 'Input/output error' \
	qemu-io -r -f raw -c "read $((13 * M)) 4k" "$(disk_uri disk)"
check "$name: and what is left of it" qemu-io -r -f raw -c "read $((11 * M)) 4k" "$(disk_uri disk)"
check "$name: it is stopped" unserve disk
