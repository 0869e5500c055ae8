#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A home-made manager has a disk moved, under load, by "hook relocate" alone: with an id that it
# repeats, while its own calls, the disk's process and the daemon are killed. Each id moves the disk
# once, which it knows from what its hook was told. hook_refused.sh has what is refused. LONG=1: they
# are killed at more moments, which chance chooses.
# shellcheck source-path=SCRIPTDIR source=hook.bash
. "$(dirname "$0")/hook.bash"

have jq qemu-img nbdkit || { skip "hook relocate" "jq, qemu-utils, nbdkit"; exit; }
a=$dir/a/disk.img b=$dir/b/disk.img
mkdir -p "$dir/b"
install_hook 10-manager
start_daemon --hook-timeout 10s
make_image "$a"
serve disk "$a"
known=$(show disk .pid)

on_its_way() { asks running "$1"; }
same_job() { [ "$(answer .job)" = "$1" ] || { answer .; return 1; }; }
is_new_process() { local now; now=$(show disk .pid 2>/dev/null) && [ -n "$now" ] && [ "$now" != "$known" ]; }
many() { # JSON: eight calls at once; their answers are one
	ask_at_once "$1"
	[ "$(jq -s '[.[] | .job] | unique | length' "$dir"/many.?)" = 1 ] &&
		[ "$(jq -rs '[.[] | .state] | unique | join(" ")' "$dir"/many.?)" = "$2" ]
}

# lost_half_way JSON: the disk's process takes the connection, and dies before it answers.
lost_half_way() {
	local call status victim
	victim=$(show disk .pid)
	kill -STOP "$victim"
	"$bm" hook relocate <<<"$1" >"$dir/answer" &
	call=$!
	wait_for 10 is_connected disk || { kill "$call"; kill -CONT "$victim"; return 1; }
	kill -KILL "$victim"
	lib_forget "$victim"
	wait "$call"
	status=$?
	cat "$dir/answer"
	return $status
}
# It is in the queue of those that nobody has accepted yet; or has been.
is_connected() { grep -q " 0[23] *[0-9]* $BLOCKMIRROR_RUN_DIR/disks/$1.sock\$" /proc/net/unix; }
loses_sight() { lost_half_way "$1" && [ "$(answer .state)" = "$2" ]; }

moving() {
	local slow
	slow=$(request move-1 "$b" '{"rate":"1M","guest_latency":"off"}')
	start_load disk --initial any --reconnect 30
	check "it is asked for" ask "$slow"
	check "a job is on its way" wait_for 60 on_its_way "$slow"
	check "by its name" same_job disk.1
	check "asked again, in other words, it is the same" \
		ask "{\"options\":{\"guest_latency\":\"off\",\"verify\":false,\"rate\":1048576},\"target\":\"$b\",\"disk\":\"disk\",\"id\":\"move-1\"}"
	check "with the same job" same_job disk.1
	check "eight calls at once have one answer" many "$slow" running
	check "by the id alone it is told of" asks running '{"id":"move-1"}'
	check_fails "with another content it is refused" 3 E_ID_REUSED ask "$(request move-1 "$dir/c.img")"
	"$bm" hook relocate <<<"$(request move-1 "$b" '{"rate":"1M","guest_latency":"off"}' ',"wait":true')" \
		>"$dir/killed" &
	sleep 0.2
	kill -KILL $!
	wait $! 2>/dev/null
	check "who waited is killed, and has said nothing" test ! -s "$dir/killed"
	kill9 "$daemon"
	check "the daemon is killed; asked again it goes on" asks running "$slow"
	check "then the disk's process is, when it is just asked; that it runs is known from its files" \
		loses_sight "$slow" running
	check "it is told again, when nobody is there" asks running "$slow"
	start_daemon --hook-timeout 10s
	check "the daemon comes again, and starts the disk" wait_for 10 is_new_process
	check "it need not be slow any more" wait_for 10 "$bm" job set disk --rate 0
	check "asked again, and waited for, it is done" is_done \
		"$(request move-1 "$b" '{"rate":"1M","guest_latency":"off"}' ',"wait":true')"
	check "by the same job" same_job disk.1
	check "the guest has noticed nothing" end_load
	check "the disk is on the target" disk_is_on "$b"
	check "which has what the guest wrote" image_fits "$b"
	check "it has moved once" test "$(times after-switch)" = 1
	check "the hook was told by which request" test "$(heard_of 'map(.request) | unique | join(" ")')" = move-1
}

# The disk goes back, and the old request is asked for again.
remembering() {
	check "another id takes it back" is_done "$(request move-2 "$a" '{"overwrite":true}' ',"wait":true')"
	check "the first one is asked for again: it is done" is_done "$(request move-1 "$b" '{"rate":"1M","guest_latency":"off"}')"
	check "and not done again" disk_is_on "$a"
	rm "$BLOCKMIRROR_STATE_DIR"/requests/*
	check "nor when what ids stand for is lost" is_done "$(request move-1 "$b" '{"rate":"1M","guest_latency":"off"}')"
	rm "$BLOCKMIRROR_STATE_DIR"/requests/*
	check_fails "the disk knows another content, too" 3 E_ID_REUSED ask "$(request move-1 "$dir/c.img")"
	known=$(show disk .pid)
	kill_disk disk
	check "the disk's process is killed" wait_for 10 is_new_process
	check "the next one knows it, too" is_done "$(request move-1 "$b" '{"rate":"1M","guest_latency":"off"}')"
	check "eight calls at once, of a new one, that wait" many \
		"$(request move-3 "$b" '{"overwrite":true}' ',"wait":true')" "done"
	check "it has moved three times in all" test "$(times after-switch)" = 3
}

# at_once ID TARGET VICTIM: the call, or the disk's process, is killed somewhere on the way.
at_once() {
	local call r
	r=$(request "$1" "$2" '{"overwrite":true,"guest_latency":"off"}' ',"wait":true')
	known=$(show disk .pid)
	"$bm" hook relocate <<<"$r" >/dev/null &
	call=$!
	sleep "0.$(printf %03d $((RANDOM % 250)))"
	if [ "$3" = call ]; then kill -KILL "$call"; else kill -KILL "$known"; fi
	wait "$call" 2>/dev/null
	is_done "$r" && disk_is_on "$2"
}
killing() {
	local i victim before kills=${LONG:+12}
	kills=${kills:-2}
	before=$(times after-switch)
	for ((i = 1; i <= kills; i++)); do
		victim=$([ $((i / 2 % 2)) = 1 ] && echo process || echo call)
		check "the $victim is killed, and the same asked for" \
			at_once "kill-$i" "$([ $((i % 2)) = 1 ] && echo "$a" || echo "$b")" "$victim"
	done
	check "the process is killed when it was asked, and not heard: who waits is told the end" \
		loses_sight "$(request kill-last "$a" '{"overwrite":true,"guest_latency":"off"}' ',"wait":true')" "done"
	check "then the disk is there" disk_is_on "$a"
	check "as many moves as ids" test "$(($(times after-switch) - before))" = $((kills + 1))
}

cancelling() {
	local on
	on=$(show disk .uri)
	check "one is asked for" ask "$(request no-1 "$dir/c.img" '{"rate":"1M"}')"
	check "and given up, by its id" asks cancelled '{"id":"no-1","cancel":true}'
	check "that is said again" asks cancelled '{"id":"no-1","cancel":true}'
	check_fails "asked for again, it is not begun" 1 '"cancelled"' ask "$(request no-1 "$dir/c.img" '{"rate":"1M"}')"
	check "the disk is where it was" disk_is_on "$on"
	check "nothing is left of it" test ! -e "$dir/c.img"
	check_fails "what is done is not given up" 3 '"done"' ask '{"id":"move-3","cancel":true}'
	check_fails "nor what nobody knows" 4 E_NOT_FOUND ask '{"id":"no-2","cancel":true}'
	check "a switch by hand: it waits in sync" asks running "$(request hand-1 "$dir/c.img" '{"manual":true}' ',"wait":true')"
	check "and says so" test "$(answer .phase)" = in-sync
	check "by the id it is told to" is_done '{"id":"hand-1","switch":true,"wait":true}'
	check "then the disk is there" disk_is_on "$dir/c.img"
}

moving
remembering
killing
cancelling
check "the disk is stopped in the end" wait_for 5 "$bm" stop disk
