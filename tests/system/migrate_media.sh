#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images of a machine that are no disks of ours: what it only reads must be the same on the other host, or
# is copied, or the machine stays; the flash of its firmware's variables goes with it. There is no guest in
# it: what a guest notices migrate_machine.sh has.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "$0")/machine.bash"

need_hosts
bios=/usr/share/seabios/bios-256k.bin
{ have qemu-system-x86_64 jq setsid && [ -e $bios ]; } ||
	{ skip "a machine" "qemu-system-x86, seabios, jq, util-linux"; exit; }
budget=30s now=''
machine_disks=(disk0)

machine_command() {
	printf '%s\n' qemu-system-x86_64 -name vm -machine pc,accel=tcg -m 32776k -nodefaults -display none \
		-qmp "unix:$dir/a/vm.qmp,server=on,wait=off" \
		-drive "if=pflash,unit=0,format=raw,readonly=on,file=$store/bios.bin" \
		-drive "if=pflash,unit=1,format=raw,file=$store/flash.bin" \
		-blockdev "driver=raw,node-name=cd,read-only=on,file.driver=file,file.filename=$store/cd.iso" \
		-device ide-cd,id=cd0,drive=cd \
		-blockdev "driver=nbd,node-name=disk0,server.type=unix,server.path=$dir/a/run/disks/disk0.nbd,export=disk0,reconnect-delay=60" \
		-device virtio-blk-pci,drive=disk0
}
begin() {
	host_options=([a]="--machine-hooks $hooks" [b]="--machine-hooks $hooks")
	check "two hosts are paired" hosts_up
	check "a serves a disk" on a serve disk0 "$store/disk0.img" --create 1M
	cp $bios "$(in_store a bios.bin)"
	head -c 700K /dev/urandom >"$(in_store a cd.iso)"
	head -c 64K /dev/urandom >"$dir/flash.bin"
	cp "$dir/flash.bin" "$(in_store a flash.bin)"
	check "a machine with a CD and flash runs on a" start_machine
	check "it is known there" bm_on a machine add vm --qmp "$dir/a/vm.qmp"
	check "each takes the other's disks" may_receive
}
# stays NAME STATUS TEXT [OPTION…]: it is not moved, and b has nothing that was made for it.
stays() {
	local before
	before=$(ls "$(in_store b .)")
	check_fails "$1" "$2" "$3" move a b "${@:4}"
	check "$1: it is here" wait_for 30 settles a b
	check "$1: nothing more is on b" wait_for 10 nothing_new "$before"
}
nothing_new() { diff <(echo "$1") <(ls "$(in_store b .)"); }
is_on() { cmp "$(in_store a "$1")" "$(in_store b "$1")"; }

steps_known
begin
stays "b lacks its firmware" 4 "E_NOT_FOUND: machine vm has $store/bios.bin, which is not there"
cp $bios "$(in_store b bios.bin)"
stays "b lacks its CD" 4 "E_NOT_FOUND: machine vm has $store/cd.iso, which is not there"
head -c 700K /dev/urandom >"$(in_store b cd.iso)"
stays "b has another CD" 1 "E_FOREIGN: machine vm has $store/cd.iso, which is another one"
stays "it is not replaced without a word" 3 "E_EXISTS: .*--overwrite" --copy-media
rm "$(in_store b cd.iso)"
stays "a rehearsal leaves no copy" 0 "" --copy-media --rehearse
at source-stopped die
stays "nor one whose process dies" 1 "" --copy-media
check "it moves" move a b --copy-media
check "it is there" wait_for 20 settles a b
check "there" [ "$now" = b ]
check "so is its CD" is_on cd.iso
check "what is in its flash is there" wait_for 10 cmp "$dir/flash.bin" "$(in_store b flash.bin)"
check "the file here is nobody's any more" [ ! -e "$(in_store a flash.bin)" -a -e "$(in_store a flash.bin.away)" ]
check "it moves back, and nothing is to be copied" move b a
check "it is here" wait_for 20 settles b a
check "here" [ "$now" = a ]
check "with its flash" wait_for 10 cmp "$dir/flash.bin" "$(in_store a flash.bin)"
