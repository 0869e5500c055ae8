#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What a copy sends to another host is compressed where the way is slow, and is the same at the other
# end; noise goes as it is, and so does everything where the way is fast.
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "$0")/hosts.bash"

have tc || { skip "compressed copies" "iproute2"; exit; }
need_hosts
there=bm://host-b$store/
size=$((48 << 20))

begin() {
	check "two hosts are paired" hosts_up
	check "b takes disks" bm_on b peer allow host-a --receive "$store"
	check "there are disks of files and of noise" make_disks
	for disk in files noise again; do check "a serves $disk" bm_on a serve $disk "$store/$disk.img"; done
}
make_disks() {
	{ tar -cf - -C / usr/bin usr/lib usr/share 2>/dev/null || true; } | head -c $size >"$dir/files.img"
	head -c $size /dev/urandom >"$dir/noise.img"
	[ "$(stat -c %s "$dir/files.img")" = $size ] || return
	cp "$dir/files.img" "$dir/again.img"
	for disk in files noise again; do cp "$dir/$disk.img" "$(in_store a $disk.img)" || return; done
}
narrow() { on a tc qdisc replace dev eth0 root tbf rate "$1" burst 256k latency 50ms; }
wide() { on a tc qdisc del dev eth0 root; }
# Bytes that a has sent so far.
sent() { on a ip -s -j link show eth0 | jq '.[0].stats64.tx.bytes'; }
moves() { # DISK
	before=$(sent)
	bm_on a relocate "$1" "$there" --guest-latency off || return
	percent=$((($(sent) - before) * 100 / size))
	echo "$percent" >"$dir/percent"
}
arrived() { cmp "$dir/$1.img" "$(in_store b "$1.img")"; }
sent_is() {
	echo "$(cat "$dir/percent") %" [ "$(cat "$dir/percent")" -ge "$1" ] && [ "$(cat "$dir/percent")" -le "$2" ]; }

begin
check "the way is slow" narrow 200mbit
check "files move" moves files
check "they are sent as less than two thirds" sent_is 10 66
check "they are the same there" arrived files
check "noise moves" moves noise
check "it takes what it is" sent_is 100 115
check "it is the same there" arrived noise
check "the way is fast" wide
check "more files move" moves again
check "they are the same, too" arrived again
check "files come back" bm_on a relocate files "$store/files.back.img" --delete-source --guest-latency off
check "the way is slow, again" narrow 100mbit
make_image "$dir/load.img"
cp --sparse=always "$dir/load.img" "$(in_store a load.img)"
check "a serves one more" on a serve disk "$store/load.img"
check "its guest works" on a start_load disk
check "its disk moves" bm_on a relocate disk "$there" --guest-latency off
check "its guest has noticed nothing" end_load
check "all that it wrote is there" store_fits b load.img
