#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A real Linux writes records to a disk and fsyncs each, while the disk is copied again and again: each
# copy has every record that the guest had been told is safe, and another guest goes on from it, while the
# first one goes on with the disk. $GUEST is where the kernel is kept (BUILD/guest).
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

cache=${GUEST:-$BUILD/guest} image=$dir/disk.img records=$BUILD/fixtures/records
have qemu-system-x86_64 busybox jq || { skip "copies under a guest" "QEMU, busybox and jq are needed"; exit; }
if ! fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1; then
	skip "copies under a guest" "no kernel: $(tail -n 1 "$dir/out")"
	exit
fi

boot() { # DISK: its console is $dir/DISK.console
	mkfifo "$dir/$1.keyboard"
	# shellcheck disable=SC2034 # open, and no more
	exec {keys}<>"$dir/$1.keyboard"
	# shellcheck disable=SC2016
	spawn bash -c 'exec "$@" <"$0"' "$dir/$1.keyboard" \
		fixtures/guest/run.sh "$cache" "$(disk_socket "$1")" "$1" "$dir/$1.console"
}
ticks() { grep -c ^TICK "$dir/$1.console"; }
ticked() { [ "$(ticks "$1")" -ge "$2" ]; }

truncate -s 64M "$image"
check "the disk is served" serve disk "$image"
boot disk
guest=$pid
check "its guest writes" wait_for 120 ticked disk 200
for round in 1 2 3 4; do
	wait_for 60 ticked disk $(($(ticks disk) + 100))
	cp "$dir/disk.console" "$dir/before"
	check "$round: it is copied, at record $(ticks disk)" "$bm" copy disk "$dir/copy$round.img"
	check "$round: the copy has every record that was safe before" "$records" check "$dir/copy$round.img" "$dir/before"
	now=$(ticks disk)
	check "$round: the guest goes on" wait_for 60 ticked disk $((now + 50))
	check_fails "$round: what it wrote then is not there" 1 "records lost" "$records" check "$dir/copy$round.img" "$dir/disk.console"
done
check "a copy is served" serve twin "$dir/copy4.img"
boot twin
check "another guest boots from it, and writes" wait_for 120 ticked twin 100
stop "$pid"
unserve twin
cat "$dir/before" "$dir/twin.console" >"$dir/both"
check "and has all, of before and since" "$records" check "$dir/copy4.img" "$dir/both"
stop "$guest"
check "it is stopped in the end" unserve disk
check "the disk has all that its guest wrote" "$records" check "$image" "$dir/disk.console"
