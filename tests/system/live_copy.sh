#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copies of a disk whose guest goes on: each is what the disk was at one instant, and says which; to
# files and to NBD, one after the other; cut again when the target fails after the cut; cancelled, out of
# space, and cut off by the process's death.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

python=${PYTHON:-/usr/bin/python3}
if ! have nbdkit nbdcopy qemu-img jq getfattr "$python" || ! "$python" -c 'import nbd' 2>/dev/null; then
	skip "live copies" "nbdkit, libnbd-bin, qemu-utils, jq, attr, python3-libnbd"
	exit
fi
a=$dir/a/disk.img slow=$dir/slow
half=$((16 * M)) # the load stays in this part
mkdir -p "$dir/b" "$dir/c"
make_image "$a"
cp --sparse=always "$a" "$dir/original"

start_writers() {
	log=$dir/writers.out spawn "$python" tests/system/live_copy.py write "$(disk_uri disk)" "$dir/writers.json"
	writers=$pid
	wait_for 30 grep -q "every cell" "$dir/writers.out"
}
end_writers() {
	kill -TERM "$writers"
	wait "$writers"
	local status=$?
	lib_forget "$writers"
	[ $status -eq 0 ] || { tail "$dir/writers.out"; return 1; }
}
# take NAME TARGET [OPTION…]: one copy; what is told of it goes to $dir/NAME.json. No request may have been
# held for it: on a busy machine the load may get no processor between the cut and the end.
take() {
	local name=$1
	shift
	"$bm" copy disk "$@" --guest-latency off --json >"$dir/$name.json" || { cat "$dir/$name.json"; return 1; }
	jq -e '.kind == "copy" and .state == "done" and .cut_at > .started and .cuts >= 1 and .longest_stall >= 0' \
		"$dir/$name.json" || { cat "$dir/$name.json"; return 1; }
}
# fits NAME IMAGE: it is what the writers' disk was at that copy's cut.
fits() {
	timeout 60 "$python" tests/system/live_copy.py check "$dir/writers.json" \
		"$(jq .cut_at "$dir/$1.json")" "$(jq .cut_took "$dir/$1.json")" "$2"
}
told() { jq -e "$2" "$dir/$1.json"; }
# Flushes of that target take long as long as $slow is there.
slow_target() { echo "fault:op=flush,while=$slow,delay=$1;$2"; }

# All through it the load generator and the writers go on at full speed.
under_full_load() {
	start_load disk --initial any
	check "the writers write" start_writers
	check "into a folder" take folder "$dir/b"
	check "verified" take verified "$dir/verified.img" --verify
	check "all of it was compared" told verified ".progress.verified_bytes >= $image_size"
	truncate -s $image_size "$dir/n.img"
	start_nbdkit "$dir/n.sock" file "$dir/n.img"
	exporter=$pid
	check "to an export" take export "$uri" --overwrite
	stop "$exporter"
	slowly
	again
	check "the disk is where it was" disk_is_on "$a"
	check "the guest goes on" works
	check "the writers end" end_writers
	check "the guest noticed nothing" end_load
	for name in folder:b/disk.img verified:verified.img export:n.img again:again.img slow:slow.img; do
		check "${name%:*}: it is what the disk was at the cut" fits "${name%:*}" "$dir/${name#*:}"
		check "${name%:*}: what no guest wrote is what it was" \
			cmp -i $((64 * M)) -n $((32 * M)) "$dir/original" "$dir/${name#*:}"
	done
	check "the disk has all" serves disk "$a"
}

# The target's server dies when the cut was made, and is not durable: no copy. It is cut again.
again() {
	truncate -s $image_size "$dir/again.img"
	start_blockmirror_nbd "$dir/again.sock" "$dir/again.img"
	touch "$slow"
	check "to a server" "$bm" copy disk "$(slow_target 2s "$uri")" --overwrite --guest-latency off --detach
	check "the cut is made" wait_for 30 phase_is disk cutting
	kill9 "$pid"
	rm "$slow"
	check "its server is killed then: it is lost" wait_for 10 job_is disk .progress.target target-lost
	start_blockmirror_nbd "$dir/again.sock" "$dir/again.img"
	check "another one comes: it is cut again" "$bm" job wait disk
	stop "$pid"
	"$bm" job show disk --json >"$dir/again.json"
	check "which is told" told again '.cuts > 1 and .state == "done"'
}

# Making it durable takes seconds: no guest waits for that.
slowly() {
	local before
	truncate -s $image_size "$dir/slow.img"
	touch "$slow"
	check "to where a flush takes three seconds" "$bm" copy disk "$(slow_target 3s "$dir/slow.img")" \
		--overwrite --guest-latency off --detach
	check "the cut is made" wait_for 30 phase_is disk cutting
	before=$(show disk .requests.write)
	check "the guest goes on" wait_for 2 more_writes "$before"
	check "it is not durable yet" phase_is disk cutting
	check_fails "one at a time" 3 "E_BUSY: disk disk is being copied already" "$bm" copy disk "$dir/no.img"
	check_fails "nor is it stopped" 3 "E_BUSY: disk disk is being copied" "$bm" stop disk
	rm "$slow"
	check "it is done" "$bm" job wait disk
	"$bm" job show disk --json >"$dir/slow.json"
	check "no request took as long as that: $(jq .longest_stall "$dir/slow.json") ns" \
		told slow '.longest_stall < 2500000000 and .cut_took > 2000000000'
}

# It is nobody's, and so anybody's.
is_free() {
	check "a copy has no mark" test -z "$(mark "$dir/b/disk.img")"
	check "it is served as another disk" serve twin "$dir/b/disk.img"
	check "which is what the disk was at the cut" fits folder "$(disk_uri twin)"
	check "and is written to, and copied" "$bm" copy twin "$dir/c"
	unserve twin
	check "the disk is still served" serves disk "$a"
	check "its jobs are told" five_copies
}
five_copies() {
	"$bm" job list disk --json | jq -e '[.jobs[] | select(.kind == "copy" and .state == "done")] | length == 5'
}

names() {
	mkdir "$dir/d"
	truncate -s 1M "$dir/d/disk"
	check "a disk's name comes before a file's" env -C "$dir/d" "$bm" copy disk of-disk.img
	check "it was the disk" test "$(stat -c %s "$dir/d/of-disk.img")" -eq $image_size
	check "with a slash it is the file" env -C "$dir/d" "$bm" copy ./disk of-file.img
	check "it was the file" test "$(stat -c %s "$dir/d/of-file.img")" -eq $M
	check_fails "neither" 4 "E_NOT_FOUND: \"nothing\" is neither" "$bm" copy nothing "$dir/no.img"
	check_fails "nobody waits for the copy of an image" 2 "E_USAGE.*are for disks that are served" \
		"$bm" copy "$dir/original" "$dir/no.img" --guest-latency 5
	check_fails "not to another host's disks" 3 "E_UNSUPPORTED" "$bm" copy disk bm://other/srv/
	check "an image is copied, and compared" "$bm" copy "$dir/original" "$dir/cold.img" --verify
	check "and is equal" cmp "$dir/original" "$dir/cold.img"
}

changed_mind() {
	check "a slow one begins" "$bm" copy disk "$dir/e.img" --rate 1M --detach
	check "its target is there, and marked" marked "$dir/e.img" incomplete
	check "it is paused" "$bm" job pause disk
	check "and says so" job_is disk '"\(.kind) \(.state)"' "copy paused"
	check "its rate is set" "$bm" job set disk --rate 2M
	check "it goes on" "$bm" job resume disk
	check "it is cancelled" "$bm" job cancel disk
	check "the target is gone" test ! -e "$dir/e.img"
	check "the disk is where it was" disk_is_on "$a"
}

# The process dies between the cut and its being durable: the next one cuts again.
killed() {
	truncate -s $image_size "$dir/killed.img"
	touch "$slow"
	log=$dir/killed.out spawn "$bm" copy disk "$(slow_target 20s "$dir/killed.img")" --overwrite --guest-latency off
	local copy=$pid
	check "the cut is made" wait_for 20 phase_is disk cutting
	kill_disk disk
	wait "$copy"
	check_fails "who waits is told" 0 "E_INTERRUPTED.*it goes on when" cat "$dir/killed.out"
	lib_forget "$copy"
	rm "$slow"
	check "the disk is served again" serve disk
	check "the copy ends" "$bm" job wait disk
	check "it is done" job_is disk '"\(.kind) \(.state) \(.resumed.times)"' "copy done 1"
	check "it is the disk" serves disk "$dir/killed.img"
}

# A target without space waits for it.
out_of_space() {
	local room=$dir/room
	mkdir "$room"
	mount -t tmpfs -o size=20M none "$room" 2>"$dir/out" || { skip "no space" "$(cat "$dir/out")"; return; }
	on_exit "umount -l '$room'"
	dd if=/dev/urandom of="$dir/random" bs=1M count=32 status=none
	head -c 16M "$dir/random" >"$dir/small.img"
	truncate -s 32M "$dir/small.img"
	serve small "$dir/small.img"
	check "a copy begins, slowly" "$bm" copy small "$room/copy.img" --rate 1k --detach
	check "and waits, and so is not cut" "$bm" job pause small
	check "its guest writes more than there is room for" nbdcopy "$dir/random" "$(disk_uri small)"
	check "the target is full" job_is small .progress.target target-full
	check "it is no copy" job_is small '.cut_at' null
	mount -o remount,size=64M "$room"
	check "there is space" "$bm" job resume small
	check "and time" "$bm" job set small --rate 0
	check "it is one" timeout 60 "$bm" job wait small
	check "it is the disk" cmp "$dir/random" "$room/copy.img"
	unserve small
}

check "the disk is served" serve disk "$a"
under_full_load
is_free
names
changed_mind
killed
out_of_space
check "it is stopped in the end" unserve disk
