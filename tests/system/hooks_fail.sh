#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Outbound hooks that fail, hang, cannot be run, or are not to be trusted; and what they are told when
# the disk's process, or the daemon, is killed while they run.
# shellcheck source-path=SCRIPTDIR source=hook.bash
. "$(dirname "$0")/hook.bash"

have jq strace || { skip "hooks that fail" "jq, strace"; exit; }
a=$dir/a.img b=$dir/b.img
all_events="before-relocate before-switch after-switch after-relocate"
truncate -s $image_size "$b"
quick=(--guest-latency off --overwrite)

start_daemon --hook-timeout 30s
serve disk "$b"
known=$(show disk .pid)
install_hook 10-manager
new_process() { # that serves the disk: the daemon knows of it before
	local now
	[ "$(show disk .supervision.state 2>/dev/null)" = running ] && now=$(show disk .pid 2>/dev/null) &&
		[ -n "$now" ] && [ "$now" != "$known" ]
}
moves() { "$bm" relocate disk "$1" "${quick[@]}" "${@:2}"; }
heard_lines() { [ "$(wc -l <"$heard")" -ge "$1" ]; }
ended_with() { [[ "$(events)" = *"$1" ]] || { events; return 1; }; }

failing() {
	forget_heard
	order after-switch 'echo "no such vm" >&2; exit 7'
	log=$dir/events spawn "$bm" events disk --json
	local watcher=$pid
	check "a hook fails that is told: it has moved all the same" moves "$b"
	check "the next event is told" wait_for 20 told "$all_events"
	check "the log says it" grep "10-manager says no to after-switch (exit status 7): no such vm" "$dir/run/disks/disk.log"
	check "so do events" wait_for 5 grep -q "no such vm" "$dir/events"
	stop "$watcher"
	free
	order before-switch 'sleep 100 & echo $! >'"$dir/child"'; wait'
	check_fails "one that hangs is a no" 3 "E_HOOK.*did not end within 4.0 s, and was killed" moves "$a"
	check "what it has started is killed, too" wait_for 10 lib_gone "$(cat "$dir/child")"
	free
	check "the job is cancelled" "$bm" job cancel disk
	order after-relocate "sleep 3"
	moves "$a" >"$dir/out" 2>&1
	check_fails "no upgrade while they run" 3 "E_BUSY.*hooks are being run" "$bm" upgrade disk
	check "who stops the disk waits until all is told" "$bm" stop disk
	check "which it is" ended_with "after-relocate"
	free
	check "it is served again" "$bm" serve disk
}

# Long before its time is over.
cancelling() {
	forget_heard
	hold before-switch
	log=$dir/move.out spawn moves "$b"
	check "while one is asked" wait_for 20 job_is disk .asking before-switch
	check "the job is cancelled at once" timeout 10 "$bm" job cancel disk
	lib_forget "$pid"
	wait "$pid"
	free
	check "the disk is where it was" disk_is_on "$a"
}

# Killed in the middle of a hook: the next process tells the same again, with the same id.
dying() {
	forget_heard
	hold after-switch
	log=$dir/move.out spawn moves "$a"
	wait_for 20 heard_lines 3
	known=$(show disk .pid)
	kill_disk disk
	lib_forget "$pid"
	wait "$pid"
	go
	check "a process dies while it tells; the next one comes" wait_for 10 new_process
	check "and tells the rest, and that once more" wait_for 20 told \
		"before-relocate before-switch after-switch after-switch after-relocate"
	check "by the same id" test "$(times after-switch)" = 1
	check "the disk has moved" disk_is_on "$a"
	known=$(show disk .pid)
	check "that is noted" wait_for 20 grep -q after-relocate "$BLOCKMIRROR_STATE_DIR/disks/disk/told"
	kill_disk disk
	wait_for 10 new_process
	check "what was told is not told a third time" told \
		"before-relocate before-switch after-switch after-switch after-relocate"
	forget_heard
	hold before-switch
	log=$dir/move.out spawn moves "$b"
	wait_for 20 heard_lines 2
	kill9 "$daemon"
	go
	check "the daemon dies while a hook runs: the move goes on" wait "$pid"
	lib_forget "$pid"
	check "and all is told" wait_for 20 told "$all_events"
	start_daemon --hook-timeout 30s
}

# held_up COMMAND…: the loop of the disk's process stands still for a moment when it has woken a worker.
held_up() {
	local tracer victim status
	victim=$(show disk .pid)
	log=$dir/strace.out spawn strace -q -o "$dir/trace" -e trace=futex \
		-e inject=futex:delay_exit=200000 -p "$victim"
	tracer=$pid
	wait_for 20 is_traced "$victim" || return
	"$@"
	status=$?
	stop "$tracer"
	return $status
}
is_traced() { ! grep -q "^TracerPid:[[:space:]]*0$" "/proc/$1/status"; }

distrusting() {
	local hook=$dir/hooks/10-manager
	forget_heard
	chmod o+w "$hook"
	check_fails "a hook that others may write to" 3 "E_HOOK.*others than root, or us, own it or may write" moves "$a"
	chmod o-w "$hook"
	chmod g+w "$dir/hooks"
	check_fails "a folder that a group may write to" 3 "E_HOOK.*own that folder" moves "$a"
	chmod g-w "$dir/hooks"
	ln -s /bin/true "$dir/hooks/30-link"
	check_fails "a link" 3 "E_HOOK.*30-link is a link" moves "$a"
	rm "$dir/hooks/30-link"
	printf '#!/no/such/shell\n' >"$dir/hooks/05-broken"
	chmod 755 "$dir/hooks/05-broken"
	check_fails "one that cannot be run" 3 "E_HOOK.*05-broken cannot be run" moves "$a"
	check_fails "one that cannot be run, and the worker is quicker than the loop" 3 "05-broken cannot be run" \
		held_up moves "$a"
	rm "$dir/hooks/05-broken"
	check "nothing was run" test "$(times before-relocate)" = 0
	check "without these it moves" moves "$a"
	check_fails "a folder by a relative path" 2 "begins with /" "$BUILD/blockmirrord" --hooks here
}

dying
distrusting
cancelling
check "the disk is stopped" unserve disk
kill9 "$daemon"
start_daemon --hook-timeout 4s
check "hooks have 4 s now" serve disk "$a"
failing
check "the disk is stopped in the end" wait_for 5 "$bm" stop disk
