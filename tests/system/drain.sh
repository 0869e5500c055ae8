#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A datastore is emptied: disks that guests write to move live, what a QEMU has is slipped out of under it, what
# nobody uses is copied, compared and renamed, and what cannot go stays, with the reason. It is interrupted,
# killed, so is a disk's process, and run again; a disk fails; a target becomes full; and at the end the right
# ones are there, byte for byte, and the file system unmounts. drain_guests.sh has guests in the QEMUs.
# shellcheck source-path=SCRIPTDIR source=slip.bash
. "$(dirname "$0")/slip.bash"
# shellcheck source=datastore.bash
. "$(dirname "$0")/datastore.bash"

have qemu-system-x86_64 qemu-img mkfs.ext4 losetup jq fallocate || { skip "drain" "qemu-utils, e2fsprogs, util-linux, jq"; exit; }
need_stores "drain"
old=$dir/old one=$dir/one two=$dir/two
LIVE=(disk1 disk2 disk3 disk4)


# 4 that are served, 2 that a QEMU has, 3 raw, a qcow2 with a
# snapshot, one that somebody else writes to, a linked clone and what it shows, and one that is none.
fill_datastore() {
	local name
	for name in "${LIVE[@]}"; do
		truncate -s 24M "$old/$name.img"
		dd if=/dev/urandom bs=1M count=4 seek=16 conv=notrunc of="$old/$name.img" 2>>"$dir/log"
		serve "$name" "$old/$name.img" || return
	done
	random "$old/vm0.img" 6 && qemu-img create -q -f qcow2 "$old/vm1.qcow2" 16M &&
		qemu-io -f qcow2 -c 'write -q -P 5 2M 3M' "$old/vm1.qcow2" || return
	mkdir -m 750 "$old/sub" && chown 12:34 "$old/sub"
	random "$old/a.img" 20 && random "$old/sub/b.raw" 9 && truncate -s 64M "$old/b.boot" &&
		printf '\x55\xaa' | dd of="$old/b.boot" bs=1 seek=510 conv=notrunc 2>>"$dir/log" || return
	chmod 640 "$old/a.img" && chown 56:78 "$old/a.img"
	qemu-img create -q -f qcow2 "$old/c.qcow2" 32M &&
		qemu-io -f qcow2 -c 'write -q -P 7 1M 3M' "$old/c.qcow2" &&
		qemu-img snapshot -c before "$old/c.qcow2" || return
	random "$old/open.img" 1
	random "$old/base.img" 2 && qemu-img create -q -f qcow2 -b base.img -F raw "$old/clone.qcow2"
	echo "what is here" >"$old/README"
}

start_machine() {
	cp "$old/vm0.img" "$dir/vm0.img" && cp "$old/vm1.qcow2" "$dir/vm1.qcow2" &&
		qemu_idle -blockdev "driver=file,node-name=f0,filename=$old/vm0.img" -blockdev driver=raw,node-name=disk0,file=f0 \
			-device virtio-blk-pci,id=vd0,drive=disk0 -blockdev "driver=file,node-name=f1,filename=$old/vm1.qcow2" \
			-blockdev driver=qcow2,node-name=disk1,file=f1 -device virtio-blk-pci,id=vd1,drive=disk1 &&
		"$bm" machine add vm --qmp "$dir/qmp"
}
start_loads() {
	local name
	loads=()
	for name in "${LIVE[@]}"; do
		log=$dir/report.$name spawn "$hammer" --json --time 0 --least 201 --connections 2 --overlap 20 --iops 200 --reconnect 20 \
			--range 0:$((12 * M)) --fill 25 --seed "$seed" --state "$dir/state.$name" "$(disk_uri "$name")"
		loads+=("$pid")
	done
	sleep 0.3
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
	for name in "${LIVE[@]}"; do
		timeout 60 "$hammer" --check "$dir/state.$name" "$(disk_uri "$name")" || return
	done
}

drain() { "$bm" drain "$old" --to "$one" --to "$two" "$@"; }
event() { jq -e "select(.event == \"$1\") | $2" "$dir/out" >>"$dir/log"; }
planned() { event plan ".images[] | select(.image == \"$old/$1\") | $2"; }
stays() { planned "$1" ".why.code == \"$2\" and (.store == null)"; }
says() { "${@:2}" >"$dir/said"; local status=$?; cat "$dir/said"; [ $status -eq 0 ] && grep -q "$1" "$dir/said"; }
has_hash() { [ "$(sha256sum <"$1")" = "$2" ]; }

plan_only() {
	local name
	check "what would be done is told" drain --delete-source --dry-run --json
	for name in "${LIVE[@]}"; do
		check "$name moves live" planned "$name.img" ".kind == \"live\" and .disk == \"$name\" and .store != null"
	done
	for name in a.img sub/b.raw b.boot c.qcow2; do
		check "$name moves" planned "$name" '.kind == "cold" and .store != null'
	done
	for name in vm0.img vm1.qcow2; do
		check "$name moves while its machine runs" planned "$name" '.kind == "qemu" and .store != null'
	done
	check "an overlay stays" stays clone.qcow2 E_LINKED
	check "and what it shows" stays base.img E_LINKED
	check "what somebody else writes to stays" stays open.img E_LOCKED
	check "a text stays" stays README E_NOT_IMAGE
	check "the table says it, too" says "^10 of 14 move" drain --delete-source --dry-run
	check "nothing has moved" test -e "$old/a.img" -a ! -e "$one/a.img" -a ! -e "$two/a.img"
}

# Each reason that a plan gives, provoked.
reasons() {
	ln "$old/a.img" "$old/other-name.img"
	check "a second name" drain --delete-source --dry-run --json
	check "keeps it there" stays a.img E_LINKED
	rm "$old/other-name.img"
	"$bm" stop disk4 >>"$dir/log" 2>&1
	check "a disk that is not served" drain --delete-source --dry-run --json
	check "stays" stays disk4.img E_OWNED
	serve disk4
	truncate -s 1000 "$old/odd.img"
	qemu-img create -q -f vmdk "$old/d.vmdk" 8M
	check "an odd size, a VMDK" drain --delete-source --dry-run --json
	check "the one stays" stays odd.img E_SIZE
	check "so does the other" stays d.vmdk E_UNSUPPORTED
	rm "$old/odd.img" "$old/d.vmdk"
	check "no room" drain --delete-source --dry-run --json --reserve 10G
	check "for any" planned a.img '.store == null'
	check "one is sent elsewhere" drain --delete-source --dry-run --json --map "a.img=$two"
	check "and goes there" planned a.img ".store == \"$two\""
	check "a name is said to be an image" drain --delete-source --dry-run --json --include 'READ*'
	check "and is of no size" stays README E_SIZE
	check_fails "neither kept nor deleted" 2 "one of --delete-source and --keep-source" drain
	check_fails "into itself" 3 E_SAME "$bm" drain "$old" --to "$old/sub" --keep-source
	check_fails "no such folder" 4 E_NOT_FOUND "$bm" drain "$old" --to "$dir/nowhere" --keep-source
	check_fails "a map to nowhere" 2 "was not given with --to" drain --keep-source --map "a.img=$dir"
	check_fails "a map of nothing" 4 "there is no x.img" drain --keep-source --map "x.img=$two"
	check_fails "no time" 2 "times like" drain --keep-source --window 22-6
}

# Interrupted: what is served moves on by itself. Killed: the copy of what nobody uses is begun anew.
cut_off() {
	check "a disk's process can make no file as long as the disk" limit 14M
	log=$dir/drain.log spawn "$bm" drain "$old" --to "$one" --to "$two" --delete-source --rate 2M --json
	check "it moves" wait_for 20 begun disk
	kill -INT "$pid"
	wait "$pid"
	result $(($? != 130)) "interrupted, it says so"
	lib_forget "$pid"
	check "a move goes on" one_goes_on
	killed_process
	log=$dir/drain.log spawn "$bm" drain "$old" --to "$one" --to "$two" --delete-source --rate 2M --json --parallel 9
	check "it moves again, a copy, too" wait_for 20 part
	check "and so does a machine's disk" wait_for 20 slipped
	kill -KILL "$pid"
	wait "$pid" 2>/dev/null
	lib_forget "$pid"
	check "killed, the image is there" test -e "$old/a.img"
	check "what copied it ends, too" wait_for 30 is_free a.img
}
# The kernel has its calls fail from there on (EFBIG); what its guest writes is below that.
limit() { prlimit --pid "$(show disk4 .pid)" --fsize="$(numfmt --from=iec "$1")":unlimited; }
slipped() { compgen -G "$states/vd*/slip"; }
# A disk's process is killed: the one that the daemon starts goes on, and so does who waits for it.
killed_process() {
	log=$dir/drain.log spawn "$bm" drain "$old" --to "$one" --to "$two" --delete-source --rate 2M --json
	check "run again, a disk moves" wait_for 20 runs_now
	kill_disk "$now"
	check "its process is killed, and follows itself" wait_for 20 answers "$now"
	check "its move goes on" goes_on_there "$now"
	kill -INT "$pid"
	wait "$pid"
	lib_forget "$pid"
}
runs_now() {
	for now in "${LIVE[@]}"; do [ "$now" = disk4 ] || ! job_is "$now" .state running || return 0; done 2>>"$dir/log"
	return 1
}
answers() { show "$1" .uri >/dev/null 2>&1; }
goes_on_there() { job "$1" .state | grep -E '^(running|done)$'; }
begun() { jq -e "select(.event == \"begun\") | .disk | select(. and startswith(\"$1\"))" "$dir/drain.log" | grep .; }
one_goes_on() {
	local name status=1
	for name in "${LIVE[@]}"; do
		job "$name" '"\(.id) \(.state) \(.phase)"'
		[ "$(job "$name" .state)" != running ] || status=0
	done 2>>"$dir/log"
	return $status
}
is_free() { drain --keep-source --dry-run --json | jq -c ".images[]? | select(.image == \"$old/$1\")" | tee -a "$dir/out" | jq -e '.why == null'; }
part() { compgen -G "$one/.*.part" || compgen -G "$two/.*.part"; }

the_rest() {
	local name place
	declare -A hash
	for name in a.img sub/b.raw b.boot c.qcow2 vm0.img; do
		place=$(find "$old/$name" "$one/$name" "$two/$name" 2>/dev/null | head -n 1)
		hash[$name]=$(sha256sum <"$place")
	done
	# What is behind its end is zero.
	place=$(find "$old/c.qcow2" "$one/c.qcow2" "$two/c.qcow2" 2>/dev/null | head -n 1)
	cp "$place" "$dir/c.qcow2" && truncate -s %512 "$dir/c.qcow2" && hash[c.qcow2]=$(sha256sum <"$dir/c.qcow2")
	LIMIT=100 check_fails "it goes on, to the end" 1 "is not empty, 5 left" drain --delete-source --guest-latency off
	cp "$dir/out" "$dir/summary"
	check "the one that fails stays, and stops no other" tells "disk4.img .*stays: E_IO: cannot create .*File too large"
	check "what is shared stays" tells "open.img .*stays: E_LOCKED"
	check "so does the clone" tells "clone.qcow2 .*stays: E_LINKED"
	check "what failed is mended" prlimit --pid "$(show disk4 .pid)" --fsize=unlimited
	LIMIT=100 check_fails "mended, it moves" 1 "disk4.img .*moved to" drain --delete-source
	check "the guests have noticed nothing" end_loads
	check "what they wrote is there" live_fit
	for name in "${LIVE[@]}"; do
		check "$name is elsewhere" test ! -e "$old/$name.img"
		check "and served from there" is_elsewhere "$name"
	done
	for name in "${!hash[@]}"; do
		place=$one
		[ -e "$one/$name" ] || place=$two
		check "$name is elsewhere, byte for byte" has_hash "$place/$name" "${hash[$name]}"
		check "and here no more" test ! -e "$old/$name"
	done
	place=$one
	[ -e "$one/c.qcow2" ] || place=$two
	check "the qcow2 is good, with its snapshot" qemu-img check -q "$place/c.qcow2"
	check "that has its name" grep -q before <(qemu-img snapshot -l "$place/c.qcow2")
	place=$one
	[ -e "$one/a.img" ] || place=$two
	check "owner and mode came along" test "$(stat -c %a:%u:%g "$place/a.img")" = 640:56:78
	place=$one
	[ -e "$one/sub" ] || place=$two
	check "those of its folder, too" test "$(stat -c %a:%u:%g "$place/sub")" = 750:12:34
	for name in vm0.img vm1.qcow2; do
		check "the machine has $name elsewhere" machine_has "$name"
	done
	check "and nothing of ours is left below it" nothing_slipped
	check "its qcow2 is what it was" qemu-img compare -U -q "$(machine_has vm1.qcow2)" "$dir/vm1.qcow2"
	check "no part is left" test -z "$(find "$one" "$two" -name '.*.part')"
}
tells() { grep -q "^  $1" "$dir/summary"; }
# machine_has FILE: QEMU has it open at its new place.
machine_has() { monitor query-named-block-nodes '{"flat":true}' | jq -r '.[].file' | grep -xE "($one|$two)/$1" | sort -u; }
nothing_slipped() { [ -z "$(ls -d "$states"/vd* 2>/dev/null)" ]; }
is_elsewhere() { [ "$(show "$1" .uri)" = "$one/$1.img" ] || [ "$(show "$1" .uri)" = "$two/$1.img" ]; }

# What held them back is mended; one more is kept, a target becomes full.
to_the_end() {
	exec {holds}>&-
	rm "$old/README"
	qemu-img rebase -f qcow2 -b '' "$old/clone.qcow2" >>"$dir/log" 2>&1
	check "the rest goes, too" says "is empty, verified" drain --delete-source
	check "it unmounts" wait_for 10 umount "$old"
	mount -o loop "$old.fs" "$old"
}

becomes_full() {
	random "$old/large.img" 40
	serve large "$old/large.img"
	log=$dir/drain.log spawn "$bm" drain "$old" --to "$one" --to "$two" --keep-source --reserve 0 --rate 8M --json
	check "a large one moves" wait_for 20 begun large
	place=$(jq -r 'select(.event == "begun") | .store' "$dir/drain.log" | tail -n 1)
	fallocate -l "$(df --output=avail -B1 "$place" | tail -n 1)" "$place/fill" 2>>"$dir/log" ||
		dd if=/dev/zero of="$place/fill" bs=1M 2>>"$dir/log"
	check "its target becomes full: it goes to the other one" wait "$pid"
	lib_forget "$pid"
	check "which has it" is_on_other "$place"
	check "nothing is left of it there" test ! -e "$place/large.img"
	rm "$place/fill"
	check "the old copy is marked" marked "$old/large.img" retired
	check "run again it has nothing to do" says "old copies alone" drain --keep-source
}
is_on_other() {
	local uri
	uri=$(show large .uri)
	[ "$uri" != "$1/large.img" ] && [ "$uri" != "$old/large.img" ] && cmp "$uri" "$old/large.img"
}

# They are the daemon's, and outlive it.
end_disks() {
	local p
	for p in $(pgrep -f "^blockmirror-disk .*--run-dir $dir/run "); do kill -KILL "$p"; done
}

trap '' XFSZ # a call that is too far fails, and nobody dies of it
on_exit stores_down
on_exit end_disks
check "a datastore" store "$old" 400M
check "one for it to go to" store "$one" 160M
check "another one" store "$two" 240M
log=$dir/daemon.log spawn "$BUILD/blockmirrord"
check "a daemon" wait_for 10 "$bm" machine list
check "twelve images, and two more" fill_datastore
check "a machine has two of them" start_machine
exec {holds}<>"$old/open.img"
check "guests write" start_loads
plan_only
reasons
cut_off
the_rest
to_the_end
becomes_full
