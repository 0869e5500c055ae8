#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The guest fixture: a real Linux that writes and fsyncs records, on a plain server that is killed
# under it. No record is lost; one that is taken away is missed. $GUEST is where the kernel is kept
# (BUILD/guest).
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

cache=${GUEST:-$BUILD/guest} image=$dir/disk.img console=$dir/console socket=$dir/socket
records=$BUILD/fixtures/records

have qemu-system-x86_64 qemu-nbd busybox || { skip "the guest" "QEMU, busybox are needed"; exit; }
if ! fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1; then
	skip "the guest" "no kernel: $(tail -n 1 "$dir/out")"
	exit
fi

# boot [PARAMETER…]: the guest, in the background; its console is $console, its keyboard is fd 7.
boot() {
	local server=$pid
	# shellcheck disable=SC2016
	spawn bash -c 'exec "$@" <"$0"' "$dir/keyboard" \
		fixtures/guest/run.sh "$cache" "$socket" disk "$console" "$@"
	guest=$pid pid=$server
}
mkfifo "$dir/keyboard"
exec 7<>"$dir/keyboard"
ended() { wait_for 30 lib_gone "$guest" && lib_forget "$guest" && wait "$guest"; }
ticks() { grep -c ^TICK "$console"; }
ticked() { [ "$(ticks)" -ge "$1" ]; }

# damaged NAME TEXT SEEK: the image with one sector from standard input.
damaged() {
	cp "$image" "$dir/bad.img"
	dd of="$dir/bad.img" bs=512 seek="$3" count=1 conv=notrunc 2>/dev/null
	check_fails "$1" 1 "$2" "$records" check "$dir/bad.img" "$console"
}

truncate -s 64M "$image"
start_qemu_nbd "$socket" "$image" -x disk
boot
check "the guest boots and writes" wait_for 60 ticked 200
kill9 "$pid"
sleep 1
start_qemu_nbd "$socket" "$image" -x disk
before=$(ticks)
check "after the server was killed it goes on" wait_for 30 ticked $((before + 1300))
stop "$guest"
stop "$pid"
check "a guest that is killed has lost nothing" "$records" check "$image" "$console"
stall=$(sed -n 's/.*longest stall \([0-9]*\) ms/\1/p' "$dir/out")
check "its stall was seen: $stall ms" test "$stall" -ge 900

cp "$image" "$dir/old.img"
before=$(ticks)
start_qemu_nbd "$socket" "$image" -x disk
boot load=0
check "it boots again and writes more" wait_for 60 ticked $((before + 100))
echo stop >&7
check "it stops when it is told to" ended
boot seconds=1 seed=2
check "it stops when its time is over" ended
stop "$pid"
check "nothing is lost" "$records" check "$image" "$console"

last=$(sed -n 's/^TICK \([0-9]*\) .*/\1/p' "$console" | tail -n 1)
slot=$((last % 1024))
damaged "a record that was lost" "records lost 1," $slot </dev/zero
damaged "a record that was damaged" "records lost 1," $slot < <(
	dd if="$image" bs=512 skip=$slot count=1 2>/dev/null | head -c 300
	head -c 212 /dev/urandom)
damaged "a record from the past" "records lost 1," $slot < <(
	dd if="$dir/old.img" bs=512 skip=$slot count=1 2>/dev/null)
# The load is behind the first 1 MiB.
block=$(grep -aobF BMRECORD "$image" | awk -F: '$1 >= 2097152 { print $1 / 512; exit }')
damaged "a block of the load that was damaged" "blocks damaged 1," $((block + 3)) </dev/zero
check_fails "a guest that wrote nothing" 1 "records written 0" "$records" check "$image" /dev/null
