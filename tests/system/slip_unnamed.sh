#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Drives that were given no name, or no format node: -drive, -hda, and devices that have a file's node
# without anything between. Each is slipped out, moved and handed back, there and back, and has what its
# guest has written. LONG=1: once more; and guests on drives.
# shellcheck source-path=SCRIPTDIR source=slip.bash
# shellcheck disable=SC2054 # commas are QEMU's
. "$(dirname "$0")/slip.bash"

have jq qemu-system-x86_64 qemu-img || { skip "drives without names" "QEMU, jq"; exit; }
mkdir "$dir/a" "$dir/b"

# found DRIVE: what query-block says of it.
found() {
	monitor query-block | jq -c --arg d "$1" 'map(select(.device == $d or (.qdev // "" |
		. == $d or startswith("/machine/peripheral/\($d)/") or . == "/machine/peripheral/\($d)")))[0]'
}
# As the device, where it has an id: who else writes there is refused.
io() { # DRIVE COMMAND
	local who=$1
	[[ $who != bare && $who != sd ]] || who="-d $(found "$1" | jq -r .qdev)"
	monitor human-monitor-command "$(jq -n --arg c "qemu-io $who \"$2\"" '{"command-line":$c}')" | tee "$dir/io"
	! grep -qiE "failed|error|conflict" "$dir/io"
}
# By the file's name: QEMU shows what is not its own default as json:{…}.
is_on() { # DRIVE FILE
	found "$1" | jq -e --arg f "$2" '.inserted.file as $now | ($now == $f) or
		($now | startswith("json:") and (ltrimstr("json:") | fromjson | .. | .filename? == $f))' &&
		locked "$2"
}
moves() { # DRIVE TO FROM FILE
	io "$1" "write -P $round ${round}M 1M" && drive=$1 slip "$2" --delete-source && nothing_left &&
		is_on "$1" "$2/$4" && [ ! -e "$3/$4" ] && io "$1" "read -P $round ${round}M 1M"
}
# The second time it is QEMU's node as we have made it.
way=("$dir/b" "$dir/a" ${LONG:+"$dir/b"})
here=${way[-1]} there=$dir/b
[ -n "${LONG:-}" ] && there=$dir/a
goes_round() { # DRIVE FILE
	local name=$1 file=$2 to from=$dir/a round=0
	for to in "${way[@]}"; do
		round=$((round + 1))
		moves "$name" "$to" "$from" "$file" || { echo "in round $round"; return 1; }
		from=$to
	done
}
# QEMU tells of its own way of I/O nowhere; of a file that is open past the page cache, Linux does.
opened() { # FILE
	local flags
	flags=$(find "/proc/$qemu/fd" -lname "$1" -printf '%f\n' | head -n 1)
	flags=$(grep -h ^flags "/proc/$qemu/fdinfo/$flags")
	((8#${flags#*:?} & 8#40000))
}
graph() { # who is below whom, by name, of drives that have names
	monitor x-debug-query-block-graph | jq -S '(.nodes | map({(.id | tostring): .name}) | add) as $n |
		.edges | map([$n[.parent | tostring], .name, $n[.child | tostring]]) |
		map(select(.[2] | startswith("plain"))) | sort'
}

truncate -s 16M "$dir"/a/{old,hda,plain,sd}.img
qemu-img create -q -f qcow2 "$dir/a/virt.qcow2" 16M
qemu-img create -q -f qcow2 "$dir/a/told.qcow2" 16M
check "a QEMU with drives that have no names" qemu_idle -device virtio-scsi-pci \
	-drive "if=none,id=old,file=$dir/a/old.img,format=raw,cache=none,aio=native" \
	-device virtio-blk-pci,drive=old -drive "if=virtio,file=$dir/a/virt.qcow2" \
	-drive "if=virtio,driver=qcow2,file.driver=file,file.filename=$dir/a/told.qcow2,file.locking=on" \
	-hda "$dir/a/hda.img" \
	-blockdev "driver=file,node-name=plain,filename=$dir/a/plain.img" \
	-device virtio-blk-pci,id=bare,drive=plain \
	-blockdev "driver=file,node-name=plain-sd,filename=$dir/a/sd.img" -device scsi-hd,id=sd,drive=plain-sd
graph >"$dir/graph.1"
check "-drive with an id" goes_round old old.img
check "it is open past the page cache, as before" opened "$here/old.img"
check "-drive if=virtio, qcow2" goes_round virtio0 virt.qcow2
check "-drive with options of the file's" goes_round virtio1 told.qcow2
check "-hda" goes_round ide0-hd0 hda.img
check "a device without a format node" goes_round bare plain.img
check "its node's name will do, too" "$bm" relocate --qmp "$dir/qmp" --drive plain "$there"
check "a SCSI device without one" goes_round sd sd.img
graph >"$dir/graph.2"
unplugged() { [ "$(found sd)" = null ]; }
taken_back() { "$bm" hand-back sd | grep "the disk is on $here/sd.img"; }
check "the SCSI disk is adopted" "$bm" adopt --qmp "$dir/qmp" --drive sd --name sd
check "and unplugged" monitor device_del '{"id":"sd"}'
check "it is gone" wait_for 10 unplugged
check "what is left is taken back, and it is said where the disk is" taken_back
check "nothing is left" nothing_left
check "what has names was built as before" cmp "$dir/graph.1" "$dir/graph.2"
stop "$qemu"

# As a guest has it, with an I/O thread.
export GUEST_LOAD=512
if have busybox && fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1; then
	rm -f "$dir"/[ab]/*
	truncate -s 64M "$dir/a/disk.img"
	qemu-img create -q -f qcow2 "$dir/a/disk.qcow2" 64M
	check "a guest on a file without a format node, with an I/O thread" boot -object iothread,id=io0 \
		-blockdev "driver=file,node-name=plain,filename=$dir/a/disk.img,discard=unmap,cache.direct=on,aio=native" \
		-device virtio-blk-pci,id=vd0,drive=plain,iothread=io0
	for to in "$dir/b" "$dir/a"; do
		check "it moves" slip "$to" --delete-source
		check "the guest goes on" goes_on 30 10
		check "nothing is left" nothing_left
	done
	check "it ends in good order" end_guest
	check "no record is lost" kept "$dir/a/disk.img"
	[ -n "${LONG:-}" ] || exit 0
	check "a guest on -drive, raw, with an I/O thread, and one on qcow2" boot -object iothread,id=io0 \
		-drive "if=none,id=dr,file=$dir/a/disk.img,format=raw,cache=none,aio=io_uring" \
		-device virtio-blk-pci,drive=dr,iothread=io0 \
		-drive "if=none,id=dq,file=$dir/a/disk.qcow2" -device virtio-blk-pci,drive=dq,iothread=io0
	drive=dq check_fails "qcow2 is refused there" 3 "E_UNSUPPORTED.*no name of its own.*I/O thread" slip "$dir/b"
	check "nothing is left" nothing_left
	for to in "$dir/b" "$dir/a"; do
		drive=dr check "it moves" slip "$to" --delete-source
		check "the guest goes on" goes_on 30 10
		check "nothing is left" nothing_left
	done
	check "it ends in good order" end_guest
	check "no record is lost" kept "$dir/a/disk.img"
	qemu-img create -q -f qcow2 "$dir/a/disk.qcow2" 64M
	check "a guest on -drive, qcow2" boot -drive "if=virtio,file=$dir/a/disk.qcow2,cache=none,aio=native"
	for to in "$dir/b" "$dir/a"; do
		drive=virtio0 check "it moves" slip "$to" --delete-source
		check "the guest goes on" goes_on 30 10
		check "nothing is left" nothing_left
	done
	check "it ends in good order" end_guest
	check "qemu-img check" qemu-img check -q "$dir/a/disk.qcow2"
	qemu-img convert -O raw "$dir/a/disk.qcow2" "$dir/raw"
	check "no record is lost" kept "$dir/raw"
else
	skip "a guest" "no kernel: $(tail -n 1 "$dir/out")"
fi
