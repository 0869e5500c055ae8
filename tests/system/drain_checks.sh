#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Everything that a drain has against moving an image, provoked for real; each is told by --dry-run with
# its code, and is gone with its cause. Linked clones become whole, their backing image goes after them.
# shellcheck source-path=SCRIPTDIR source=slip.bash
# shellcheck disable=SC2054 # commas are QEMU's
. "$(dirname "$0")/slip.bash"
# shellcheck source=datastore.bash
. "$(dirname "$0")/datastore.bash"

have qemu-system-x86_64 qemu-img qemu-io mkfs.ext4 losetup chattr jq || { skip "a drain's checks" "QEMU, jq, e2fsprogs"; exit; }
need_stores "a drain's checks"
old=$dir/old new=$dir/new
loop=''

drain() { "$bm" drain "$old" --to "$new" --delete-source "$@"; }
plan_of() { drain --dry-run --json "$@" >"$dir/plan"; }
has() { jq -e "select(.event == \"plan\") | .images[] | select(.image == \"$old/$1\") | $2" "$dir/plan" >>"$dir/log"; }
# stays IMAGE CODE TEXT [OPTION…]: it does, and is told so, with that reason.
stays() {
	plan_of "${@:4}" || return
	has "$1" ".why.code == \"$2\" and .store == null and (.why.message | test(\"$3\"))" || { cat "$dir/plan"; return 1; }
}
# goes IMAGE [OPTION…]
goes() {
	plan_of "${@:2}" || return
	has "$1" '.why == null and .store != null' || { cat "$dir/plan"; return 1; }
}
all_move() {
	local status
	drain --flatten >"$dir/summary"
	status=$?
	cat "$dir/summary"
	return $status
}
cleanup() {
	chattr -i "$old"/*.img 2>/dev/null
	[ -z "$loop" ] || losetup -d "$loop" 2>/dev/null
	for folder in "$dir/ram" "$dir/large" "$dir/ro"; do ! mountpoint -q "$folder" || umount -l "$folder"; done
	rm -f "$dir/large.fs"
}
on_exit cleanup
mkdir "$old" "$new" "$dir/ram" "$dir/large" "$dir/ro"

# Files

random "$old/a.img" 1
check "an image goes" goes a.img
exec {fd}<"$old/a.img"
check "one that is open stays" stays a.img E_LOCKED "has it open"
exec {fd}>&-
loop=$(losetup --show -f "$old/a.img")
check "one that a loop device is on stays: its cache is above" stays a.img E_LOCKED "in a cache above"
losetup -d "$loop" && loop=
ln "$old/a.img" "$old/b.img"
check "one with two names stays" stays a.img E_LINKED "another name"
rm "$old/b.img"
if chattr +i "$old/a.img" 2>>"$dir/log"; then
	check "one that is read-only stays" stays a.img E_ACCESS "read-only"
	chattr -i "$old/a.img"
else
	skip "one that is read-only stays" "no chattr here"
fi
truncate -s 1000 "$old/odd.img"
check "a size that no disk has" stays odd.img E_SIZE "none of a disk"
rm "$old/odd.img"
echo text >"$old/text"
check "no image" stays text E_NOT_IMAGE "neither its name nor its content"
rm "$old/text"
mkfifo "$old/fifo"
check "no file" stays fifo E_NOT_IMAGE "no file"
rm "$old/fifo"
check "again it goes" goes a.img

# Stores

check "no room" plan_of --reserve 100T
check "is told" has a.img '.store == null'
check_fails "a kind of file system that is denied" 3 "E_UNSUPPORTED.*--deny" \
	drain --dry-run --deny "$(findmnt -no FSTYPE -T "$new")"
if mount -t tmpfs -o size=8M none "$dir/ram" 2>>"$dir/log"; then
	check_fails "memory is denied without a word" 3 "E_UNSUPPORTED.*is on tmpfs" \
		"$bm" drain "$old" --to "$dir/ram" --delete-source --dry-run
	check "unless nothing is denied" "$bm" drain "$old" --to "$dir/ram" --delete-source --dry-run --deny ''
	mount -o remount,ro "$dir/ram"
	check_fails "a target that is read-only" 3 "E_ACCESS.*cannot be written" \
		"$bm" drain "$old" --to "$dir/ram" --delete-source --dry-run --deny ''
	check_fails "a datastore that is read-only" 3 "E_ACCESS.*mounted read-only" \
		"$bm" drain "$dir/ram" --to "$new" --delete-source --dry-run
else
	skip "memory" "no mount here"
fi
truncate -s 64M "$dir/large.fs"
loop=$(losetup --show -b 4096 -f "$dir/large.fs" 2>>"$dir/log")
if [ -n "$loop" ] && mkfs.ext4 -q "$loop" && mount "$loop" "$dir/large"; then
	cp "$old/a.img" "$old/small.img" && truncate -s +512 "$old/small.img"
	large() { "$bm" drain "$old" --to "$dir/large" --delete-source --dry-run --json "$@" >"$dir/plan"; }
	check "a store with larger sectors" large
	check "does not take what does not end with one" has small.img '.why.code == "E_SIZE" and (.why.message | test("4096"))'
	check "but others" has a.img '.store != null'
	check "another store beside it" large --to "$new"
	check "takes it" has small.img ".store == \"$new\""
	rm "$old/small.img"
	umount "$dir/large"
else
	skip "larger sectors" "no such loop devices here"
fi
[ -z "$loop" ] || losetup -d "$loop"
loop=

# Disks that are served

truncate -s 8M "$old/served.img"
check "a disk is served" serve served "$old/served.img"
check "it goes" goes served.img
exec {fd}<>"$old/served.img"
check "a second writer beside its process: it stays" stays served.img E_LOCKED "writes to it, beside"
exec {fd}>&-
exec {fd}<"$old/served.img"
check "who reads is none" goes served.img
exec {fd}>&-
truncate -s 9M "$old/served.img"
check "its file is not as long as the disk: it stays" stays served.img E_SIZE "the file has 9437184"
truncate -s 8M "$old/served.img"
check "again it goes" goes served.img
unserve served
check "not served: it stays" stays served.img E_OWNED "not served"
serve served "$old/served.img"

# What running machines have

drives=()
a_drive() { # NAME FORMAT FILE FILE-OPTIONS NODE-OPTIONS DEVICE-OPTIONS
	drives+=(-blockdev "driver=file,node-name=$1-file,filename=$3$4" -blockdev
		"driver=$2,node-name=$1-node,file=$1-file$5" -device "virtio-blk-pci,id=$1,drive=$1-node${6:-}")
}
truncate -s 8M "$old"/{vm,ro,unsafe,throwaway,share,job}.img
qemu-img create -q -f qcow2 "$old/vmbase.qcow2" 8M
qemu-img create -q -f qcow2 -b "$old/vmbase.qcow2" -F qcow2 "$old/vmclone.qcow2"
a_drive vm raw "$old/vm.img" '' ''
a_drive ro raw "$old/ro.img" ,read-only=on ,read-only=on
a_drive unsafe raw "$old/unsafe.img" ,cache.no-flush=on ,cache.no-flush=on
a_drive vmclone qcow2 "$old/vmclone.qcow2" '' ''
a_drive share raw "$old/share.img" '' '' ,share-rw=on
a_drive job raw "$old/job.img" '' ''
drives+=(-drive "if=none,id=throwaway,format=raw,snapshot=on,file=$old/throwaway.img" -device virtio-blk-pci,drive=throwaway
	-blockdev driver=null-co,node-name=n1,size=8388608)
check "a QEMU" qemu_idle "${drives[@]}"
log=$dir/daemon.log spawn "$BUILD/blockmirrord"
check "a daemon" wait_for 10 "$bm" machine list
check "a machine that nobody has told of: its image stays" stays vm.img E_LOCKED "qemu.*machine add"
check "it is told of" "$bm" machine add vm --qmp "$dir/qmp"
check "its image goes" goes vm.img
check "while it runs" has vm.img '.kind == "qemu" and (.note | test("machine vm"))'
check "a drive that is read-only stays" stays ro.img E_ACCESS "read-only"
check "one whose flushes end in QEMU's cache stays" stays unsafe.img E_UNSUPPORTED "cache=unsafe"
check "one that does not keep what is written stays" stays throwaway.img E_UNSUPPORTED "snapshot=on"
check "an overlay in use stays" stays vmclone.qcow2 E_LINKED "it is in use" --flatten
check "and what shows through" stays vmbase.qcow2 E_LINKED "shows through it"
check "a job in QEMU" monitor blockdev-backup '{"job-id":"j","device":"job-node","target":"n1","sync":"full","speed":1}'
check "has the drive stay" stays job.img E_BUSY "block job"
check "without it" monitor block-job-cancel '{"device":"j","force":true}'
check "it goes" wait_for 5 goes job.img
check "an image that may be shared goes" goes share.img
first=$qemu
rm -f "$dir/own2"
spawn qemu-system-x86_64 -machine pc,accel=tcg -m 32 -nodefaults -display none -S -qmp "unix:$dir/own2,server=on,wait=off" \
	-blockdev "driver=file,node-name=f,filename=$old/share.img" -blockdev driver=raw,node-name=n,file=f -device virtio-blk-pci,drive=n,share-rw=on
second=$pid
check "once another machine writes to it, too" wait_for 10 stays share.img E_LOCKED "beside who serves it"
stop "$second"
log=$dir/hold spawn tests/system/qmp.py --hold "$dir/qmp"
check "a machine whose monitor is taken" wait_for 5 grep -q taken "$dir/hold"
check "is named where its image stays" stays vm.img E_LOCKED "could not be asked"
stop "$pid"
check "then it goes" wait_for 5 goes vm.img
qemu=$first
stop "$qemu"

# Clones

random "$old/base.raw" 2
truncate -s 8M "$old/base.raw"
qemu-img create -q -f qcow2 -b base.raw -F raw "$old/mid.qcow2"
qemu-io -f qcow2 -c 'write -q -P 7 4M 1M' "$old/mid.qcow2"
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 "$old/top.qcow2"
qemu-io -f qcow2 -c 'write -q -P 9 64k 64k' "$old/top.qcow2"
qemu-img create -q -f qcow2 "$old/snap.qcow2" 8M
qemu-img snapshot -c one "$old/snap.qcow2"
check "a clone stays" stays top.qcow2 E_LINKED "--flatten"
check "so does what it shows" stays base.raw E_LINKED "shows through"
check "an image with snapshots goes" goes snap.qcow2
check "with them" has snap.qcow2 '.note | test("1 snapshots")'
check "made whole, a clone goes" goes top.qcow2 --flatten
check "what shows through it, too" has base.raw '.why == null'
qemu-img snapshot -c one "$old/top.qcow2"
check "one with snapshots of its own would lose them: it stays" stays top.qcow2 E_LINKED "would lose" --flatten
check "and so does all below" stays base.raw E_LINKED "shows through mid.qcow2" --flatten
qemu-img snapshot -d one "$old/top.qcow2"
for name in top mid base; do
	[ $name = base ] && format=raw file=base.raw || format=qcow2 file=$name.qcow2
	qemu-img convert -f "$format" -O raw "$old/$file" "$dir/$name.content"
done
check "all of them move" all_move
check "empty, verified" grep -q "$old is empty, verified" "$dir/summary"
check "every disk is in the summary" test "$(grep -c ' moved to .*compared' "$dir/summary")" -eq "$(find "$new" -type f | wc -l)"
check "a clone is one image now" test "$(qemu-img info --output=json "$new/top.qcow2" | jq -r '."backing-filename" // "none"')" = none
for name in top mid; do
	check "$name has what it showed" qemu-img compare -q -f qcow2 -F raw "$new/$name.qcow2" "$dir/$name.content"
done
check "so has the base" cmp "$new/base.raw" "$dir/base.content"
check "the snapshot came along" grep -q one <(qemu-img snapshot -l "$new/snap.qcow2")
check "nothing is left over" test -z "$(find "$new" -name '.*')"
