# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of what is slipped under a running QEMU: disk.bash, and QEMUs with and without a
# guest. Each has two monitors: $dir/qmp is for the product, $dir/own for the test.
# shellcheck disable=SC2034
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "${BASH_SOURCE[0]}")/disk.bash"

cache=${GUEST:-$BUILD/guest} console=$dir/console records=$BUILD/fixtures/records qemu=''
states=$BLOCKMIRROR_STATE_DIR/disks

# encrypting COMMAND…: QEMU measures the processor before it chooses a key's rounds, and gives up where
# that is too busy ("Unable to get accurate CPU usage").
encrypting() {
	local tries
	for tries in 1 2 3 4 5 6 7 8 9 10; do
		"$@" && return
		echo "try $tries"
		sleep 0.5
	done
	return 1
}

monitor() { tests/system/qmp.py "$dir/own" "$@"; }

# qemu_idle ARGUMENT…: a QEMU whose machine does not run; it is $qemu.
qemu_idle() {
	rm -f "$dir/qmp" "$dir/own"
	spawn qemu-system-x86_64 -machine pc,accel=tcg -m 32 -nodefaults -display none -S \
		-qmp "unix:$dir/qmp,server=on,wait=off" -qmp "unix:$dir/own,server=on,wait=off" "$@"
	qemu=$pid
	wait_for 60 qemu_answers && ! lib_gone "$qemu" || { tail -n 3 "$dir/log"; return 1; }
}
qemu_answers() { lib_gone "$qemu" || [ -S "$dir/own" ] && monitor query-status >/dev/null 2>&1; }

# boot ARGUMENT…: a QEMU with the guest that writes records; fd 7 is its keyboard. On a machine that is
# busy the kernel's look at the timer finds none, and it panics: no_timer_check.
boot() {
	[ -p "$dir/keyboard" ] || mkfifo "$dir/keyboard"
	exec 7<>"$dir/keyboard"
	rm -f "$dir/qmp" "$dir/own"
	: >"$console"
	# shellcheck disable=SC2016
	spawn bash -c 'exec "$@" <"$0"' "$dir/keyboard" \
		qemu-system-x86_64 -machine pc,accel=tcg -cpu max -smp 1 -m 256 -nodefaults -no-reboot \
		-display none -kernel "$cache/vmlinuz" -initrd "$cache/initrd.gz" \
		-append "console=ttyS0 quiet panic=-1 no_timer_check load=${GUEST_LOAD:-2048}" \
		-chardev "stdio,id=console,signal=off,logfile=$console,logappend=on" -serial chardev:console \
		-qmp "unix:$dir/qmp,server=on,wait=off" -qmp "unix:$dir/own,server=on,wait=off" "$@"
	qemu=$pid
	wait_for 240 ticked_or_gone 50 && ! lib_gone "$qemu" || { tail -n 3 "$dir/log" "$console"; return 1; }
}
ticked_or_gone() { lib_gone "$qemu" || ticked "$1"; }
ticks() { grep -c ^TICK "$console"; }
ticked() { [ "$(ticks)" -ge "$1" ]; }
goes_on() { wait_for "${1:-30}" ticked $(($(ticks) + ${2:-8})); }
end_guest() {
	echo stop >&7
	wait_for 30 lib_gone "$qemu" && lib_forget "$qemu" && wait "$qemu"
	grep -q "GUEST STOPPED" "$console"
}
# kept IMAGE: a raw image has every record that was ticked, and the guest saw no error.
kept() { "$records" check "$1" "$console" && ! grep -E "^(ERROR|BAD)|I/O error" "$console"; }

# nothing_left: no record, socket or process of a disk.
nothing_left() {
	local left
	left=$(ls -A "$states" "$BLOCKMIRROR_RUN_DIR/disks" 2>/dev/null | grep -v ':$' | tr -d '\n')
	[ -z "$left" ] || { ls -lA "$states"/* "$BLOCKMIRROR_RUN_DIR/disks"; return 1; }
	! pgrep -f "blockmirror-disk.*$dir" || return 1
	lib_gone "$qemu" || { monitor query-named-block-nodes '{"flat":true}' >"$dir/nodes" &&
		! grep -oE '"node-name": "b[mp]-[^"]*"' "$dir/nodes"; }
}
has_node() { # a pattern
	monitor query-named-block-nodes '{"flat":true}' | jq -r '.[]."node-name"' | grep -qE "$1"
}
# qemu_has FILE: that is what is below the drive's format node, and the image is locked.
qemu_has() { below_is "$1" && locked "$1"; }
below_is() {
	[ "$(monitor query-named-block-nodes '{"flat":true}' |
		jq -r '[.[] | select(."node-name" == "disk0")][0].file')" = "$1" ] ||
		{ monitor query-block; return 1; }
}
# locked FILE: somebody has it open, for us and for QEMU. Where nobody has, the server would stay.
locked() {
	timeout 30 "$BUILD/blockmirror-nbd" --unix "$dir/lock.sock" "$1" >"$dir/lock" 2>&1 </dev/null
	grep E_LOCKED "$dir/lock" && ! qemu-io -f raw -c quit "$1" 2>>"$dir/lock"
}

slip() { "$bm" relocate --qmp "$dir/qmp" --drive "${drive:-vd0}" "$@"; }
