#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# While a disk is slipped under a running QEMU, moved and handed back, the QMP connection is lost, or
# QEMU refuses: once at each command, before it is carried out and after. Whatever the command says,
# the guest's disk has what it wrote, before what is run then and after it; and then QEMU is on a file,
# and nothing of ours is left. Three drives, for the three ways by which QEMU exchanges what is below.
# Without LONG=1 (make check-long) some of the commands are taken by chance, and one of the drives.
# shellcheck source-path=SCRIPTDIR source=../system/slip.bash
# shellcheck disable=SC2054 # commas are QEMU's
. "$(dirname "$0")/../system/slip.bash"

have jq qemu-system-x86_64 qemu-img || { skip "QMP that fails" "QEMU, jq"; exit; }
mkdir "$dir/a" "$dir/b"
pattern=0 proxy=''

# io DRIVE COMMAND: as the guest would.
io() {
	monitor human-monitor-command "$(jq -n --arg c "qemu-io -d $(qdev "$1") \"$2\"" '{"command-line":$c}')" |
		tee "$dir/io"
	! grep -qiE "failed|error|conflict" "$dir/io"
}
inserted() {
	monitor query-block | jq -r --arg d "$1" --arg what "$2" 'map(select(.device == $d or
		((.qdev // "") | startswith("/machine/peripheral/\($d)"))))[0] | if $what == "qdev" then .qdev
		else .inserted.file end'
}
qdev() { inserted "$1" qdev; }
image_of() { inserted "$1" file | sed 's/^json:.*"filename": *"\([^"]*\)".*/\1/'; }

start_proxy() { # MODE NUMBER
	: >"$dir/fault"
	log=$dir/fault spawn tests/system/qmp_proxy.py "$dir/via" "$dir/qmp" "$1" "$2"
	proxy=$pid
	wait_for 60 proxy_listens && [ -S "$dir/via" ]
}
proxy_listens() { lib_gone "$proxy" || [ -S "$dir/via" ]; }
via() { "$bm" "$1" --qmp "$dir/via" --drive "$drive" "${@:2}"; }
again() {
	"$@" >"$dir/again" 2>&1 && return
	grep -E "E_NOT_FOUND.*nothing to hand back|E_SAME" "$dir/again" || { cat "$dir/again"; return 1; }
}

# once MODE NUMBER: 2 when there are not so many commands.
once() {
	local from to
	from=$(dirname "$(image_of "$drive")") to=$dir/b
	[ "$from" = "$dir/a" ] || to=$dir/a
	pattern=$((pattern % 250 + 1))
	io "$drive" "write -P $pattern 1M 64k" || return
	rm -f "$dir/via"
	start_proxy "$1" "$2" || return
	timeout -k 5 120 "$bm" relocate --qmp "$dir/via" --drive "$drive" "$to" --overwrite >"$dir/first" 2>&1
	echo "[ended with $?]" >>"$dir/first"
	if [ ! -s "$dir/fault" ]; then
		stop "$proxy"
		return 2
	fi
	io "$drive" "read -P $pattern 1M 64k" && io "$drive" "write -P $pattern 2M 64k" || return
	if (($2 % 2)); then again via hand-back; else again via relocate "$to" --overwrite; fi || return
	find "$states" -mindepth 1 -type d -empty -delete
	stop "$proxy"
	nothing_left && locked "$(image_of "$drive")" >"$dir/lock.out" || return
	io "$drive" "read -P $pattern 1M 64k" && io "$drive" "read -P $pattern 2M 64k"
}

commands() { # MODE
	local k status tried=0 first=1 step=1
	[ -n "${LONG:-}" ] || first=$((1 + RANDOM % 12)) step=12
	for ((k = first; k < 200; k += step)); do
		once "$1" $k >"$dir/told" 2>&1
		status=$?
		[ $status -ne 2 ] || break
		tried=$((tried + 1))
		[ $status -ne 0 ] || continue
		{ cat "$dir/fault" "$dir/first"; echo "[then]"; cat "$dir/told"; } >"$dir/bad"
		not_ok "$drive, $1: command $k" "$dir/bad"
		return
	done
	ok "$drive, $1: $tried commands"
}

truncate -s 8M "$dir"/a/{disk,bare}.img
qemu-img create -q -f qcow2 "$dir/a/virt.qcow2" 8M
check "a QEMU" qemu_idle -blockdev "driver=file,node-name=f0,filename=$dir/a/disk.img,discard=unmap" \
	-blockdev driver=raw,node-name=disk0,file=f0 -device virtio-blk-pci,id=vd0,drive=disk0 \
	-blockdev "driver=file,node-name=bare-file,filename=$dir/a/bare.img" \
	-device virtio-blk-pci,id=bare,drive=bare-file -drive "if=virtio,file=$dir/a/virt.qcow2"
# One of each with arguments: slip_qmp.sh vd0 after.
drives=(vd0 bare virtio0)
[ -n "${LONG:-}" ] || drives=("${drives[RANDOM % 3]}")
for drive in ${1:-"${drives[@]}"}; do
	for mode in ${2:-before after refuse}; do commands "$mode"; done
done

# Nothing is asked just then: the job goes on, and QEMU has the disk back by another connection.
lost_while_it_copies() {
	local to=$dir/b job
	[ "$(dirname "$(image_of vd0)")" = "$dir/a" ] || to=$dir/a
	rm -f "$dir/via" "$to/disk.img"
	io vd0 "write -P 77 0 6M" && start_proxy never 0 || return
	log=$dir/first spawn "$bm" relocate --qmp "$dir/via" --drive vd0 "$to" --rate 2M
	job=$pid
	wait_for 30 test -e "$to/disk.img" || return
	sleep 0.5
	kill -USR1 "$proxy"
	wait_for 60 lib_gone "$job" || return
	lib_forget "$job"
	wait "$job" || { cat "$dir/first"; return 1; }
	stop "$proxy"
	nothing_left && [ "$(image_of vd0)" = "$to/disk.img" ] && io vd0 "read -P 77 0 6M"
}
check "lost while it copies: it goes on to its end" lost_while_it_copies
