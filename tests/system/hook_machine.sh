#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A home-made manager has a whole machine moved to another host, by "hook relocate" alone: with an id that
# it repeats, while its own calls, the daemon and the move's process are killed, each call also at the
# instants between its steps. Each id begins one move. The machine is a QEMU without a system in it;
# hook_relocate.sh has what goes for disks.
# shellcheck source-path=SCRIPTDIR source=plain_machine.bash
. "$(dirname "$0")/plain_machine.bash"
# shellcheck source=hook.bash
. "$(dirname "$0")/hook.bash"
hooks_b=$dir/machine-hooks

need_plain
slow='{"rate":"2M"}' call='' id=''
# It has begun, and goes no further: its window is in two hours.
later='{"window":"'$(date -d '120 minutes' +%H:%M)-$(date -d '180 minutes' +%H:%M)'"}'

# of_vm ID [OPTIONS [MORE]]: for machine vm, to host b.
of_vm() { echo "{\"id\":\"$1\",\"machine\":\"vm\",\"target\":\"host-b\",\"options\":${2:-{\}}${3:-}}"; }
# a COMMAND…: of hook.bash, on host a.
a() { on a "$@"; }
# begun: how many moves have begun on a so far.
begun() { find "$dir/a/run/moves" -name '*.log' | wc -l; }
begun_since() { [ "$(begun)" -eq $(("$1" + "$2")) ] || { begun; ls -l "$dir/a/run/moves"; return 1; }; }
waits() { asks accepted "$1" && [ "$(answer .phase)" = "waits for its window" ]; }
copies() { asks running "$1" && [ "$(answer '.copied > 0')" = true ]; }
same_move() { [ "$(answer .move)" = "$1" ] || { answer .; return 1; }; }
moves() { [ "$(bm_on a machine show vm --json | jq -r '.move.id // ""')" = "$1" ]; }
# kill_calls: of ours, not of another test that runs beside; they know our folders.
kill_calls() {
	local p
	for p in $(pgrep -f "^$bm hook relocate"); do
		! grep -qF "$dir/a/state" "/proc/$p/environ" 2>>"$dir/log" || kill -KILL "$p"
	done
	wait "$call" 2>/dev/null
}
mover_of() { pgrep -f "^blockmirror-move --move $dir/a/state/moves/$1 "; }
stays() { no_move && [ "$(on a show vm .gate)" = active ] && [ -z "$(ls "$dir/b/state/disks" 2>/dev/null)" ]; }
many() { # JSON: eight calls at once, of one move
	ask_at_once "$1"
	[ "$(jq -rs '[.[] | .state] | unique - ["accepted", "running"] | length' "$dir"/many.?)" = 0 ] &&
		[ "$(jq -rs '[.[] | .move // empty] | unique | length' "$dir"/many.?)" = 1 ]
}

# one_of_many: eight ids at once: one of them has it moved, and is in $id.
one_of_many() {
	local i pids=()
	for i in 1 2 3 4 5 6 7 8; do
		"$bm" hook relocate <<<"$(of_vm "many-$i" "$later")" >"$dir/many.$i" &
		pids+=($!)
	done
	wait "${pids[@]}"
	cat "$dir"/many.?
	id=$(jq -r 'select(.move) | .id' "$dir"/many.?)
	[ "$(jq -rs '[.[] | select(.state == "refused" and .error.code == "E_BUSY")] | length' "$dir"/many.?)" = 7 ]
}

refusing() {
	local before
	before=$(begun)
	check_fails "a machine that nobody knows" 4 '"refused".*E_NOT_FOUND' a ask '{"id":"x","machine":"other","target":"host-b"}'
	check_fails "a host that nobody knows" 4 '"refused".*E_NOT_FOUND' a ask '{"id":"x","machine":"vm","target":"host-c"}'
	check_fails "a target that is no host" 2 'bm://HOST/FOLDER' a ask '{"id":"x","machine":"vm","target":"/srv/new/"}'
	check_fails "no target" 2 'bm://HOST/FOLDER' a ask '{"id":"x","machine":"vm"}'
	check_fails "what is no name" 2 'is no name of a machine' a ask '{"id":"x","machine":"../x","target":"host-b"}'
	check_fails "a machine and a disk" 2 'one of these is wanted' a ask '{"id":"x","machine":"vm","disk":"vm","target":"host-b"}'
	check_fails "an option of disks" 2 'undo_window does not go with machine' a ask "$(of_vm x '{"undo_window":"1m"}')"
	check_fails "an option of machines, for a disk" 2 'rehearse does not go with disk' a ask "$(request x /x '{"rehearse":true}')"
	check_fails "no time to pause" 2 'pause_budget: nanoseconds, more than 0' a ask "$(of_vm x '{"pause_budget":0}')"
	check_fails "a policy without a time" 2 'policy force: after which timeout' a ask "$(of_vm x '{"policy":"force"}')"
	check_fails "shared disks without their names" 2 'shared: true, or an object' a ask "$(of_vm x '{"shared":{"disk1":5}}')"
	check_fails "a window that is none" 2 'window: times like' a ask "$(of_vm x '{"window":"night"}')"
	check_fails "what nobody asked for is not cancelled" 4 E_NOT_FOUND a ask '{"id":"x","cancel":true}'
	check "nothing of that has begun" begun_since "$before" 0
	check "nor is an id remembered" test ! -e "$dir/a/state/requests/x"
}

preflight() {
	local before
	before=$(begun)
	facts '{"page_size": 65536, "cpus": 0}'
	check_fails "the other host is none for it: that is told, with all its reasons" 3 '"refused".*65536.*E_CPU' \
		a ask "$(of_vm bad-1 '{}' ',"wait":true')"
	check "nothing has changed" wait_for 10 unchanged
	check "without wait it is taken up" a asks accepted "$(of_vm bad-1)"
	check "asked again, by the id, the refusal is told" wait_for 20 a asks refused '{"id":"bad-1"}'
	check "each was looked at once" begun_since "$before" 2
	check_fails "then the id is free" 4 E_NOT_FOUND a ask '{"id":"bad-1"}'
	facts '{}'
	check "also for something else: to look what it would take" a is_done "$(of_vm bad-1 '{"dry_run":true}' ',"wait":true')"
	json_is "$dir/answer" '.phase == "ended" and .forecast.disk_bytes >= 40 * 1048576 and .target == "bm://host-b"'
	result $? "which is told" "$dir/answer"
	check "asked again that is not done again" a is_done "$(of_vm bad-1 '{"dry_run":true}')"
	check "once each" begun_since "$before" 3
}

cancelling() {
	local before move known
	before=$(begun)
	check "it is asked for" a under_way "$(of_vm no-1 "$slow")"
	check "it is on its way" wait_for 30 a copies "$(of_vm no-1 "$slow")"
	move=$(answer .move)
	check "as the daemon has it" moves "$move"
	check "asked again, in other words, it is the same" a ask \
		'{"options":{"rate":2097152,"rehearse":false},"target":"bm://host-b/","machine":"vm","id":"no-1"}'
	check "the same move" same_move "$move"
	check "by the id alone it is told of" a asks running '{"id":"no-1"}'
	check "eight calls at once have one answer" a many "$(of_vm no-1 "$slow")"
	check_fails "with another content it is refused" 3 E_ID_REUSED a ask "$(of_vm no-1)"
	check_fails "another id has to wait" 3 '"refused".*E_BUSY' a ask "$(of_vm no-2)"
	check_fails "there is no switch by hand" 2 'switch does not go with machine' a ask '{"id":"no-1","switch":true}'
	on a "$bm" hook relocate <<<"$(of_vm no-1 "$slow" ',"wait":true')" >"$dir/killed" &
	call=$!
	sleep 0.3
	kill_calls
	check "who waited is killed, and has said nothing" test ! -s "$dir/killed"
	host_kill a
	check "the daemon is killed; asked again it goes on" a copies "$(of_vm no-1 "$slow")"
	check_fails "what is new is not begun without one" 7 '"unknown".*E_UNREACHABLE' a ask "$(of_vm no-2)"
	rm "$dir/a/state/requests/"*
	check "nor is what goes on, when what ids stand for is lost" a copies "$(of_vm no-1 "$slow")"
	check "a daemon comes again" host_start a
	rm "$dir/a/state/requests/"*
	check "then asked again it is the same" a copies "$(of_vm no-1 "$slow")"
	check "move" same_move "$move"
	check "it is given up, by its id" a asks cancelled '{"id":"no-1","cancel":true}'
	check "nothing is left of it" wait_for 10 stays
	check "that is said again" a asks cancelled '{"id":"no-1","cancel":true}'
	check_fails "asked for again, it is not begun" 1 '"cancelled"' a ask "$(of_vm no-1 "$slow")"
	check "there was one move" begun_since "$before" 1
	check "another one" wait_for 10 a under_way "$(of_vm lost-1 "$slow")"
	check "is on its way" wait_for 30 a copies "$(of_vm lost-1 "$slow")"
	known=$(mover_of "$(answer .move)")
	kill -KILL "$known"
	check_fails "its process is killed: it has failed, and says so" 1 '"failed".*E_INTERRUPTED' \
		a ask "$(of_vm lost-1 "$slow" ',"wait":true')"
	check_fails "for ever" 1 '"failed"' a ask "$(of_vm lost-1 "$slow")"
	check "once" begun_since "$before" 2
	check "the machine is where it was" wait_for 10 stays
	before=$(begun)
	check "eight ids at once: seven are refused" a one_of_many
	check "the other one is given up" a asks cancelled "{\"id\":\"$id\",\"cancel\":true}"
	check "nothing else was begun" begun_since "$before" 1
}

# Killed where it is about to do that call of the system for the K-th time; then it is asked again.
# 2: it does so less often.
killed_at() { # CALL K
	local before r
	before=$(begun)
	r=$(of_vm "kill-$1-$2" "$later")
	a strace -q -o "$dir/trace" -e "trace=$1" -e "inject=$1:signal=KILL:when=$2" "$bm" hook relocate <<<"$r" >"$dir/killed"
	grep -q "killed by SIGKILL" "$dir/trace" || {
		a asks cancelled "{\"id\":\"kill-$1-$2\",\"cancel\":true}" >"$dir/out" || return 1
		return 2
	}
	a under_way "$r" && begun_since "$before" 1 && a asks cancelled "{\"id\":\"kill-$1-$2\",\"cancel\":true}" &&
		begun_since "$before" 1
}
# The same of the daemon, when it writes the plan.
daemon_killed_at() { # K
	local before r tracer victim=${host_daemon[a]} calls=fsync,fdatasync,rename
	before=$(begun)
	r=$(of_vm "die-$1" "$later")
	spawn strace -q -f -o "$dir/trace" -e "trace=$calls" -e "inject=$calls:signal=KILL:when=$1" -p "$victim"
	tracer=$pid
	wait_for 10 is_traced "$victim" || return 1
	a ask "$r"
	if ! wait_for 1 lib_gone "$victim"; then
		stop "$tracer"
		a asks cancelled "{\"id\":\"die-$1\",\"cancel\":true}" || return 1
		return 2
	fi
	lib_forget "$victim"
	lib_forget "$tracer"
	unset "host_daemon[a]"
	# Killed behind the last step, the next daemon begins it.
	host_start a && a under_way "$r" && wait_for 10 begun_since "$before" 1 &&
		a asks cancelled "{\"id\":\"die-$1\",\"cancel\":true}" && begun_since "$before" 1
}
is_traced() { ! grep -h ^TracerPid "/proc/$1/task"/*/status | grep -qx 'TracerPid:.0'; }
killing() {
	local before call k status=0 tried=0
	have strace || { skip "each instant" "strace"; return; }
	for call in write fdatasync sendto; do
		for ((k = 1; k < 20; k++)); do
			killed_at $call $k >"$dir/told" 2>&1
			status=$?
			[ $status -eq 0 ] || break
			tried=$((tried + 1))
		done
		[ $status -eq 2 ] || { not_ok "killed at $call $k" "$dir/told"; return; }
	done
	check "killed at each of $tried steps it begins one move" test $tried -ge 5
	tried=0
	for ((k = 1; k < 20; k++)); do
		daemon_killed_at $k >"$dir/told" 2>&1
		status=$?
		[ $status -eq 0 ] || break
		tried=$((tried + 1))
	done
	[ $status -eq 2 ] || { not_ok "the daemon is killed at $k" "$dir/told"; return; }
	check "the daemon is killed at each of $tried steps of writing it down: one move" test $tried -ge 4
	before=$(begun)
	kill -STOP "${host_daemon[a]}"
	on a "$bm" hook relocate <<<"$(of_vm kill-1 "$later")" >"$dir/killed" &
	call=$!
	sleep 0.3
	kill_calls
	kill -CONT "${host_daemon[a]}"
	check "killed when the daemon has it, and has not answered: asked again" a under_way "$(of_vm kill-1 "$later")"
	check "it is one move" begun_since "$before" 1
	check "and given up" a asks cancelled '{"id":"kill-1","cancel":true}'
	before=$(begun)
	kill -STOP "${host_daemon[a]}"
	on a "$bm" hook relocate <<<"$(of_vm kill-2 "$later" ',"wait":true')" >"$dir/killed" &
	call=$!
	sleep 0.3
	host_kill a
	check "the daemon is killed instead, and comes again" host_start a
	check "who waits has it asked, and it begins" wait_for 30 a waits '{"id":"kill-2"}'
	check "it is given up, too" a asks cancelled '{"id":"kill-2","cancel":true}'
	wait "$call"
	check "which who waited is told" test "$(jq -r .state "$dir/killed")" = cancelled
	check "one move" begun_since "$before" 1
}

moving() {
	local before r move
	r=$(of_vm move-1 '{"pause_budget":"20s"}')
	before=$(begun)
	check "it is asked for" a under_way "$r"
	check "asked again, and waited for, it is done" a is_done "$(of_vm move-1 '{"pause_budget":"20s"}' ',"wait":true')"
	sed 's/^/# /' "$dir/answer"
	move=$(answer .move)
	json_is "$dir/answer" '.phase == "ended" and .pause_ns > 0 and .copied == .total and .total >= 40 * 1048576'
	result $? "with what it took" "$dir/answer"
	check "the machine is on b" test "$(bm_on a machine show vm --json | jq -r .away)" = host-b
	check "and known there" bm_on b machine show vm
	check "asked again it is done" a is_done "$r"
	check_fails "what is done is not given up" 3 '"done"' a ask '{"id":"move-1","cancel":true}'
	check_fails "it is no more here" 3 '"refused".*E_RETIRED' a ask "$(of_vm move-2)"
	check "it goes back, by the other host's hook" on b is_done \
		'{"id":"back-1","machine":"vm","target":"bm://host-a","options":{"pause_budget":"20s","overwrite":true},"wait":true}'
	check "the first one is asked for again: it is done" a is_done "$r"
	rm "$dir/a/state/requests/"*
	check "also when what ids stand for is lost" a is_done "$r"
	check "by the same move" same_move "$move"
	rm "$dir/a/state/requests/"*
	check_fails "and another content is known" 3 E_ID_REUSED a ask "$(of_vm move-1)"
	host_stop a
	check "a daemon that comes anew" host_start a
	check "knows it, too" a is_done "$r"
	check "it was moved from here once" begun_since "$before" 2
	check "and is here" test "$(bm_on a machine show vm --json | jq -r '.away // "here"')" = here
}

plain_up
for part in ${1:-refusing preflight cancelling killing moving}; do $part; done
