#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Outbound hooks: what they are told, when, and what becomes of a step that they refuse; under load.
# hooks_fail.sh has those that fail.
# shellcheck source-path=SCRIPTDIR source=hook.bash
. "$(dirname "$0")/hook.bash"

have jq nbdkit qemu-img || { skip "hooks" "jq, nbdkit, qemu-utils"; exit; }
a=$dir/a.img b=$dir/b.img
all_events="before-relocate before-switch after-switch after-relocate"
truncate -s $image_size "$a"
dd if=/dev/urandom of="$a" bs=1M count=16 seek=68 conv=notrunc status=none
quick=(--guest-latency off --overwrite)

start_daemon --hook-timeout 30s
serve disk "$a"
moves() { "$bm" relocate disk "$1" "${quick[@]}" "${@:2}"; }
not() { ! "$@"; }

# The environment of an event and what it had on standard input say the same.
same_facts() {
	local key value
	while IFS=$'\t' read -r key value; do
		grep -qxF "BLOCKMIRROR_${key^^}=$value" "$dir/environment.$1" || { echo "$key is not $value"; return 1; }
	done < <(heard_of "[.[] | select(.event == \"$1\")][-1] | to_entries[] | select(.key != \"started\") | [.key, .value] | @tsv")
	# jq takes numbers for floating ones.
	grep -qF "\"started\":$(sed -n 's/^BLOCKMIRROR_STARTED=//p' "$dir/environment.$1")," "$heard"
}

telling() {
	check "without a hook a disk moves" moves "$b"
	check "and nothing is noted" test ! -e "$BLOCKMIRROR_STATE_DIR/disks/disk/told"
	install_hook 10-manager
	echo "not a hook" >"$dir/hooks/README"
	install_hook "20-old~"
	check "with one it moves, too" moves "$a"
	check "what happens is told, in order" wait_for 20 told "$all_events"
	check "source and target" test "$(heard_of '.[3] | "\(.source) \(.target)"')" = "$b $a"
	check "the result" test "$(heard_of '.[3] | "\(.job) \(.result)"')" = "disk.2 done"
	check "the way of the switch" test "$(heard_of '.[2].direction')" = forward
	check "the generation, which has grown" test "$(heard_of '.[3].generation > .[0].generation')" = true
	check "the disk's identity" test "$(heard_of 'map(.disk_id) | unique[0]')" = "$(show disk .disk)"
	check "the environment says the same" same_facts after-relocate
	check "and nothing else of ours" not grep -v '^BLOCKMIRROR_[A-Z_]*=' "$dir/environment.after-relocate"
}

# While a hook takes its time, the guest's requests do not wait, and are mirrored: one that did would
# take as long as the hook. On a machine that is busy others take their time, too: so 2 s and more.
waiting() {
	local before since held
	forget_heard
	hold before-switch
	start_load disk --initial any
	log=$dir/move.out spawn moves "$b"
	check "a hook takes its time before the switch" wait_for 60 phase_is disk in-sync
	check "the job says that it is asked" wait_for 10 job_is disk .asking before-switch
	since=${EPOCHREALTIME/./}
	before=$(job disk .progress.mirrored_writes)
	sleep 2
	check "meanwhile writes are mirrored" test "$(job disk .progress.mirrored_writes)" -gt "$before"
	held=$(((${EPOCHREALTIME/./} - since) / 1000))
	go
	check "it ends" wait "$pid"
	lib_forget "$pid"
	check "and the disk is there" disk_is_on "$b"
	check "the guest has noticed nothing" end_load
	check "no request took as long as the hook" json_is "$report" ".longest_request.ms < $held"
	check "the target has all of it" image_fits "$b"
}

refusing() {
	forget_heard
	order before-relocate 'echo "storage is being serviced" >&2; echo more >&2; exit 1'
	check_fails "it may not move" 3 'E_HOOK.*10-manager says no to before-relocate \(exit status 1\): storage is being serviced$' \
		moves "$dir/c.img"
	check "nothing has been changed" test ! -e "$dir/c.img"
	check "who was asked hears that nothing came of it" wait_for 20 told "before-relocate after-relocate"
	check "since it was refused" test "$(heard_of '.[1] | "\(.result) \(.error_code)"')" = "refused E_HOOK"
	free
	order before-switch "exit 2"
	check_fails "it may not switch" 3 "E_HOOK.*no to before-switch.*" moves "$dir/c.img"
	check "it stays where it is" disk_is_on "$b"
	check "in sync, and mirrored" phase_is disk in-sync
	check "it may be asked for again" test "$(job disk .held.code)" = E_HOOK
	check_fails "which is refused again" 3 E_HOOK "$bm" switch disk
	free
	check "or granted" "$bm" switch disk
	check "then it has moved" disk_is_on "$dir/c.img"
}

# The window in which a move can be undone, its end, and the way back.
releasing() {
	forget_heard
	order before-release "exit 1"
	check "it moves, and can be undone for a while" moves "$b" --undo-window 1s
	check_fails "the source may not be let go of" 3 "E_HOOK.*before-release" "$bm" release disk
	sleep 1.2
	check "nor when the time is over" phase_is disk undo-window
	free
	check "then it may" "$bm" release disk
	check "all is told" wait_for 20 ended_with "after-release after-relocate"
	forget_heard
	check "it moves" moves "$a" --undo-window 5m
	# shellcheck disable=SC2016 # for the hook's shell
	order before-switch 'case $BLOCKMIRROR_DIRECTION in back) exit 1;; esac'
	check_fails "it may not go back" 3 "E_HOOK.*before-switch" "$bm" undo disk
	free
	check "it may" "$bm" undo disk
	check "which is told as a switch" wait_for 20 ended_with "before-switch before-switch after-switch after-relocate"
	check "the other way round" test "$(heard_of '[.[] | select(.event == "after-switch") | .direction] | join(" ")')" = "forward back"
	check "the result is told" test "$(heard_of '.[-1].result')" = undone
	check "it is back" disk_is_on "$b"
}
ended_with() { [[ "$(events)" = *"$1" ]] || { events; return 1; }; }

telling
waiting
refusing
releasing
check "the disk is stopped in the end" wait_for 5 "$bm" stop disk
