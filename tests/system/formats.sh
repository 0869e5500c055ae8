#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images in formats, by a helper: a guest writes while its disk goes from raw to qcow2 to vmdk and
# back; helpers are killed, and the disk's process is; what cannot be used is refused, and what a guest
# wrote never chooses a format.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-nbd qemu-img qemu-io nbdcopy jq || { skip "formats" "qemu-utils, libnbd-bin, jq"; exit; }
image_size=$((48 * M)) half=$((16 * M)) # behind it no load touches
gentle=(--initial any --sizes 512:64k --iops 400 --depth 8)
raw=$dir/a/disk.img qcow2=$dir/b/disk.qcow2 vmdk=$dir/c/disk.vmdk
mkdir "$dir/a" "$dir/b" "$dir/c" "$dir/d"

helpers() { pgrep -P "$disk_pid" -x qemu-nbd; }
helper_of() { pgrep -P "$disk_pid" -f "^qemu-nbd .* $1\$"; }
no_helper() { ! helpers; }
losses() { show disk '.storage.losses'; }
lost_more() { [ "$(losses)" -gt "$1" ]; }
target_lost() { [ "$(job disk .progress.target_losses)" -gt "$1" ]; }
# sound FORMAT FILE: what QEMU says of it. A killed helper may leave space that nobody uses (3).
sound() {
	local status
	qemu-img check -f "$1" "$2"
	status=$?
	[ $status -eq 0 ] || { [ "${3:-}" = leaks ] && [ $status -eq 3 ]; }
}
# as_raw FORMAT FILE: its content, by QEMU, is $dir/as.raw.
as_raw() { qemu-img convert -f "$1" -O raw "$2" "$dir/as.raw"; }
holds() { as_raw "$1" "$2" && image_fits "$dir/as.raw"; }
rest_is_original() { as_raw "$1" "$2" && cmp -i $half "$dir/original" "$dir/as.raw"; }
stops() { unserve disk && ! pgrep -f "^qemu-nbd .*$dir"; }

there_and_back() {
	truncate -s $image_size "$raw"
	dd if=/dev/urandom of="$raw" bs=1M seek=20 count=4 conv=notrunc status=none
	cp --sparse=always "$raw" "$dir/original"
	check "the disk is served" serve disk "$raw"
	start_load disk "${gentle[@]}"
	check "raw to qcow2" "$bm" relocate disk "qcow2:$dir/b" --guest-latency off
	check "its name has the format's ending" disk_is_on "qcow2:$qcow2"
	check "one helper serves it" test "$(helpers | wc -l)" -eq 1
	check "it is marked" marked "$qcow2" active
	check "and known by its path" "$bm" whois "$qcow2"
	check "qcow2 to vmdk" "$bm" relocate disk "vmdk:$dir/c" --guest-latency off
	check "vmdk to raw, verified" "$bm" relocate disk "$dir/d" --guest-latency off --verify
	check "three moves: the guest noticed nothing" end_load
	check "no helper is left" wait_for 5 no_helper
	check "the disk serves what is in the file" serves disk "$dir/d/disk.img"
	check "qcow2 is sound" sound qcow2 "$qcow2"
	check "vmdk is sound" sound vmdk "$vmdk"
	check "what no guest wrote came through" cmp -i $half "$dir/original" "$dir/d/disk.img"
	check "in vmdk, too" rest_is_original vmdk "$vmdk"
	check "holes took no space in qcow2" test "$(stat -c %b "$qcow2")" -lt $((22 * M / 512))
	check "the qcow2 image is retired" marked "$qcow2" retired
	check_fails "and no longer served" 3 E_RETIRED "$bm" serve other "qcow2:$qcow2"
	check_fails "nor as if it had no format" 3 E_NOT_IMAGE "$bm" serve other "$qcow2" --force
}

# The disk is on qcow2 from here on.
helper_dies_as_target() {
	local before
	start_load disk "${gentle[@]}"
	check "target: in sync" "$bm" relocate disk "qcow2:$dir/e.qcow2" --guest-latency off \
		--switch manual
	kill -KILL "$(helper_of "$dir/e.qcow2")"
	check "target: its helper is killed: degraded" wait_for 10 target_lost 0
	check "target: the guest goes on" works
	check "target: it comes back by itself" timeout 30 "$bm" job wait disk --for in-sync
	check "target: it is switched over" "$bm" switch disk
	check "target: the guest noticed nothing" end_load
	check "target: qcow2 holds what the guest wrote" state_fits "$(disk_uri disk)"
}

helper_dies_as_source() {
	local before
	before=$(losses)
	start_load disk "${gentle[@]}" --fua 20
	for _ in 1 2 3; do
		kill -KILL "$(helpers)"
		check "source: its helper is killed: it is lost" wait_for 10 lost_more "$before"
		before=$(losses)
		check "source: the guest goes on" works
	done
	check "source: the guest saw no error" end_load
	check "source: nothing is lost" state_fits "$(disk_uri disk)"
}

process_dies() {
	local helper
	start_load disk "${gentle[@]}" --reconnect 30
	check "process: the disk moves, slowly" "$bm" relocate disk "$dir/f.img" --guest-latency off \
		--rate 4M --detach --undo-window 10m
	sleep 0.5
	helper=$(helpers)
	kill_disk disk
	check "process: the helper ends with it" wait_for 10 lib_gone "$helper"
	check "process: the disk is served again" serve disk
	check "process: its job goes on" "$bm" job set disk --rate 0
	check "process: and ends in a window" wait_for 30 phase_is disk undo-window
	check "process: qcow2 to raw can be undone" "$bm" undo disk
	check "process: the guest noticed nothing" end_load
	check "process: the disk is on qcow2 again" disk_is_on "qcow2:$dir/e.qcow2"
	check "process: nothing is lost" state_fits "$(disk_uri disk)"
	check "stopped, and no helper is left" stops
	check "QEMU finds in qcow2 what the guest wrote" holds qcow2 "$dir/e.qcow2"
	check "qcow2 is sound after all that" sound qcow2 "$dir/e.qcow2" leaks
}

full_is() { job_is full .progress.target "$1"; }

fills_up() {
	mkdir "$dir/room"
	mount -t tmpfs -o size=6M none "$dir/room" 2>"$dir/out" ||
		{ skip "full: a target fills up" "$(cat "$dir/out")"; return; }
	on_exit "umount -l '$dir/room'"
	truncate -s $image_size "$dir/empty.img"
	check "full: a disk of holes" serve full "$dir/empty.img"
	check "full: in sync, with little room" "$bm" relocate full "qcow2:$dir/room/full.qcow2" \
		--switch manual --guest-latency off
	start_load full "${gentle[@]}" --iops 1000
	check "full: its target has no space left" wait_for 20 full_is target-full
	check "full: there is more" mount -o remount,size=64M "$dir/room"
	check "full: the job is told to go on" "$bm" job resume full
	check "full: it is in sync" timeout 30 "$bm" job wait full --for in-sync
	check "full: it is switched over" "$bm" switch full
	check "full: the guest noticed nothing" end_load
	check "full: nothing is lost" state_fits "$(disk_uri full)"
	check "full: it is stopped" unserve full
	check "full: QEMU finds qcow2 sound" sound qcow2 "$dir/room/full.qcow2"
}

# With LONG=1: the helpers of all other formats. A vhdx image may be left with a log to be replayed.
others_die() {
	local format before
	for format in vmdk vhdx vpc; do
		check "$format: a disk" serve $format "$format:$dir/lived.$format" --create $image_size
		start_load $format "${gentle[@]}"
		for _ in 1 2 3 4 5; do
			before=$(show $format .storage.losses)
			kill -KILL "$(helpers)"
			check "$format: its helper is killed" wait_for 10 other_lost $format "$before"
			wait_for 10 other_back $format
			sleep 0.5
		done
		check "$format: the guest saw no error" end_load
		check "$format: nothing is lost" state_fits "$(disk_uri $format)"
		check "$format: it is stopped" unserve $format
		check "$format: QEMU finds what the guest wrote" holds $format "$dir/lived.$format"
	done
}
other_lost() { [ "$(show "$1" .storage.losses)" -gt "$2" ]; }
other_back() { [ "$(show "$1" .storage.state)" = reachable ]; }

cold() {
	local format
	for format in qcow2 vmdk vhdx vpc; do
		check "$format: a copy" "$bm" copy "$dir/original" "$format:$dir/cold.$format"
		check "$format: QEMU reads what it was" qemu-img compare -f raw -F $format "$dir/original" \
			"$dir/cold.$format"
		check "$format: so do we" "$bm" verify "$format:$dir/cold.$format" "$dir/original"
		check "$format: as a device" "$BUILD/fixtures/devcheck" "$format:$dir/cold.$format" 0.2
	done
	for format in vdi qed; do # QEMU does not write these well
		qemu-img convert -f raw -O $format "$dir/original" "$dir/cold.$format"
		check_fails "$format: not served" 3 E_UNSUPPORTED "$bm" serve no "$format:$dir/cold.$format"
		check_fails "$format: not made" 3 E_UNSUPPORTED "$bm" copy "$dir/original" "$format:$dir/x.$format"
		check "$format: read" "$bm" verify "$format:$dir/cold.$format" "$dir/original"
	done
	check "qcow2 to vmdk" "$bm" copy "qcow2:$dir/cold.qcow2" "vmdk:$dir/again.vmdk"
	check "QEMU finds them equal" qemu-img compare -f qcow2 -F vmdk "$dir/cold.qcow2" \
		"$dir/again.vmdk"
}

# A raw disk with a header in it is a raw disk.
header_inside() {
	qemu-img create -q -f qcow2 -b /etc/hostname -F raw "$dir/header" 1M
	cp "$dir/original" "$dir/h.img"
	dd if="$dir/header" of="$dir/h.img" conv=notrunc status=none
	cp "$dir/h.img" "$dir/h.original"
	check "a qcow2 header in a raw disk" "$bm" copy "$dir/h.img" "qcow2:$dir/h.qcow2"
	check "stays what it is" qemu-img compare -f raw -F qcow2 "$dir/h.original" "$dir/h.qcow2"
	check "and comes back" "$bm" copy "qcow2:$dir/h.qcow2" "$dir/h2.img"
	check "byte for byte" cmp "$dir/h.original" "$dir/h2.img"
}

linked() {
	cp "$dir/cold.qcow2" "$dir/base.qcow2"
	qemu-img create -q -f qcow2 -b "$dir/base.qcow2" -F qcow2 "$dir/clone.qcow2"
	qemu-io -f qcow2 -c "write -P 7 1M 64k" "$dir/clone.qcow2" >/dev/null
	qemu-img convert -f qcow2 -O raw "$dir/clone.qcow2" "$dir/flat"
	check_fails "a linked clone is not served" 3 E_LINKED "$bm" serve linked "qcow2:$dir/clone.qcow2"
	check_fails "nor copied" 3 E_LINKED "$bm" copy "qcow2:$dir/clone.qcow2" "$dir/x.img"
	check_fails "nor a target" 3 E_LINKED "$bm" copy "$dir/original" "qcow2:$dir/clone.qcow2" --overwrite
	check "flattened it is" "$bm" copy --flatten "qcow2:$dir/clone.qcow2" "$dir/flattened.img"
	check "with what shows through" cmp "$dir/flat" "$dir/flattened.img"
	check "and served" serve linked "qcow2:$dir/clone.qcow2" --flatten
	check "it moves" "$bm" relocate linked "$dir/linked.img"
	check "with what shows through" cmp "$dir/flat" "$dir/linked.img"
	check "it is stopped" unserve linked
	# The extension of the header that states it (0xe2792aca), taken away.
	printf '\0\0\0\0' | dd of="$dir/clone.qcow2" bs=1 conv=notrunc status=none \
		seek="$(grep -m 1 -obUaP '\xe2\x79\x2a\xca' "$dir/clone.qcow2" | cut -d: -f1)"
	check_fails "what format is behind it is not guessed" 3 "E_LINKED.*not guessed" \
		"$bm" copy --flatten "qcow2:$dir/clone.qcow2" "$dir/x.img"
	qemu-img create -q -f qcow2 -o data_file="$dir/data" "$dir/outside.qcow2" 8M
	check_fails "data in another file" 3 E_LINKED "$bm" serve no "qcow2:$dir/outside.qcow2"
	qemu-img create -q -f vmdk -o subformat=monolithicFlat "$dir/flat.vmdk" 8M
	check_fails "vmdk with extents" 3 E_LINKED "$bm" serve no "vmdk:$dir/flat.vmdk"
}

refusals() {
	check_fails "no such image" 4 E_NOT_FOUND "$bm" serve no "qcow2:$dir/none"
	check_fails "not of that format" 3 E_NOT_IMAGE "$bm" serve no "qcow2:$dir/original"
	check_fails "nor of that" 3 E_NOT_IMAGE "$bm" serve no "vmdk:$dir/cold.qcow2"
	check_fails "no format at all" 2 E_URI "$bm" serve no "qcow9:$dir/none"
	check_fails "it exists" 3 E_EXISTS "$bm" copy "$dir/original" "qcow2:$dir/cold.qcow2"
	check "unless that is given up" "$bm" copy "$dir/original" "qcow2:$dir/cold.qcow2" --overwrite
	qemu-img create -q -f qcow2 "$dir/small.qcow2" 8M
	check_fails "too small" 3 E_TOO_SMALL "$bm" copy "$dir/original" "qcow2:$dir/small.qcow2" --overwrite
	start_qemu_nbd "$dir/q.sock" "$dir/cold.qcow2" -f qcow2
	check_fails "another QEMU has it" 3 E_LOCKED "$bm" serve no "qcow2:$dir/cold.qcow2"
	stop "$pid"
	check_fails "the tools are missing" 3 'E_UNSUPPORTED.*qemu-utils' env PATH="$dir" "$bm" serve no \
		"qcow2:$dir/cold.qcow2"
	ln -s "$(command -v qemu-img)" "$dir/a/qemu-img"
	check_fails "one of them is" 7 'not found in PATH' env PATH="$dir/a" "$bm" serve no \
		"qcow2:$dir/cold.qcow2"
	check "nothing was made" test ! -e "$dir/x.qed" -a ! -e "$dir/x.img"
	check "by ourselves, too: --create" serve made "qcow2:$dir/made.qcow2" --create 8M
	check "of that size" test "$(show made .size)" = $((8 * M))
	check "it is stopped" unserve made
	check "no helper is left in the end" wait_for 5 no_helpers_at_all
}
no_helpers_at_all() { ! pgrep -f "^qemu-nbd .*$dir"; }

there_and_back
helper_dies_as_target
helper_dies_as_source
process_dies
fills_up
[ -z "${LONG:-}" ] || others_die
cold
header_inside
linked
refusals
