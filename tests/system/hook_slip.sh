#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The home-made manager asks, by "hook relocate" with qmp and drive, for the disk of a running QEMU to
# be moved, without a daemon: with an id that it repeats, killing what carries it out on the way. QEMU
# has its file at the new place afterwards, once.
# shellcheck source-path=SCRIPTDIR source=slip.bash
. "$(dirname "$0")/slip.bash"
# shellcheck source-path=SCRIPTDIR source=hook.bash
. "$(dirname "$0")/hook.bash"

have jq getfattr qemu-system-x86_64 qemu-img qemu-io || { skip "hook relocate under QEMU" "QEMU, jq, attr"; exit; }
mkdir "$dir/a" "$dir/b"
a=$dir/a/disk.img b=$dir/b/disk.img
truncate -s 64M "$a"
dd if=/dev/urandom of="$a" bs=1M count=24 seek=8 conv=notrunc status=none
cp "$a" "$dir/original"
install_hook 10-manager

of_qemu() { # ID TARGET [OPTIONS [MORE]]
	echo "{\"id\":\"$1\",\"qmp\":\"$dir/qmp\",\"drive\":\"vd0\",\"target\":\"$2\",\"options\":${3:-{\}}${4:-}}"
}
# calls: of ours, not of another test that runs beside; they know our folders.
calls() {
	local p
	for p in $(pgrep -f "^$bm hook relocate"); do
		! grep -qF "$BLOCKMIRROR_STATE_DIR" "/proc/$p/environ" 2>>"$dir/log" || echo "$p"
	done
}
# runner: the process that carries a request out, which has its lock.
runner() { calls | head -n 1; }
copies() { asks running "$1" && [ "$(answer .copied)" != null ]; }

check "a QEMU with a plain file" qemu_idle -device virtio-blk-pci,id=vd0,drive=disk0 \
	-blockdev "driver=file,node-name=f0,filename=$a" -blockdev driver=raw,node-name=disk0,file=f0
slow=$(of_qemu q-1 "$b" '{"rate":"512K"}')
check "its disk is asked for" under_way "$slow"
check "asked again it is on its way" wait_for 60 copies "$slow"
check_fails "another content is refused" 3 E_ID_REUSED ask "$(of_qemu q-1 "$dir/b/other.img")"
check "the manager's program was asked" test "$(heard_of '.[0] | "\(.event) \(.request)"')" = "before-relocate q-1"
killed=$(runner)
kill -KILL "$killed"
check "what carries it out is killed" wait_for 5 lib_gone "$killed"
check "asked again, another one goes on" under_way "$slow"
check "it is another one" test "$(runner)" != "$killed"
killed=$(pgrep -f "blockmirror-disk.*$dir/run" | head -n 1)
kill -KILL "$killed"
check "the disk's process is killed" wait_for 5 lib_gone "$killed"
name=$(answer .job)
check "it is started again; it need not be slow any more" wait_for 20 "$bm" job set "${name%.*}" --rate 0
check "waited for, it is done" is_done "$(of_qemu q-1 "$b" '{"rate":"512K"}' ',"wait":true')"
check "QEMU has the file at its new place" qemu_has "$b"
check "with what was in it" qemu-img compare -U -f raw -F raw "$dir/original" "$b"
check "nothing is left of us" nothing_left
check "asked again it is done" is_done "$slow"
check "and by the id" is_done '{"id":"q-1"}'
check "it was switched over once" test "$(times after-switch)" = 1
check "and its end was told before all was removed" test "$(heard_of '.[-1] | "\(.event) \(.result)"')" = "after-relocate done"

check "another one" under_way "$(of_qemu q-2 "$a" '{"rate":"1M","overwrite":true}')"
check "is given up by its id" asks cancelled '{"id":"q-2","cancel":true}'
check "QEMU has its file where it was" qemu_has "$b"
check "nothing is left" nothing_left
check_fails "asked again it is not begun" 1 '"cancelled"' ask "$(of_qemu q-2 "$a" '{"rate":"1M","overwrite":true}')"

order before-switch 'echo "the rack is being moved" >&2; exit 1'
check_fails "a hook says no to the switch" 1 'E_HOOK.*the rack is being moved' \
	ask "$(of_qemu q-3 "$dir/a/third.img" '{}' ',"wait":true')"
check "then QEMU has its file where it was" qemu_has "$b"
check "nothing is left, nor of the target" test ! -e "$dir/a/third.img"
free
check_fails "what is refused" 3 '"refused".*E_EXISTS' ask "$(of_qemu q-4 "$a" '{}' ',"wait":true')"
check "the id is free then" is_done "$(of_qemu q-4 "$a" '{"overwrite":true}' ',"wait":true')"
check "QEMU has it" qemu_has "$a"
check_fails "options of disks that stay ours" 2 "undo_window does not go with qmp" ask "$(of_qemu q-5 /x '{"undo_window":"1m"}')"
check_fails "no such QEMU" 4 E_NOT_FOUND ask '{"id":"q-6","qmp":"/no/qmp","drive":"d","target":"/x"}'

# Whatever the runner was at when it was killed.
on=$a
for i in 1 2 3 4; do
	[ "$on" = "$a" ] && on=$b || on=$a
	r=$(of_qemu "kill-$i" "$on" '{"overwrite":true,"rate":"48M"}' ',"wait":true')
	"$bm" hook relocate <<<"$r" >/dev/null &
	call=$!
	sleep "0.$(printf %03d $((RANDOM % 1000)))"
	killed=$(calls)
	# shellcheck disable=SC2086
	kill -KILL $killed
	wait "$call" 2>/dev/null
	check "all calls are killed, and the same asked for" is_done "$r"
	check "QEMU has it at the new place" qemu_has "$on"
	check "it was switched over once" test \
		"$(heard_of "[.[] | select(.event == \"after-switch\" and .request == \"kill-$i\") | .event_id] | unique | length")" = 1
done
check "nothing is left" nothing_left
check "the disk is what it was" qemu-img compare -U -f raw -F raw "$dir/original" "$on"
stop "$qemu"
check "when the machine has ended, it is known still" is_done "$slow"
