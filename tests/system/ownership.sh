#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Whose an image is: what a refused start leaves behind (nothing), marks on files, and records for
# block devices, which have no marks.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-nbd nbdcopy jq getfattr setfattr ||
	{ skip "ownership" "qemu-utils, libnbd-bin, jq, attr"; exit; }
records=$BLOCKMIRROR_STATE_DIR/disks
size=$((4 * M))

new_image() { head -c "${2:-4}M" /dev/urandom >"$1"; }
disk_is_on() { [ "$(show "$1" .uri)" = "$2" ] || { show "$1" .uri; return 1; }; }
whole_mark() { getfattr --only-values -n user.blockmirror "$1" 2>/dev/null; }
no_mark() { [ -z "$(whole_mark "$1")" ] && [ ! -e "$1.blockmirror" ]; }
no_record() { [ ! -e "$records/$1" ] || { ls -l "$records/$1"; return 1; }; }

# mounted OPTIONS: an empty tmpfs, $mounted.
mounted() {
	mounted=$dir/mounted
	mkdir "$mounted"
	mount -t tmpfs -o "$1" none "$mounted" 2>"$dir/out" || { rmdir "$mounted"; return 1; }
	on_exit "umount '$mounted' 2>/dev/null"
}

# leaves_nothing NAME STATUS PATTERN COMMAND…: of the disk "new", which comes to nothing.
leaves_nothing() {
	check_fails "$1" "$2" "$3" "${@:4}"
	check "$1: no record, no folder" no_record new
}

refused_starts() {
	local long
	long=$dir/$(printf 'x%.0s' {1..100})
	new_image "$dir/plain.img"
	mkdir -p "$records"
	leaves_nothing "a run directory too long for sockets" 2 "E_USAGE: .* limited to" \
		"$bm" --run-dir "$long" serve new "$dir/new.img" --create 4M
	check "no image" test ! -e "$dir/new.img"
	leaves_nothing "the same, for an image that exists" 2 "E_USAGE: .* limited to" \
		"$bm" --run-dir "$long" serve new "$dir/plain.img"
	check "no mark" no_mark "$dir/plain.img"
	check "it can be served then" serve new "$dir/plain.img"
	unserve new
	rm -r "$records/new"
	# Room for one file, and none for a mark, be it an attribute or a file beside.
	mounted size=1M,nr_inodes=2 ||
		{ skip "places that are read-only, or full" "$(cat "$dir/out")"; return; }
	truncate -s 64k "$mounted/small.img"
	leaves_nothing "no space for the mark" 3 E_ENOSPC "$bm" serve new "$mounted/small.img"
	check "no mark" no_mark "$mounted/small.img"
	mount -o remount,ro,nr_inodes=20 "$mounted"
	leaves_nothing "a read-only image" 3 E_ACCESS "$bm" serve new "$mounted/small.img"
	leaves_nothing "an image to be made in a read-only place" 3 E_ACCESS \
		"$bm" serve new "$mounted/new.img" --create 1M
	leaves_nothing "a read-only run directory" 3 E_ACCESS \
		"$bm" --run-dir "$mounted/run" serve new "$dir/new.img" --create 4M
	leaves_nothing "a read-only state directory" 3 E_ACCESS \
		"$bm" --state-dir "$mounted/state" serve new "$dir/new.img" --create 4M
	check "no image" test ! -e "$dir/new.img"
	umount "$mounted"
}

# incomplete NAME TARGET: a move to it that is interrupted and given up; the disk stays where it is.
incomplete() {
	"$bm" relocate "$1" "$2" --overwrite --switch manual >>"$dir/log" 2>&1
	kill_disk "$1"
	serve "$1"
	"$bm" job cancel "$1" && job_is "$1" .state cancelled
}

device() { # a loop device of 4 MiB, $device
	local file=$dir/under$RANDOM
	new_image "$file"
	device=$(losetup -f --show "$file" 2>"$dir/out") && on_exit "losetup -d $device"
}

# forced NAME DEVICE: it is served with --force, and the record that this made is taken away.
forced() {
	serve "$1" "$2" --force && disk_is_on "$1" "$2" && unserve "$1" && rm -r "${records:?}/$1"
}

block_devices() {
	local one two
	device || { skip "block devices" "$(head -n 1 "$dir/out")"; return; }
	one=$device
	device
	two=$device
	new_image "$dir/owner.img"
	serve owner "$dir/owner.img"
	check "a move to a block device is interrupted" incomplete owner "$one"
	check_fails "a device that is an incomplete copy: serve" 3 E_UNUSABLE "$bm" serve thief "$one"
	check_fails "an incomplete copy: copy it" 3 E_UNUSABLE "$bm" copy "$one" "$dir/copy.img"
	rm -f "$dir/copy.img"
	check "an incomplete copy: --force" forced thief "$one"
	check "it may be a target again" "$bm" relocate owner "$one" --overwrite
	check_fails "--delete-source is refused for a device" 3 E_UNSUPPORTED \
		"$bm" relocate owner "$dir/back.img" --delete-source
	check "the device's node is there" test -b "$one"
	check "the disk is on it" disk_is_on owner "$one"
	check "nothing was made" test ! -e "$dir/back.img"
	check "from device to device" "$bm" relocate owner "$two" --overwrite
	check_fails "a device that is an old copy: serve" 3 "E_RETIRED: .*moved to $two" \
		"$bm" serve thief "$one"
	check "an old copy: --force" forced thief "$one"
	check "an old copy: copy it" "$bm" copy "$one" "$dir/copy.img"
	check "which is what it was" cmp "$dir/copy.img" "$dir/owner.img"
	check "a cold copy to an old one" "$bm" copy "$dir/copy.img" "$one" --overwrite
	! grep -q "cannot" "$dir/out"
	result $? "finds nothing to complain of" "$dir/out"
	new_image "$dir/thief.img"
	serve thief "$dir/thief.img"
	check "the owner is stopped" unserve owner
	check_fails "another disk's device: serve" 3 E_OWNED "$bm" serve new "$two"
	check_fails "another disk's device: --force" 3 E_OWNED "$bm" serve new "$two" --force
	check_fails "another disk's device: relocate" 3 E_OWNED "$bm" relocate thief "$two" --overwrite
	check_fails "another disk's device: copy a disk to it" 3 E_OWNED \
		"$bm" copy thief "$two" --overwrite
	unserve thief
	rm -r "$records/thief"
	check_fails "another disk's device: copy an image to it" 3 E_OWNED \
		"$bm" copy "$dir/thief.img" "$two" --overwrite
	serve owner
	check "it holds what it held" serves owner "$dir/owner.img" $size
	unserve owner
}

files() {
	local active
	new_image "$dir/one.img"
	cp "$dir/one.img" "$dir/content"
	serve files "$dir/one.img"
	active=$(whole_mark "$dir/one.img")
	check "an image that is served is marked" marked "$dir/one.img" active
	"$bm" relocate files "$dir/two.img" >>"$dir/log" 2>&1
	check "the old one is marked" marked "$dir/one.img" retired
	check_fails "an old copy: serve" 3 "E_RETIRED: .*moved to $dir/two.img" \
		"$bm" serve thief "$dir/one.img"
	setfattr -n user.blockmirror -v "$active" "$dir/one.img"
	check_fails "an old copy that a crash left marked as active" 3 \
		"E_RETIRED: .*moved to $dir/two.img" "$bm" serve thief "$dir/one.img"
	check "no record" no_record thief
	check "an old copy: copy it" "$bm" copy "$dir/one.img" "$dir/copy2.img"
	check "which is what it was" cmp "$dir/content" "$dir/copy2.img"
	check "the copy has no mark" no_mark "$dir/copy2.img"
	check "an old copy: --force" forced thief "$dir/one.img"
	check "a move to a file is interrupted" incomplete files "$dir/one.img"
	check_fails "an incomplete copy: serve" 3 E_UNUSABLE "$bm" serve thief "$dir/one.img"
	check_fails "an incomplete copy: copy it" 3 E_UNUSABLE "$bm" copy "$dir/one.img" "$dir/no.img"
	check "an incomplete copy: --force" forced thief "$dir/one.img"
	unserve files
	check_fails "another disk's file: --force" 3 E_OWNED "$bm" serve thief "$dir/two.img" --force
	check_fails "another image than the record's" 3 "E_EXISTS: .*$dir/two.img" \
		"$bm" serve files "$dir/content"
	check "nothing was marked" no_mark "$dir/content"
}

cold_copies() {
	local copy status
	new_image "$dir/cold.img"
	"$bm" copy "$dir/cold.img" "$dir/cold2.img" --rate 100k >>"$dir/log" 2>&1 &
	copy=$!
	wait_for 10 marked "$dir/cold2.img" incomplete >>"$dir/log"
	kill -KILL "$(pgrep -P $copy)"
	wait $copy
	status=$?
	check "a copy whose process is killed has failed" test $status -eq 1
	check "its target is marked" marked "$dir/cold2.img" incomplete
	check_fails "serving it is refused" 3 E_UNUSABLE "$bm" serve new "$dir/cold2.img"
	check_fails "copying it is refused" 3 E_UNUSABLE "$bm" copy "$dir/cold2.img" "$dir/no.img"
	check "nothing is made" test ! -e "$dir/no.img"
	check "it may be a target again" "$bm" copy "$dir/cold.img" "$dir/cold2.img" --overwrite
	check "and has no mark then" no_mark "$dir/cold2.img"
	check "and is served" serve new "$dir/cold2.img"
	unserve new
}

refused_starts
block_devices
files
cold_copies
