#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What comes back where a target was: the same, without what it had not flushed; a smaller one; another
# image; an older state of the right one. Only the first is taken.
# shellcheck source-path=SCRIPTDIR/../system source=../system/target.bash
. "$(dirname "$0")/../system/target.bash"

have qemu-nbd nbdkit nbdcopy jq || { skip "what comes back" "qemu-utils, nbdkit, libnbd-bin, jq"; exit; }
cp "$image" "$dir/original"

# What is not flushed is in a file of its own that is gone with the process.
start_forgetful() {
	start_nbdkit "$dir/f" --filter=cache file "$file" cache=writeback
	server=$pid
}

forgetful() {
	name="a server that forgets what was not flushed"
	fresh
	check "$name" start_forgetful
	start_load disk --initial any --sizes 512:64k
	check "$name: a mirror" begin
	sleep 1
	kill9 "$server"
	check "$name: it dies, and is lost" target_lost
	check "$name: the guest goes on" guest_goes_on
	check "$name: it has forgotten something" differs
	check "$name: it is started again" start_forgetful
	ends_equal
}
differs() { ! cmp -s -i $half -n $half "$dir/original" "$file" || ! cmp -s "$image" "$file"; }

# all_settled: flushed on both sides, says the map: a bit per granule.
all_settled() {
	local bytes=$((image_size / 65536 / 8))
	cmp -n $bytes <(tail -c +4097 "$BLOCKMIRROR_RUN_DIR/disks/disk.map") \
		<(head -c $bytes /dev/zero | tr '\0' '\377')
}
settle() {
	qemu-io -f raw -c flush "$(disk_uri disk)" && wait_for 60 all_settled
}

# in_sync_with_qemu: with all settled, a part of it after $dir/older was taken.
in_sync_with_qemu() {
	fresh
	start_qemu_nbd "$dir/t" "$file" || return
	server=$pid
	begin --switch manual && settle && cp "$file" "$dir/older" || return
	BEFORE=2 start_load disk --initial any --sizes 512:64k
	stop "$load"
	settle
}
come_back() { start_qemu_nbd "$dir/t" "$1"; }

# write_little: elsewhere than before.
write_little() { start_load disk --initial any --sizes 4k:4k --iops 60 --fill 0 --seed $((seed + 1)); }

shrunk() {
	name="a smaller one"
	write_little
	kill9 "$server"
	check "$name: the server dies, and is lost" target_lost
	truncate -s $((image_size / 2)) "$file"
	fingerprint "$file"
	check "$name: it exports less" come_back "$file"
	ends_with E_TOO_SMALL
	check "$name: nothing was written to it" untouched "$file"
	kill -TERM "$load"
	check "$name: the guest saw no error" wait "$load"
	lib_forget "$load"
	stop "$pid"
}

# other NAME IMAGE: takes the target's place. Little is written meanwhile: that is not compared.
other() {
	name=$1
	fingerprint "$2"
	write_little
	kill9 "$server"
	check "$name: the server dies, and is lost" target_lost
	check "$name: it is in its place" come_back "$2"
	ends_with E_FOREIGN
	check "$name: nothing was written to it" untouched "$2"
	check "$name: the guest goes on" guest_goes_on
	kill -TERM "$load"
	check "$name: it saw no error" wait "$load"
	lib_forget "$load"
	stop "$pid"
}

serve disk "$image"
check "a mirror, and what was written to it is flushed" in_sync_with_qemu
other "an older state of it" "$dir/older"
check "a mirror" in_sync_with_qemu
head -c $image_size /dev/urandom >"$dir/another"
other "another image" "$dir/another"
check "a mirror, again" in_sync_with_qemu
shrunk
forgetful
check "it is stopped in the end" unserve disk
