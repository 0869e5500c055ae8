#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What "relocate --qmp" refuses, each for real, with a QEMU that runs no machine: its drives are as
# before, and nothing is left.
# shellcheck source-path=SCRIPTDIR source=slip.bash
# shellcheck disable=SC2054,SC2209 # commas are QEMU's; names of drives are meant
. "$(dirname "$0")/slip.bash"

have jq getfattr qemu-system-x86_64 qemu-img || { skip "refusals" "QEMU, jq, attr"; exit; }
mkdir "$dir/a" "$dir/b"

# refused NAME STATUS CODE COMMAND…: and nothing has changed.
refused() {
	local name=$1 status=$2 code=$3
	shift 3
	check_fails "$name: $code" "$status" "$code" "$@"
	[ "$(grep -c "" "$dir/out")" -eq 2 ] || not_ok "$name: in one line" "$dir/out" # and what was expected
	check "$name: nothing is left" nothing_left
}

# a_drive NAME FORMAT FILE: arguments for a device NAME on that image.
a_drive() {
	drives+=(-blockdev "driver=file,node-name=$1-file,filename=$3" -blockdev
		"driver=$2,node-name=$1-node,file=$1-file" -device "virtio-blk-pci,id=$1,drive=$1-node")
}
truncate -s 8M "$dir"/a/{disk,plain,shared,ro}.img
qemu-img create -q -f qcow2 "$dir/a/base.qcow2" 8M
(cd "$dir/a" && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 linked.qcow2)
qemu-img create -q -f qcow2 "$dir/a/old.qcow2" 8M
qemu-img create -q -f vmdk "$dir/a/disk.vmdk" 8M
qemu-img create -q -f vdi "$dir/a/disk.vdi" 8M
qemu-img create -q -f qcow2 -o "data_file=$dir/a/data.raw" "$dir/a/split.qcow2" 8M
drives=(-device virtio-scsi-pci -blockdev "driver=file,node-name=f0,filename=$dir/a/disk.img"
	-blockdev driver=raw,node-name=disk0,file=f0 -device virtio-blk-pci,id=vd0,drive=disk0)
a_drive linked qcow2 "$dir/a/linked.qcow2"
a_drive vmdk vmdk "$dir/a/disk.vmdk"
a_drive vdi vdi "$dir/a/disk.vdi"
a_drive split qcow2 "$dir/a/split.qcow2"
a_drive shared raw "$dir/a/shared.img"
drives+=(-blockdev driver=null-co,node-name=n0,size=8388608 -blockdev driver=raw,node-name=rn0,file=n0
	-device virtio-blk-pci,id=null,drive=rn0
	-blockdev driver=null-co,node-name=n1,size=8388608
	-blockdev "driver=file,node-name=plain,filename=$dir/a/plain.img"
	-blockdev "driver=file,node-name=ro-file,filename=$dir/a/ro.img,read-only=on"
	-blockdev driver=raw,node-name=ro-node,file=ro-file,read-only=on
	-device virtio-blk-pci,id=ro,drive=ro-node
	-object iothread,id=io0 -drive "if=none,id=old,file=$dir/a/old.qcow2"
	-device virtio-blk-pci,drive=old,iothread=io0)
if have tgtd && start_tgt "$dir/tgt" 8; then
	portal=${uri#iscsi://} target=${uri##*/}
	drives+=(-blockdev "driver=iscsi,node-name=isc,transport=tcp,portal=${portal%%/*},target=$target:disk,lun=1"
		-device scsi-block,id=through,drive=isc)
fi
check "a QEMU with drives of all kinds" qemu_idle "${drives[@]}"
has_clients() { [ "$(show "$1" '.clients | length')" -gt 0 ]; }
before() { monitor x-debug-query-block-graph | jq -S '.nodes |= map(.name) | .nodes |= sort | .edges |= length' >"$dir/graph.$1"; }
before 1
md5sum "$dir"/a/* >"$dir/sums"
unmarked() { ! getfattr --absolute-names -n user.blockmirror "$dir"/a/* 2>/dev/null; }
drive=nobody refused "a drive that is not there" 4 E_NOT_FOUND slip "$dir/b"
if [ -n "${portal:-}" ]; then
	drive=through refused "passthrough" 3 "E_UNSUPPORTED: through: the guest has the device itself" slip "$dir/b"
	drive=isc refused "passthrough, by the node's name" 3 "E_UNSUPPORTED: isc: the guest has the device itself" slip "$dir/b"
else
	skip "passthrough" "no iSCSI target"
fi
drive=null refused "an image that is no file" 3 "E_UNSUPPORTED.*null-co" slip "$dir/b"
drive=plain refused "a node that is nobody's" 3 "E_UNSUPPORTED.*no format node and no device" slip "$dir/b"
drive=ro refused "read-only" 3 E_ACCESS slip "$dir/b"
drive=vmdk refused "vmdk" 3 "E_UNSUPPORTED.*vmdk" slip "$dir/b"
drive=vdi refused "vdi" 3 "E_UNSUPPORTED.*vdi" slip "$dir/b"
drive=split refused "data in a second file" 3 "E_UNSUPPORTED.*second file" slip "$dir/b"
drive=old refused "a node without a name, in an I/O thread" 3 "E_UNSUPPORTED.*no name of its own.*-drive node-name=" \
	slip "$dir/b"
drive=linked refused "a backing file out of reach" 3 "E_LINKED.*base.qcow2" slip "$dir/b"
refused "a target that exists" 3 E_EXISTS slip "$dir/a/plain.img"
refused "the image itself" 3 E_SAME slip "$dir/a"
refused "a target that is no file" 3 E_UNSUPPORTED slip "nbd+unix:///?socket=$dir/none"
refused "a target in no folder" 4 "E_NOT_FOUND" slip "$dir/nowhere/disk.img"
refused "options that have no sense" 2 E_USAGE slip "$dir/b" --detach
check "a job in QEMU" monitor blockdev-backup \
	'{"job-id":"j","device":"shared-node","target":"n1","sync":"full","speed":1}'
drive=shared refused "a block job" 3 "E_BUSY.*block job" slip "$dir/b"
check "the job ends" monitor block-job-cancel '{"device":"j","force":true}'
check "an export in QEMU" monitor nbd-server-start '{"addr":{"type":"unix","data":{"path":"'"$dir/own.nbd"'"}}}'
check "of the image" monitor block-export-add '{"type":"nbd","id":"e","node-name":"shared-file"}'
drive=shared refused "an image that QEMU has in use twice" 3 "E_BUSY.*twice" slip "$dir/b"
check "not any more" monitor block-export-del '{"id":"e"}'
before 2
check "QEMU's drives are as they were" cmp "$dir/graph.1" "$dir/graph.2"
check "the images, too" md5sum --quiet -c "$dir/sums"
check "none has got a mark" unmarked
check "nothing is where they were to go" test -z "$(ls -A "$dir/b")"
to=$dir/b
for name in vd0 disk0 f0 /machine/peripheral/vd0; do
	drive=$name check "a drive by the name $name moves" slip "$to" --overwrite
	if [ "$to" = "$dir/b" ]; then to=$dir/a; else to=$dir/b; fi
done

busy() {
	local start=${EPOCHREALTIME/./} status
	slip "$dir/b"
	status=$?
	took=$(((${EPOCHREALTIME/./} - start) / 1000))
	return $status
}
spawn tests/system/qmp.py --hold "$dir/qmp"
holder=$pid
wait_for 5 grep -q taken "$dir/log"
refused "a QMP socket that is taken" 3 "E_QMP_BUSY.*-qmp unix:PATH,server=on,wait=off" busy
check "after 2 s: $took ms in all" test "$took" -lt 6000
stop "$holder"
stop "$qemu"
refused "QEMU that has ended" 4 E_NOT_FOUND slip "$dir/b"
check "a QEMU that is being moved to" qemu_idle "${drives[@]:2:4}" -device virtio-blk-pci,id=vd0,drive=disk0 -incoming defer
refused "a machine that is on its way" 3 "E_BUSY.*inmigrate" slip "$dir/b"
stop "$qemu"

# Two machines write to one image.
chmod 644 "$dir/a/disk.img" 2>/dev/null || truncate -s 8M "$dir/a/disk.img"
shared_drive=("${drives[@]:2:4}" -device virtio-blk-pci,id=vd0,drive=disk0,share-rw=on)
check "a machine beside" qemu_idle "${shared_drive[@]}"
beside=$qemu
check "a QEMU that shares its image" qemu_idle "${shared_drive[@]}"
refused "an image that another machine writes to" 3 E_LOCKED slip "$dir/b"
check "QEMU has it" below_is "$dir/a/disk.img"
stop "$qemu" "$beside"

if [ "$(id -u)" -eq 0 ]; then
	chmod 711 "$dir"
	rm -f "$dir"/[ab]/*
	truncate -s 8M "$dir/a/disk.img"
	check "a QEMU of another user's" qemu_idle "${drives[@]:2:4}" -device virtio-blk-pci,id=vd0,drive=disk0 -runas nobody
	refused "an image that it could not open again" 3 "E_QMP.*a/disk.img.*Permission denied" slip "$dir/b"
	chown nobody "$dir/a/disk.img"
	chmod 700 "$dir/b"
	refused "a target that it cannot open" 3 "E_QMP.*b/disk.img.*Permission denied" slip "$dir/b"
	check "of which nothing is left" test ! -e "$dir/b/disk.img"
	chmod 711 "$dir/b"
	check "a target that it can" slip "$dir/b"
	check "it is that user's" test "$(stat -c %U "$dir/b/disk.img")" = nobody
	check "and QEMU has it" qemu_has "$dir/b/disk.img"
	check "adopted" "$bm" adopt --qmp "$dir/qmp" --drive vd0 --name web
	chown root "$dir/b/disk.img"
	chmod 600 "$dir/b/disk.img"
	check_fails "what QEMU cannot open is not handed back" 3 "E_QMP.*Permission denied" "$bm" hand-back web
	check "the disk is ours, and locked" locked "$dir/b/disk.img"
	check "QEMU is connected" has_clients web
	chown nobody "$dir/b/disk.img"
	check "what it can is" "$bm" hand-back web
	check "nothing is left" nothing_left
	check "QEMU has it" qemu_has "$dir/b/disk.img"
	stop "$qemu"
else
	skip "a QEMU of another user's" "not root"
fi

spawn tests/system/qmp.py --fake "$dir/old.qmp" 6 0
wait_for 5 test -S "$dir/old.qmp"
refused "a QEMU that is too old" 3 "E_QMP: QEMU 6.0 is too old" \
	"$bm" relocate --qmp "$dir/old.qmp" --drive vd0 "$dir/b"
start_nbdkit "$dir/nbd.sock" memory 1M
refused "who is not QEMU" 3 "E_QMP: .*is not QEMU" "$bm" relocate --qmp "$dir/nbd.sock" --drive vd0 "$dir/b"
spawn qemu-storage-daemon --chardev "socket,path=$dir/qsd.qmp,server=on,wait=off,id=m" --monitor chardev=m
wait_for 5 test -S "$dir/qsd.qmp"
refused "a QEMU without a machine" 3 "E_QMP: QEMU refuses query-status" \
	"$bm" relocate --qmp "$dir/qsd.qmp" --drive vd0 "$dir/b"
refused "no socket" 4 E_NOT_FOUND "$bm" relocate --qmp "$dir/none" --drive vd0 "$dir/b"
refused "no drive named" 2 E_USAGE "$bm" relocate --qmp "$dir/none" "$dir/b"
