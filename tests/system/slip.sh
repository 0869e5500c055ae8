#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk of a running QEMU, on a plain file, is moved and handed back by one command, and by its
# halves, while the guest writes records.
# shellcheck source-path=SCRIPTDIR source=slip.bash
. "$(dirname "$0")/slip.bash"

have jq getfattr qemu-system-x86_64 qemu-img qemu-io || { skip "slipping" "QEMU, jq, attr"; exit; }
mkdir "$dir/a" "$dir/b"
disk="virtio-blk-pci,id=vd0,drive=disk0"

# How QEMU has f0 open: what it has told the kernel.
f0_is_direct() {
	local flags
	flags=$(grep -h ^flags /proc/"$qemu"/fdinfo/"$(descriptor_of "$dir/b/disk.img")")
	echo "$flags"
	((8#${flags#*:?} & 8#40000)) && has_node '^f0$'
}
descriptor_of() { find "/proc/$qemu/fd" -lname "$1" -printf '%f\n' | head -n 1; }

# Ctrl-C while it copies.
interrupted() {
	local status
	spawn "$bm" relocate --qmp "$dir/qmp" --drive vd0 "$dir/b/late.img" --rate 64k
	wait_for 10 test -e "$dir/b/late.img" && sleep 0.5
	kill -INT "$pid"
	wait "$pid"
	status=$?
	lib_forget "$pid"
	tail -n 2 "$dir/log"
	[ $status -eq 130 ] && [ ! -e "$dir/b/late.img" ]
}

# Ctrl-C before there is a job: the disk's process starts just now. Ctrl-C is heard when it can be.
interrupted_early() {
	local status
	spawn "$bm" relocate --qmp "$dir/qmp" --drive vd0 "$dir/b/late.img" --rate 64k
	wait_for 10 has_plan
	kill -INT "$pid"
	wait "$pid"
	status=$?
	lib_forget "$pid"
	tail -n 2 "$dir/log"
	[ $status -eq 130 ] && [ ! -e "$dir/b/late.img" ]
}
has_plan() { compgen -G "$states/*/slip" >/dev/null; }

export GUEST_LOAD=512
if have busybox && fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1; then
	truncate -s 64M "$dir/a/disk.img"
	check "a guest on a plain file" boot -device "$disk" -blockdev \
		"driver=file,node-name=f0,filename=$dir/a/disk.img,discard=unmap,cache.direct=on,aio=native" \
		-blockdev driver=raw,node-name=disk0,file=f0,cache.direct=on
	check "one command moves it" slip "$dir/b"
	check "nothing is left" nothing_left
	check "QEMU has the new file" qemu_has "$dir/b/disk.img"
	check "by the name, and with the options, of before" f0_is_direct
	check "the old one is marked" marked "$dir/a/disk.img" retired
	check "the new one is a plain file" marked "$dir/b/disk.img" ""
	check "the guest goes on" goes_on
	check "and back, over the old copy" slip "$dir/a" --overwrite --delete-source
	check "QEMU has it" qemu_has "$dir/a/disk.img"
	check "the source is gone" test ! -e "$dir/b/disk.img"
	check "the guest goes on" goes_on
	check "interrupted, it is where it was" interrupted
	check "nothing is left" nothing_left
	check "QEMU has it" qemu_has "$dir/a/disk.img"
	check "interrupted before it copies, too" interrupted_early
	check "nothing is left" nothing_left
	check "QEMU has it" qemu_has "$dir/a/disk.img"
	check "in halves: adopt" "$bm" adopt --qmp "$dir/qmp" --drive vd0 --name web
	check "the guest goes on" goes_on
	check "QEMU has let go: the image is ours" locked "$dir/a/disk.img"
	check "adopted twice is adopted" "$bm" adopt --qmp "$dir/qmp" --drive disk0
	check "it moves like any other" "$bm" relocate web "$dir/b/other.img" --undo-window 1m
	check "and can be undone" "$bm" undo web
	check "hand back" "$bm" hand-back web
	check "nothing is left" nothing_left
	check_fails "handed back twice" 4 E_NOT_FOUND "$bm" hand-back web
	check "the guest goes on" goes_on
	check "it ends in good order" end_guest
	check "no record is lost" kept "$dir/a/disk.img"
	rm -f "$dir"/[ab]/*
else
	skip "a guest" "no kernel: $(tail -n 1 "$dir/out")"
fi

# A job that another command has begun switches over just before this one tells it to, which is stopped
# (strace) when it has tried QEMU's way back.
switched_meanwhile() {
	local traced status
	"$bm" adopt --qmp "$dir/qmp" --drive vd0 --name web && "$bm" relocate web "$dir/b/disk.img" --switch manual || return
	spawn strace -q -s 200 -o "$dir/trace" -e trace=sendto -e inject=sendto:signal=STOP:when=1+ \
		"$bm" relocate --qmp "$dir/qmp" --drive vd0 "$dir/b"
	until is_about_to; do
		lib_gone "$pid" && return 1
		traced=$(cut -d ' ' -f 1 "/proc/$pid/task/$pid/children")
		[ -z "$traced" ] || ! is_stopped "$traced" || is_about_to || kill -CONT "$traced"
		sleep 0.01
	done
	wait_for 5 is_stopped "$traced" && "$bm" switch web || return
	while ! lib_gone "$pid"; do
		kill -CONT "$traced" 2>>"$dir/log"
		sleep 0.01
	done
	wait "$pid"
	status=$?
	lib_forget "$pid"
	tail -n 3 "$dir/log"
	return $status
}
is_about_to() {
	grep -q blockdev-add "$dir/trace" 2>/dev/null && grep ^sendto "$dir/trace" | tail -n 1 | grep -q "blockdev-del.*bp-web"
}
is_stopped() { [[ $(cut -d ' ' -f 3 "/proc/$1/stat" 2>/dev/null) = [tT] ]]; }
if have strace; then
	truncate -s 8M "$dir/a/disk.img"
	check "a QEMU with no guest" qemu_idle -device "$disk" -blockdev "driver=file,node-name=f0,filename=$dir/a/disk.img" \
		-blockdev driver=raw,node-name=disk0,file=f0
	check "a move that has switched over when it is to be told to: it has moved" switched_meanwhile
	check "nothing is left" nothing_left
	check "QEMU has it" qemu_has "$dir/b/disk.img"
	stop "$qemu"
	rm -f "$dir"/[ab]/*
else
	skip "a move that has switched over" "strace"
fi
