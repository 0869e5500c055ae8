#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# While a disk is slipped under a running QEMU, moved and handed back, somebody is killed at every
# step: the command, the disk's process, QEMU. The command is stopped (strace) when it is about to
# send its k-th message to either, or to change its k-th file; the victim is killed there. What is
# then run again, "relocate" or "hand-back", leaves QEMU on one image, with all that its guest wrote,
# and nothing of ours. Without LONG=1 (make
# check-long) some of the steps are taken by chance.
# shellcheck source-path=SCRIPTDIR source=../system/slip.bash
. "$(dirname "$0")/../system/slip.bash"

have jq strace qemu-system-x86_64 qemu-io || { skip "deaths" "strace, QEMU, jq"; exit; }
# Messages go by sendto. Each call is counted by itself.
calls='sendto rename unlink removexattr rmdir'
image='' pattern=0

drives() {
	echo "-device virtio-blk-pci,id=vd0,drive=disk0
		-blockdev driver=file,node-name=f0,filename=$1,discard=unmap
		-blockdev driver=$2,node-name=disk0,file=f0"
}
where() { monitor query-named-block-nodes '{"flat":true}' | jq -r '.[] | select(."node-name" == "disk0").file'; }

# hmp LINE
hmp() { monitor human-monitor-command "$(jq -n --arg c "$1" '{"command-line":$c}')"; }

# stop_at CALL K COMMAND…: COMMAND, in the background, until it is about to do that call for the K-th
# time, and stops there ($pid is strace's, $traced its own); fails when it does so less often.
stop_at() {
	local call=$1 k=$2 tracer
	shift 2
	rm -f "$dir/trace" "$dir/command"
	log=$dir/command spawn strace -q -o "$dir/trace" -e "trace=$call" -e "inject=$call:signal=STOP:when=$k" "$@"
	tracer=$pid
	wait_for 60 stopped_or_gone "$tracer"
	! lib_gone "$tracer" || return 1
	pid=$tracer
	traced=$(child_of "$tracer")
}
child_of() { cut -d ' ' -f 1 "/proc/$1/task/$1/children" 2>/dev/null; }
stopped_or_gone() { lib_gone "$1" || grep -q "stopped by SIGSTOP" "$dir/trace" 2>/dev/null; }
disk_process() { pgrep -f "blockmirror-disk --name.*$dir"; }

# die VICTIM: and the rest goes on, or has ended.
die() {
	local disk
	case $1 in
	command) kill -KILL "$traced" ;;
	disk)
		disk=$(disk_process) && kill -KILL "$disk"
		kill -CONT "$traced"
		;;
	qemu)
		kill9 "$qemu"
		kill -CONT "$traced"
		;;
	esac
	wait_for 90 lib_gone "$pid" || { echo "the command does not end"; cat "$dir/command"; return 1; }
	wait "$pid"
	echo "[$1 died; the command ended with $?]"
	lib_forget "$pid"
}

# again COMMAND…: after a death it says what is so, or completes it.
again() {
	"$@" >"$dir/again" 2>&1
	local status=$?
	cat "$dir/again"
	[ $status -eq 0 ] || grep -q "E_NOT_FOUND.*nothing to hand back" "$dir/again"
}
hand_back() { "$bm" hand-back --qmp "$dir/qmp" --drive vd0; }

# A running machine, whose guest writes all the time. Its disk goes to and fro between two folders.
survive() { # VICTIM CALL K
	local from to
	from=$(dirname "$(where)") to=$dir/b
	[ "$from" = "$dir/a" ] || to=$dir/a
	stop_at "$2" "$3" "$bm" relocate --qmp "$dir/qmp" --drive vd0 "$to" --overwrite || return 2
	die "$1" || return
	if ((RANDOM % 2)) || [ "$1" = disk ]; then
		again slip "$to" --overwrite || grep -q E_SAME "$dir/again" || return 1
	else
		again hand_back || { grep -q "is being moved" "$dir/again" &&
			"$bm" job cancel "$(sed -n 's/.*(job \(.*\)\.[0-9]*).*/\1/p' "$dir/again")" >/dev/null 2>&1
			again hand_back; } || return
	fi
	# The last two steps of the command: an empty folder is nobody's.
	find "$states" -mindepth 1 -type d -empty -delete
	nothing_left && image=$(where) && locked "$image" >/dev/null && goes_on 20 10
}

# A machine that ends: the image that "hand-back" names has what was written.
end_with() { # VICTIM CALL K
	pattern=$((pattern % 250 + 1))
	rm -f "$dir"/[ab]/*
	truncate -s 8M "$dir/a/idle.img"
	# shellcheck disable=SC2046
	qemu_idle $(drives "$dir/a/idle.img" raw) || return
	hmp "qemu-io disk0 \"write -P $pattern 1M 1M\"" >/dev/null
	stop_at "$2" "$3" "$bm" relocate --qmp "$dir/qmp" --drive vd0 "$dir/b" || return 2
	die qemu || return
	again hand_back || grep -qE "E_NOT_FOUND|E_UNREACHABLE" "$dir/again" || return # nothing was begun
	find "$states" -mindepth 1 -type d -empty -delete
	nothing_left || return
	image=$dir/a/idle.img
	[ "$(mark "$image")" != retired ] || image=$dir/b/idle.img
	grep -q "the disk is on" "$dir/again" && image=$(sed -n 's/.*the disk is on //p' "$dir/again")
	qemu-io -r -f raw -c "read -P $pattern 1M 1M" "$image" | grep -v "Pattern verification failed"
}

# steps WHAT VICTIM: at each of them, or at some.
steps() {
	local call k status tried=0 seen=0
	for call in $calls; do
		seen=0
		for ((k = 1; k < 100; k++)); do
			[ -n "${LONG:-}" ] || ((RANDOM % 10 == 0)) || continue
			"$1" "$2" "$call" $k >"$dir/told" 2>&1
			status=$?
			[ $status -ne 2 ] || break # it does so less often
			tried=$((tried + 1)) seen=$k
			[ $status -ne 0 ] || continue
			cat "$dir/command" "$dir/told" >"$dir/bad"
			not_ok "$2 dies at $call $k" "$dir/bad"
			return
		done
		echo "# $call: up to $seen"
	done
	check "$2 has died at $tried steps" test $tried -gt 0
}

mkdir "$dir/a" "$dir/b"
steps end_with qemu
rm -f "$dir"/[ab]/*
if have busybox && fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1; then
	truncate -s 64M "$dir/a/disk.img"
	# shellcheck disable=SC2046
	GUEST_LOAD=512 check "a guest" boot $(drives "$dir/a/disk.img" raw)
	for victim in command disk; do steps survive $victim; done
	image=$(where)
	check "the guest ends in good order" end_guest
	check "no record is lost, and the guest saw no error" kept "$image"
else
	skip "a guest" "no kernel: $(tail -n 1 "$dir/out")"
fi
