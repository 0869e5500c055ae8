#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Whole moves with programs built with sanitizers: ASan and UBSan (use of freed memory, leaks), and
# TSan, where the loop's thread meets the workers. The load generator is the plain one.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-img nbdcopy jq || { skip "moves" "qemu-utils, libnbd-bin, jq"; exit; }
plain=$BUILD
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
# libnbd and libiscsi are not built with it: what they do between themselves is not seen right.
export TSAN_OPTIONS=ignore_noninstrumented_modules=1

# A worker runs them, and the loop's thread tells it what.
export BLOCKMIRROR_HOOKS=$dir/hooks
mkdir -m 755 "$dir/hooks"
printf '#!/bin/sh\ncat >>%s/heard\n' "$dir" >"$dir/hooks/10-manager"
chmod 755 "$dir/hooks/10-manager"

# What a sanitizer found is in the log of who found it.
clean() {
	! grep -hE -A 25 'Sanitizer|runtime error' "$BLOCKMIRROR_RUN_DIR"/disks/*.log "$dir/log" "$dir/out"
}

moves() {
	local kind=$1 image=$dir/$1/a/disk.img
	[ -x "$plain/$kind/blockmirror-disk" ] || { skip "$kind" "make $kind-tests was not run"; return; }
	BUILD=$plain/$kind bm=$plain/$kind/blockmirror
	make_image "$image"
	mkdir "$dir/$kind/b"
	check "$kind: a disk is served" serve disk "$image"
	start_load disk --initial any --iops 3000
	check "$kind: file to file" "$bm" relocate disk "$dir/$kind/b" --guest-latency off \
		--verify
	truncate -s $image_size "$dir/$kind/remote.img"
	start_blockmirror_nbd "$dir/$kind.sock" "$dir/$kind/remote.img"
	local server=$pid
	check "$kind: file to NBD" "$bm" relocate disk "$uri" --overwrite --guest-latency off
	check "$kind: a copy" "$bm" copy disk "$dir/$kind/copy.img"
	check "$kind: a move that is cancelled" cancelled "$dir/$kind/c.img"
	check "$kind: NBD to file" "$bm" relocate disk "$dir/$kind/d.img" --guest-latency off
	check "$kind: the guest noticed nothing" end_load
	check "$kind: the disk serves what is in the file" serves disk "$dir/$kind/d.img"
	check "$kind: a comparison" "$bm" verify disk disk
	check_fails "$kind: a target that is none" 3 E_NOT_IMAGE "$bm" relocate disk /dev/null --overwrite
	check "$kind: hooks were told of it" grep -q after-relocate "$dir/heard"
	check "$kind: it is stopped" unserve disk
	stop "$server"
	sleep 0.5 # reports come with the end
	check "$kind: nothing was found" clean
	rm -rf "$BLOCKMIRROR_RUN_DIR" "$BLOCKMIRROR_STATE_DIR"
	: >"$dir/log"
	rm -f "$dir/heard"
}

cancelled() {
	"$bm" relocate disk "$1" --switch manual && "$bm" job cancel disk
}

moves asan
moves tsan
