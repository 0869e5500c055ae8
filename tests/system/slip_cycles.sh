#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Under the format layer, and again and again: a guest's disk is slipped out, moved and handed back
# $CYCLES times without a restart: qcow2 with an internal snapshot and a persistent bitmap, an overlay
# of a linked clone, LUKS, raw; with each way of QEMU's to do I/O, with an iothread and without.
# LONG=1: all of them, twenty times each. With arguments: this one, slip_cycles.sh qcow2 native iothread.
# shellcheck source-path=SCRIPTDIR source=slip.bash
# shellcheck disable=SC2054 # commas are QEMU's
. "$(dirname "$0")/slip.bash"

have jq qemu-system-x86_64 qemu-img qemu-io busybox || { skip "cycles" "QEMU, jq, busybox"; exit; }
fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1 || { skip "cycles" "no kernel"; exit; }
CYCLES=${CYCLES:-${LONG:+20}} CYCLES=${CYCLES:-2}
mkdir "$dir/a" "$dir/b"
secret=(-object secret,id=key,data=0123456789)

make_qcow2() {
	qemu-img create -q -f qcow2 "$1" 64M &&
		qemu-io -c "write -q -P 7 40M 4M" "$1" && qemu-img snapshot -c kept "$1" &&
		qemu-io -c "write -q -z 40M 4M" "$1" && qemu-img bitmap --add "$1" since
}
make_linked() {
	qemu-img create -q -f qcow2 "$dir/base.qcow2" 64M &&
		qemu-img create -q -f qcow2 -b ../base.qcow2 -F qcow2 "$1"
}
make_luks() {
	encrypting qemu-img create -q -f luks --object secret,id=key,data=0123456789 \
		-o key-secret=key,iter-time=10 "$1" 64M &&
		qemu-io --image-opts --object "${secret[1]}" -c "write -q -z 0 64M" \
			"driver=luks,key-secret=key,file.filename=$1"
}
make_raw() { truncate -s 64M "$1"; }

# Options of the nodes, by what the image is made as.
format_of() {
	case $1 in
	qcow2) echo "driver=qcow2,lazy-refcounts=on" ;;
	linked) echo driver=qcow2 ;;
	luks) echo driver=luks,key-secret=key ;;
	raw) echo driver=raw ;;
	esac
}
to_raw() { # KIND IMAGE
	local options="driver=${1/linked/qcow2},file.filename=$2"
	[ "$1" != luks ] || options+=,key-secret=key
	qemu-img convert --image-opts --object "${secret[1]}" -O raw "$options" "$dir/raw"
}

# After each move the guest has written some more.
cycles() {
	local i to
	for i in $(seq "$CYCLES"); do
		to=$dir/b
		((i % 2)) || to=$dir/a
		slip "$to" --delete-source || { echo "in cycle $i"; return 1; }
		nothing_left || return
		goes_on 30 5 || return
	done
}
snapshot_kept() {
	qemu-img convert -l snapshot.name=kept -O raw "$1" "$dir/snapshot" &&
		qemu-io -r -f raw -c "read -P 7 40M 4M" "$dir/snapshot" | tee "$dir/read" &&
		! grep failed "$dir/read"
}
bitmap_kept() {
	qemu-img info --output=json "$1" | jq -e '."format-specific".data.bitmaps[0] |
		.name == "since" and (.flags | index("in-use") | not)' >/dev/null &&
		# It knows of what the guest has written: of the records, at least.
		qemu_bitmap "$1" | jq -e '.[0].start == 0 and .[0].data == false' >/dev/null
}
# What qemu-nbd exports of the bitmap: dirty is "not data" there.
qemu_bitmap() {
	lib_serve "$dir/bitmap.sock" qemu-nbd -r -t -f qcow2 -B since -k "$dir/bitmap.sock" "$1" || return
	qemu-img map --output=json --image-opts \
		"driver=nbd,server.type=unix,server.path=$dir/bitmap.sock,x-dirty-bitmap=qemu:dirty-bitmap:since"
	stop "$pid"
}

# try KIND AIO [IOTHREAD]
try() {
	local kind=$1 aio=$2 threaded=${3:-} name image direct=on device=virtio-blk-pci,id=vd0,drive=disk0
	name="$1, aio=$2${3:+, iothread}"
	image=$dir/a/disk.img
	local more=()
	rm -f "$dir"/[ab]/*
	"make_$kind" "$image" || { not_ok "$name: an image"; return; }
	[ "$aio" != threads ] || direct=off
	[ -z "$threaded" ] || { more=(-object iothread,id=io0) device+=,iothread=io0; }
	check "$name: a guest" boot "${secret[@]}" "${more[@]}" \
		-blockdev "driver=file,node-name=f0,filename=$image,discard=unmap,aio=$aio,cache.direct=$direct" \
		-blockdev "$(format_of "$kind"),node-name=disk0,file=f0,discard=unmap,cache.direct=$direct" \
		-device "$device"
	check "$name: $CYCLES times slipped out, moved and handed back" cycles
	image=$(monitor query-named-block-nodes '{"flat":true}' | jq -r '.[] | select(."node-name" == "f0").file')
	check "$name: QEMU has it" locked "$image"
	check "$name: the guest ends in good order" end_guest
	echo "# $(ticks) records"
	case $kind in qcow2 | linked) check "$name: qemu-img check" qemu-img check -q -f qcow2 "$image" ;; esac
	if [ "$kind" = qcow2 ]; then
		check "$name: the snapshot is what it was" snapshot_kept "$image"
		check "$name: the bitmap is there, and counts" bitmap_kept "$image"
	fi
	check "$name: the image can be read" to_raw "$kind" "$image"
	check "$name: no record is lost, and the guest saw no error" kept "$dir/raw"
}

export GUEST_LOAD=512
if [ $# -gt 0 ]; then
	try "$@"
elif [ -n "${LONG:-}" ]; then
	for kind in raw qcow2; do
		for aio in native io_uring threads; do
			try $kind $aio
			try $kind $aio iothread
		done
	done
	try linked threads
	try luks native
else
	try qcow2 io_uring iothread
fi
