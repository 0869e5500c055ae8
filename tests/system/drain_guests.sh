#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A datastore of twelve images is emptied while guests work: four disks under the load generator, two in QEMUs
# whose guests write records, three raw images, a qcow2, one that somebody else writes to, a linked clone. The
# drain is killed in the middle, with what it has left at work, and alone; a target becomes full. In the end
# no record is missing, all is equal, and the file system unmounts. drain.sh is the short one of it.
# shellcheck source-path=SCRIPTDIR source=slip.bash
# shellcheck disable=SC2030,SC2031 # each machine has its own $dir
. "$(dirname "$0")/slip.bash"
# shellcheck source=datastore.bash
. "$(dirname "$0")/datastore.bash"

have busybox qemu-system-x86_64 qemu-img mkfs.ext4 losetup jq || { skip "a drain with guests" "QEMU, busybox, e2fsprogs"; exit; }
need_stores "a drain with guests"
fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1 || { skip "a drain with guests" "no kernel: $(tail -n 1 "$dir/out")"; exit; }
old=$dir/old one=$dir/one two=$dir/two
LIVE=(disk1 disk2 disk3 disk4)
guests=()


fill_datastore() {
	local name
	for name in "${LIVE[@]}"; do
		truncate -s 48M "$old/$name.img"
		dd if=/dev/urandom bs=1M count=16 seek=32 conv=notrunc of="$old/$name.img" 2>>"$dir/log"
		serve "$name" "$old/$name.img" || return
	done
	truncate -s 64M "$old/vm0.img"
	qemu-img create -q -f qcow2 "$old/vm1.qcow2" 64M
	random "$old/a.img" 40 && random "$old/b.raw" 20 && random "$old/c.img" 10 || return
	qemu-img create -q -f qcow2 "$old/d.qcow2" 32M && qemu-io -f qcow2 -c 'write -q -P 7 1M 9M' "$old/d.qcow2"
	qemu-img snapshot -c before "$old/d.qcow2"
	random "$old/shared.img" 1
	random "$old/base.img" 2 && qemu-img create -q -f qcow2 -b base.img -F raw "$old/clone.qcow2" &&
		qemu-io -f qcow2 -c 'write -q -P 3 64k 64k' "$old/clone.qcow2"
}

# guest NUMBER FORMAT FILE: a QEMU of its own folder, $dir/vmNUMBER.
guest() {
	local top=$dir
	local keyboard
	mkdir "$top/vm$1"
	mkfifo "$top/vm$1/keyboard"
	# shellcheck disable=SC2034 # it is kept open
	exec {keyboard}<>"$top/vm$1/keyboard"
	# shellcheck disable=SC2016
	spawn bash -c 'exec "$@" <"$0"' "$top/vm$1/keyboard" \
		qemu-system-x86_64 -machine pc,accel=tcg -cpu max -smp 1 -m 256 -nodefaults -no-reboot -display none \
		-kernel "$cache/vmlinuz" -initrd "$cache/initrd.gz" -append "console=ttyS0 quiet panic=-1 load=512" \
		-chardev "stdio,id=console,signal=off,logfile=$top/vm$1/console,logappend=on" -serial chardev:console \
		-qmp "unix:$top/vm$1/qmp,server=on,wait=off" -qmp "unix:$top/vm$1/own,server=on,wait=off" \
		-blockdev "driver=file,node-name=f0,filename=$3" -blockdev "driver=$2,node-name=disk0,file=f0" \
		-device virtio-blk-pci,id=vd0,drive=disk0
	guests+=("$pid")
	wait_for 20 test -S "$top/vm$1/qmp" && "$bm" machine add "vm$1" --qmp "$top/vm$1/qmp"
}
guest_ticks() { grep -c ^TICK "$dir/vm$1/console"; }
guest_ticked() { [ "$(guest_ticks "$1")" -ge "$2" ]; }
guest_goes_on() { wait_for 60 guest_ticked "$1" $(($(guest_ticks "$1") + 8)); }
guest_has() { tests/system/qmp.py "$dir/vm$1/own" query-named-block-nodes '{"flat":true}' | jq -r '.[].file' | grep -xE "($one|$two)/$2" | sort -u; }
end_guests() {
	local i
	for i in 0 1; do echo stop >"$dir/vm$i/keyboard"; done
	for i in 0 1; do
		wait_for 60 lib_gone "${guests[i]}" && lib_forget "${guests[i]}"
		grep -q "GUEST STOPPED" "$dir/vm$i/console" && ! grep -E "^(ERROR|BAD)|I/O error" "$dir/vm$i/console" || return
	done
}

start_loads() {
	local name
	loads=()
	for name in "${LIVE[@]}"; do
		log=$dir/report.$name spawn "$hammer" --json --time 0 --least 201 --connections 2 --overlap 20 --reconnect 20 \
			--range 0:$((24 * M)) --fill 25 --seed "$seed" --iops 300 --state "$dir/state.$name" "$(disk_uri "$name")"
		loads+=("$pid")
	done
}
end_loads() {
	local i status=0
	kill -TERM "${loads[@]}"
	for i in "${!loads[@]}"; do
		wait "${loads[i]}" || { status=1; tail -n 3 "$dir/report.${LIVE[i]}"; }
		lib_forget "${loads[i]}"
		json_is "$dir/report.${LIVE[i]}" '.errors == 0 and .mismatches == 0' || status=1
	done
	return $status
}
live_fit() {
	local name
	for name in "${LIVE[@]}"; do timeout 60 "$hammer" --check "$dir/state.$name" "$(disk_uri "$name")" || return; done
}

drain() { "$bm" drain "$old" --to "$one" --to "$two" --delete-source --guest-latency off "$@"; }
says() {
	"${@:2}" >"$dir/said" || { cat "$dir/said"; return 1; }
	grep -q "$1" "$dir/said" || { cat "$dir/said"; return 1; }
}
slipped() { compgen -G "$states/vd0-*/slip" >/dev/null; }
runner() { pgrep -f "blockmirror drain $old" | grep -vx "$1"; }

# The drain alone is killed; another time what it has left at work, too.
killed() {
	local left
	rm -f "$dir/drain.log"
	log=$dir/drain.log spawn drain_exec --rate 8M --json --parallel 9 --map "vm0.img=$one" --map "vm1.qcow2=$two"
	check "$1: a guest's disk is on its way" wait_for 60 slipped
	sleep 1
	left=$(runner "$pid")
	kill9 "$pid"
	[ "$1" = alone ] || [ -z "$left" ] || xargs kill -KILL <<<"$left"
	check "$1: guest 0 goes on" guest_goes_on 0
	check "$1: guest 1 goes on" guest_goes_on 1
}
drain_exec() { exec "$bm" drain "$old" --to "$one" --to "$two" --delete-source --guest-latency off "$@"; }

# The roomier target becomes full: what was going there goes to the other one, and room comes back.
becomes_full() {
	log=$dir/full.log spawn drain_exec --json --rate 6M --parallel 2 --reserve 0
	check "a copy is on its way to the roomier one" wait_for 60 grep -q '"event":"begun"' "$dir/full.log"
	fallocate -l "$(df --output=avail -B1 "$two" | tail -n 1)" "$two/fill" 2>>"$dir/log"
	check "it becomes full: the drain comes to its end" wait_for 240 lib_gone "$pid"
	wait "$pid"
	lib_forget "$pid"
	rm "$two/fill"
}

found() { find "$one/$1" "$two/$1" 2>/dev/null; }
is_equal() { [ "$(found "$1" | wc -l)" -eq 1 ] && cmp -n "$(stat -c %s "$dir/$1")" "$(found "$1")" "$dir/$1" && [ ! -e "$old/$1" ]; }

on_exit stores_down
check "a datastore" store "$old" 700M
check "one for it to go to" store "$one" 400M
check "a roomier one" store "$two" 500M
log=$dir/daemon.log spawn "$BUILD/blockmirrord"
check "a daemon" wait_for 10 "$bm" machine list
check "twelve images, and what the clone shows" fill_datastore
exec {holds}<>"$old/shared.img"
check "a guest on a raw image" guest 0 raw "$old/vm0.img"
check "a guest on a qcow2 image" guest 1 qcow2 "$old/vm1.qcow2"
check "the one writes" wait_for 120 guest_ticked 0 20
check "the other writes" wait_for 120 guest_ticked 1 20
check "the load generator writes to four" start_loads
for name in a.img b.raw c.img d.qcow2; do cp "$old/$name" "$dir/$name"; done
qemu-img convert -O raw "$old/clone.qcow2" "$dir/clone.content"
check "the plan knows six that are in use, and four that are not" says "^10 of 13 move" drain --dry-run

killed alone
killed "with what it left at work"
becomes_full
check_fails "run again it comes to the end" 1 "is not empty, 3 left" drain
check "no guest's disk is ours still" test -z "$(compgen -G "$states/vd0-*")"
check "guest 0 has its image elsewhere" guest_has 0 vm0.img
check "guest 1 has its image elsewhere" guest_has 1 vm1.qcow2
check "guest 0 goes on" guest_goes_on 0
check "guest 1 goes on" guest_goes_on 1
check "they end in good order" end_guests
check "no record of guest 0 is lost" "$records" check "$(found vm0.img)" "$dir/vm0/console"
qemu-img convert -O raw "$(found vm1.qcow2)" "$dir/vm1.content"
check "no record of guest 1 is lost" "$records" check "$dir/vm1.content" "$dir/vm1/console"
check "its qcow2 is good" qemu-img check -q "$(found vm1.qcow2)"
check "the load generator has found nothing" end_loads
check "what it wrote is there" live_fit
for name in a.img b.raw c.img d.qcow2; do check "$name is elsewhere, byte for byte" is_equal "$name"; done
check_fails "what is shared stays" 1 "shared.img .*stays: E_LOCKED" drain
check_fails "what is linked stays" 1 "clone.qcow2 .*stays: E_LINKED" drain
exec {holds}>&-
check "mended, and made whole, they go: empty, verified" says "$old is empty, verified" drain --flatten
check "the clone has what it showed" qemu-img compare -q -F raw "$(found clone.qcow2)" "$dir/clone.content"
check "no part is left" test -z "$(find "$one" "$two" -name '.*.part')"
check "the datastore unmounts" wait_for 10 umount "$old"
