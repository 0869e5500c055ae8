#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Both copies of a disk are compared while its guest writes, before the switch. A target that was
# changed behind our back is found out, mended, and not switched to unless that is accepted.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-img nbdcopy nbdkit jq || { skip "moves" "qemu-utils, libnbd-bin, nbdkit, jq"; exit; }
a=$dir/a/disk.img b=$dir/b/disk.img
mkdir -p "$dir/b" "$dir/c" "$dir/d"
make_image "$a"
cp --sparse=always "$a" "$dir/original"
serve disk "$a"

# damage FILE MIB: some bytes of it are others now; no guest writes there.
damage() { head -c 1000 /dev/urandom | dd of="$1" bs=1000 seek=$(($2 * M / 1000 + 1)) conv=notrunc 2>/dev/null; }

good_copies() {
	start_load disk --initial any
	check "a move with --verify" "$bm" relocate disk "$dir/b" --verify --guest-latency off
	grep -q "128.0 MiB verified" "$dir/out"
	result $? "all of it was compared"
	check "it has switched" disk_is_on "$b"
	check "the guest noticed nothing" end_load
	check "the disk serves the target, byte for byte" serves disk "$b"
}

# One comparison at a time: that of a move is not in doubt because somebody else asks for one.
asked_meanwhile() {
	check "back, with --verify, and slowly" "$bm" relocate disk "$a" --overwrite --verify --rate 2M --detach
	check "it copies" phase_is disk copying
	check_fails "asked to compare meanwhile: refused" 3 E_BUSY timeout 10 "$bm" verify disk
	check "it may be quick" "$bm" job set disk --rate 0
	check "the move compares, and switches" "$bm" job wait disk
	check "the disk is back" disk_is_on "$a"
	check "and there again" "$bm" relocate disk "$b" --overwrite
}

# Slow enough that there is time to do harm.
half_way() { cmp -s -i $((69 * M)) -n 65536 "$to/disk.img" "$dir/original"; }
damaged_on_the_way() { # DIR OPTION…
	to=$1
	shift
	rm -f "$to/disk.img"
	log=$dir/move.out spawn "$bm" relocate disk "$to" --rate 8M --guest-latency off "$@"
	move=$pid
	wait_for 30 half_way
	"$bm" job pause disk >>"$dir/log"
	sleep 0.5
	damage "$to/disk.img" 69
	"$bm" job set disk --rate 0 >>"$dir/log"
	"$bm" job resume disk >>"$dir/log"
	wait "$move"
	status=$?
	lib_forget "$move"
}

bad_copies() {
	start_load disk --initial any --iops 500
	damaged_on_the_way "$dir/c" --verify
	[ "$status" -eq 1 ] && grep -q "E_DIFFERED: .*1 pieces of 65536 bytes were not equal.*the first at 72" "$dir/move.out"
	result $? "a target that was changed: the job fails, and says where" "$dir/move.out"
	check "the disk is where it was" disk_is_on "$b"
	check "the target is gone" test ! -e "$dir/c/disk.img"
	damaged_on_the_way "$dir/c" --accept-repair
	result "$status" "with --accept-repair it goes on" "$dir/move.out"
	check "it has switched" disk_is_on "$dir/c/disk.img"
	check "the guest noticed nothing" end_load
	check "and what was changed is what it was" cmp -i $half -n $half "$dir/original" "$dir/c/disk.img"
	check "the disk serves the target" serves disk "$dir/c/disk.img"
}

at_any_time() {
	check_fails "there is no second copy" 4 E_NOT_FOUND "$bm" verify disk
	start_load disk --initial any --iops 2000
	check "a move waits in sync" "$bm" relocate disk "$dir/d" --switch manual --guest-latency off
	check "both copies are equal, with a guest that writes" "$bm" verify disk
	damage "$dir/d/disk.img" 100
	damage "$dir/d/disk.img" 127
	check_fails "two places are not" 1 "differ" "$bm" verify disk
	"$bm" verify disk --json >"$dir/verify.json"
	check "they were mended" jq -e '.equal and .compared >= 128 * 1048576' "$dir/verify.json"
	check "it switches" "$bm" switch disk
	check "the guest noticed nothing of it all" end_load
	check "what no guest wrote is what it was" \
		cmp -i $half -n $half "$dir/original" "$dir/d/disk.img"
	check "the target holds what the guest wrote" image_fits "$dir/d/disk.img"
}

good_copies
asked_meanwhile
bad_copies
at_any_time
check "it is stopped in the end" unserve disk
