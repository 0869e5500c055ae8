#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A datastore is emptied: disks that guests write to move live, what nobody uses is copied, compared and
# renamed, and what cannot go stays, with the reason. It is interrupted, killed, and run again; a target
# becomes full; and at the end the right ones are there, byte for byte, and the file system unmounts.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-img mkfs.ext4 losetup jq fallocate || { skip "drain" "qemu-utils, e2fsprogs, util-linux, jq"; exit; }
losetup -f >"$dir/out" 2>&1 || { skip "drain" "$(head -n 1 "$dir/out")"; exit; }
old=$dir/old one=$dir/one two=$dir/two
LIVE=(disk1 disk2 disk3 disk4)

# store FOLDER SIZE: a file system of its own.
store() {
	mkdir "$1"
	truncate -s "$2" "$1.fs"
	mkfs.ext4 -q "$1.fs" && mount -o loop "$1.fs" "$1" && rmdir "$1/lost+found"
}
stores_down() { for folder in "$old" "$one" "$two"; do ! mountpoint -q "$folder" || umount -l "$folder"; done; }
random() { dd if=/dev/urandom bs=1M count="$2" of="$1" 2>>"$dir/log"; }

# Twelve images: 4 that are served, 3 raw, a qcow2 with a snapshot, one that is open elsewhere, an
# overlay and what it shows, and one that is none.
fill_datastore() {
	local name
	for name in "${LIVE[@]}"; do
		truncate -s 24M "$old/$name.img"
		dd if=/dev/urandom bs=1M count=4 seek=16 conv=notrunc of="$old/$name.img" 2>>"$dir/log"
		serve "$name" "$old/$name.img" || return
	done
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

start_loads() {
	local name
	loads=()
	for name in "${LIVE[@]}"; do
		log=$dir/report.$name spawn "$hammer" --json --time 0 --least 201 --connections 2 --overlap 20 \
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
	check "an overlay stays" stays clone.qcow2 E_LINKED
	check "and what it shows" stays base.img E_LINKED
	check "what somebody has open stays" stays open.img E_LOCKED
	check "a text stays" stays README E_NOT_IMAGE
	check "the table says it, too" says "^8 of 12 move" drain --delete-source --dry-run
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
	serve disk4 "$old/disk4.img"
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
	log=$dir/drain.log spawn "$bm" drain "$old" --to "$one" --to "$two" --delete-source --rate 2M --json
	check "it moves" wait_for 20 begun disk
	kill -INT "$pid"
	wait "$pid"
	result $(($? != 130)) "interrupted, it says so"
	lib_forget "$pid"
	check "a move goes on" one_goes_on
	log=$dir/drain.log spawn "$bm" drain "$old" --to "$one" --to "$two" --delete-source --rate 2M --json --parallel 9
	check "it moves again, a copy, too" wait_for 20 part
	kill -KILL "$pid"
	wait "$pid" 2>/dev/null
	lib_forget "$pid"
	check "killed, the image is there" test -e "$old/a.img"
	check "what copied it ends, too" wait_for 30 is_free a.img
}
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
	for name in a.img sub/b.raw b.boot c.qcow2; do hash[$name]=$(sha256sum <"$old/$name"); done
	# What is behind its end is zero.
	cp "$old/c.qcow2" "$dir/c.qcow2" && truncate -s %512 "$dir/c.qcow2" && hash[c.qcow2]=$(sha256sum <"$dir/c.qcow2")
	LIMIT=100 check_fails "it goes on, to the end" 1 "is not empty" drain --delete-source
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
	check "no part is left" test -z "$(find "$one" "$two" -name '.*.part')"
}
is_elsewhere() { [ "$(show "$1" .uri)" = "$one/$1.img" ] || [ "$(show "$1" .uri)" = "$two/$1.img" ]; }

# What held them back is mended; one more is kept, a target becomes full.
to_the_end() {
	exec {holds}>&-
	rm "$old/README"
	qemu-img rebase -f qcow2 -b '' "$old/clone.qcow2" >>"$dir/log" 2>&1
	check "the rest goes, too" says "is empty, and what was there was compared" drain --delete-source
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

on_exit stores_down
check "a datastore" store "$old" 400M
check "one for it to go to" store "$one" 160M
check "another one" store "$two" 240M
check "twelve images" fill_datastore
exec {holds}<"$old/open.img"
check "guests write" start_loads
plan_only
reasons
cut_off
the_rest
to_the_end
becomes_full
