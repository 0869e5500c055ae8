#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk is upgraded again and again under a load that verifies, at rest and in every phase of a
# move, while other clients keep sessions of each kind: nobody is cut off,
# nothing is lost. New programs that are no good change nothing. Either process is killed in the
# middle of it: the disk comes back. All of it with blockmirrord and without.
# LONG=1: more of all, and what takes long by itself. $UPGRADES: how many at rest, and in moves; $KILLS:
# how many of each process.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

python=${PYTHON:-/usr/bin/python3}
have jq getfattr nbdkit "$python" || { skip "upgrades" "jq, attr, nbdkit, python3"; exit; }
half=$((32 * M)) # behind it no load touches
long=${LONG:-} daemon='' original=''
upgrades=${UPGRADES:-${long:+20}} kills=${KILLS:-${long:+25}}
upgrades=${upgrades:-2} kills=${kills:-1}
disks=$BLOCKMIRROR_RUN_DIR/disks

# The programs as they are installed, and others in their place: blockmirror finds the disk's
# program beside itself, a running one beside where it was started from.

install_programs() {
	mkdir -p "$dir/bin"
	cp "$BUILD"/blockmirror "$BUILD"/blockmirror-disk "$BUILD"/blockmirrord "$dir/bin"
	bm=$dir/bin/blockmirror original=$dir/bin/blockmirror-disk
}
# put PROGRAM [VERSION]: replaced as installing does it; VERSION, as long as ours, is what it says.
put() {
	local ours
	cp "$1" "$original.new"
	if [ $# -gt 1 ]; then
		ours=$("$BUILD/blockmirror-disk" --version)
		sed -i "s/\\b${ours#* }\\b/$2/g" "$original.new"
	fi
	chmod +x "$original.new"
	mv "$original.new" "$original"
}
script() { printf '#!/bin/bash\n%s\n' "$1" >"$dir/script"; put "$dir/script"; }

# The disk's process, whichever it is now. $took: µs that the last upgrade has taken.

new_pid() {
	disk_pid=$(show disk .pid)
	lib_pids+=("$disk_pid")
}
upgrade() {
	local before=$disk_pid start=${EPOCHREALTIME/./}
	"$bm" upgrade disk --json >"$dir/upgrade.json" 2>"$dir/said" ||
		{ cat "$dir/said" "$dir/upgrade.json"; return 1; }
	took=$((${EPOCHREALTIME/./} - start))
	jq -r '"\(.stall_ns / 1000 | round) \(.drain_ns / 1000 | round)"' <"$dir/upgrade.json" \
		>>"$dir/stalls"
	wait_for 5 lib_gone "$before" || { echo "process $before is still there"; return 1; }
	lib_forget "$before"
	new_pid
	[ "$disk_pid" != "$before" ] && [ "$disk_pid" = "$(jq .pid "$dir/upgrade.json")" ]
}
upgrades() { local i; for i in $(seq "$1"); do upgrade || return; sleep "0.$((RANDOM % 3))"; done; }
stalls() { # their middle and the largest
	sort -n "$dir/stalls" | awk '{ s[NR] = $1; if ($2 > d) d = $2; t = $1 - $2; if (t > h) h = t }
		END { printf "# %d upgrades; stall: median %.1f ms, longest %.1f ms; longest drain %.1f ms, longest hand-over %.1f ms\n",
			NR, s[int((NR + 1) / 2)] / 1000, s[NR] / 1000, d / 1000, h / 1000 }'
}

# Clients of other kinds, behind what the load touches (session.py).
start_sessions() {
	local mode at=$half
	sessions=()
	for mode in simple structured extended; do
		log=$dir/session.$mode spawn "$python" tests/system/session.py "$disks/disk.nbd" disk \
			$mode $at
		sessions+=("$pid") at=$((at + 2 * M))
	done
}
end_sessions() {
	local p status=0
	for p in "${sessions[@]}"; do
		kill -TERM "$p"
		wait "$p" || status=1
		lib_forget "$p"
	done
	cat "$dir"/session.*
	return $status
}
never_cut() { json_is "$report" '.reconnects == 0'; }
guest() { json "$report" '"# the guest: \(.requests) requests, longest \(.longest_request.ms) ms, \(.reconnects) times cut off"'; }

# Moves

to() { [ "$(show disk .uri)" = "$dir/a/disk.img" ] && echo "$dir/b" || echo "$dir/a"; }
begin_move() { # ARGUMENT…
	"$bm" relocate disk "$(to)" --overwrite --guest-latency off --detach "$@" >>"$dir/log" 2>&1
}
ends() { # however it does
	"$bm" job wait disk --for released >>"$dir/log" 2>&1
	[ "$(job disk .state)" = "${1:-done}" ]
}
comes_to() { timeout 60 "$bm" job wait disk --for "$2" >>"$dir/log" && phase_is disk "$1"; }
try_upgrade() { # one that may come in the middle of a step of the job
	local i
	for i in 1 2 3 4 5 6 7 8; do
		upgrade >"$dir/tried" 2>&1 && return
		grep -q 'try again' "$dir/tried" || break
		sleep 0.2
	done
	cat "$dir/tried"
	return 1
}

at_rest() {
	local name=$1
	: >"$dir/stalls"
	check "$name: $upgrades upgrades at rest, under load" upgrades "$upgrades"
	stalls
	check "$name: its sockets are there" test -S "$disks/disk.nbd" -a -S "$disks/disk.sock"
	check "$name: all clients are there" test "$(show disk '.clients | length')" -eq 7
}

in_moves() {
	local name=$1 i
	: >"$dir/stalls"
	begin_move --rate 5M
	for i in $(seq $(((upgrades + 1) / 2))); do
		check "$name: upgrade $i while it copies" try_upgrade
		sleep 0.4
	done
	check "$name: the job goes on" job_is disk '"\(.state) \(.resumed.times >= 1)"' "running true"
	check "$name: pause" "$bm" job pause disk
	check "$name: upgrade while it is paused" try_upgrade
	check "$name: it still is" job_is disk .state paused
	"$bm" job resume disk >>"$dir/log"
	"$bm" job set disk --rate 0 >>"$dir/log"
	check "$name: it ends" ends
	begin_move --switch manual --verify
	check "$name: another one is in sync" comes_to in-sync in-sync
	[ -z "$long" ] || sleep 6 # until what was written was flushed, too
	check "$name: upgrade in sync" try_upgrade
	echo "# $name: $(job disk '"\(.resumed.dirty_bytes) bytes to send again, \(.resumed.kept_bytes) kept"')"
	[ -z "$long" ] || check "$name: what is sent again is what was written since" \
		job_is disk '.resumed.dirty_bytes < .resumed.kept_bytes' true
	check "$name: in sync again" comes_to in-sync in-sync
	check "$name: it switches" "$bm" switch disk
	check "$name: it ends, too" ends
	begin_move --undo-window 60s
	check "$name: the undo window is open" comes_to undo-window "done"
	for i in $(seq $((upgrades / 2))); do
		check "$name: upgrade $i in the undo window" try_upgrade
		check "$name: which is still open" wait_for 10 phase_is disk undo-window
	done
	check "$name: undo" "$bm" undo disk
	check "$name: it is undone" ends undone
	stalls
}

# An image that is no descriptor: the old process closes its session, the new one opens its own, or
# the old one opens it again. Either way it is the writer's next session.
elsewhere() {
	local name=$1 before server
	truncate -s "$image_size" "$dir/elsewhere.img"
	start_blockmirror_nbd "$dir/elsewhere.sock" "$dir/elsewhere.img"
	server=$pid
	check "$name: to another server" "$bm" relocate disk "$uri" --overwrite --guest-latency off
	check "$name: upgrade" upgrade
	before=$disk_pid
	ends_too_late
	check_fails "$name: a program that ends when it is to take over: refused" 1 "stays with process $before" \
		"$bm" upgrade disk
	check "$name: the old process serves again" test "$(show disk .pid)" = "$before"
	put "$BUILD/blockmirror-disk"
	check "$name: upgrade in the way back" in_the_way_back
	stop "$server"
}
# Who waits for the move sees its end, though it is another process's.
in_the_way_back() {
	local waits
	"$bm" relocate disk "$dir/a" --overwrite --rate 10M >"$dir/waited" 2>&1 &
	waits=$!
	wait_for 10 phase_is disk copying
	try_upgrade || return
	"$bm" job set disk --rate 0 >>"$dir/log"
	wait $waits || { cat "$dir/waited"; return 1; }
	cat "$dir/waited"
	[ "$(show disk .uri)" = "$dir/a/disk.img" ]
}

# What cannot take over does not.
ends_too_late() {
	script "exec $python -c 'import socket; s = socket.socket(fileno=3); s.send(b\"{\\\"v\\\":1,\\\"state\\\":1,\\\"clients\\\":1,\\\"version\\\":\\\"0.0.0\\\"}\"); s.recv(99)'"
}
no_good() {
	local name=$1 before=$disk_pid
	script 'echo "blockmirror-disk: E_INTERNAL: broken" >&2; exit 1'
	check_fails "$name: a program that ends: refused" 1 "E_INTERNAL: .*stays with process $before .*broken" \
		"$bm" upgrade disk
	script 'kill -SEGV $$'
	check_fails "$name: one that crashes: refused" 1 "E_INTERRUPTED: .*stays with process $before .*signal 11" "$bm" upgrade disk
	script "exec $python -c 'import socket; socket.socket(fileno=3).send(b\"{\\\"v\\\":1,\\\"state\\\":99,\\\"clients\\\":1,\\\"version\\\":\\\"9.9.9\\\"}\")'"
	check_fails "$name: one of another state: refused" 3 "E_UNSUPPORTED: .*stays with process $before .*9.9.9" \
		"$bm" upgrade disk
	ends_too_late
	check_fails "$name: one that ends when it is to take over: refused" 1 "stays with process $before" "$bm" upgrade disk
	[ -z "$long" ] || hanging "$name"
	rm "$original"
	check_fails "$name: none at all: refused" 1 "stays with process $before" env PATH=/usr/bin:/bin "$bm" upgrade disk
	put "$BUILD/blockmirror-disk"
	check "$name: the old process serves all the while" test "$(show disk .pid)" = "$before"
	check "$name: a good one takes over then" upgrade
}
hanging() {
	local name=$1
	# shellcheck disable=SC2016 # the script's own
	script 'sleep 60 & child=$!; trap "kill $child" EXIT; echo $$ $child >"$BLOCKMIRROR_STATE_DIR/hung"; wait'
	check_fails "$name: one that hangs: refused" 7 "E_UNREACHABLE: .*stays with process $disk_pid" "$bm" upgrade disk
	hung
}
hung() { # what it has left
	local p
	for p in $(xargs <"$BLOCKMIRROR_STATE_DIR/hung"); do
		grep -qF "$BLOCKMIRROR_STATE_DIR" "/proc/$p/environ" 2>>"$dir/log" && kill -KILL "$p"
	done
}

# The new or the old process is killed while one hands over to the other: at any moment of it, and
# half of them towards its end, when most is under way.
killed() {
	local name=$1 i who new lost=0 after half_of handed=0
	upgrade >>"$dir/log"
	for i in $(seq $((2 * kills))); do
		[ $((i % 3)) -ne 0 ] || begin_move --rate 20M
		who=$((i % 2))
		"$bm" upgrade disk >>"$dir/log" 2>&1 &
		new=$!
		half_of=$((i / 2 % 2 * took / 2))
		after=$((half_of + RANDOM * 64 % (1 + took * 5 / 4 - half_of)))
		sleep "$((after / 1000000)).$(printf '%06d' $((after % 1000000)))"
		if [ $who -eq 0 ]; then
			kill -KILL "$disk_pid"
		else
			for p in $(pgrep -P "$disk_pid"); do kill -KILL "$p"; done
		fi
		wait $new && handed=$((handed + 1))
		back || { lost=$i; break; }
		lib_forget "$disk_pid"
		new_pid
	done
	check "$name: $((2 * kills)) times killed in the middle, the disk comes back" test "$lost" -eq 0
	echo "# $name: $handed of them had handed over"
	check "$name: there is one process" one_process
}
answers() { "$bm" show disk --json >>"$dir/log" 2>&1; }
back() {
	[ -z "$daemon" ] || { wait_for 20 answers; return; }
	wait_for 1 answers || wait_for 20 "$bm" serve disk >>"$dir/log" 2>&1
}
one_process() {
	sleep 0.3
	ours | tee "$dir/out" | wc -l | grep -qx 1
}

start_daemon() {
	: >"$dir/daemon.out"
	log=$dir/daemon.out spawn "$dir/bin/blockmirrord"
	daemon=$pid
	wait_for 10 grep -q ^ready "$dir/daemon.out"
}
# A newer daemon takes the place of this one: its disks do not notice.
new_daemon() {
	kill -TERM "$daemon"
	wait "$daemon"
	lib_forget "$daemon"
	start_daemon && wait_for 5 runs
}
runs() { [ "$(show disk .supervision.state)" = running ]; }
restarts_are() { [ "$(show disk .supervision.restarts)" = "$1" ]; }

# Those that the test does not know of: upgrades that it did not live to see.
clean_up() {
	local p
	[ -z "$daemon" ] || kill9 "$daemon"
	for p in $(ours); do kill -KILL "$p"; done
}
ours() {
	local p
	for p in $(pgrep -f "blockmirror-disk --name disk "); do
		! grep -qF "$BLOCKMIRROR_RUN_DIR" "/proc/$p/cmdline" 2>>"$dir/log" || echo "$p"
	done
}

begin_life() {
	local name=$1
	make_image "$dir/a/disk.img"
	mkdir -p "$dir/b"
	check "$name: a disk is served" "$bm" serve disk "$dir/a/disk.img"
	new_pid
	start_load disk --initial any --iops 200 --sizes 512:64k
	start_sessions
	at_rest "$name"
}

end_life() {
	local name=$1
	check "$name: each session was one session" end_sessions
	sed 's/^/# /' "$dir/out"
	check "$name: the guest lost nothing" end_load
	guest
	check "$name: and was never cut off" never_cut
	start_load disk --initial any --iops 200 --sizes 512:64k --reconnect 60
	killed "$name"
	check "$name: the guest of the killed lost nothing" end_load
	guest
	timeout 60 "$bm" job wait disk --for released >>"$dir/log" 2>&1
	check "$name: what it wrote is there" state_fits "$(disk_uri disk)"
	check "$name: an upgraded disk is stopped as any" wait_for 5 "$bm" stop disk
	check "$name: its sockets are gone" test ! -e "$disks/disk.nbd" -a ! -e "$disks/disk.sock"
}

alone() {
	begin_life alone
	put "$BUILD/blockmirror-disk" 9.9.9
	check "alone: another version takes over" upgrade
	check "alone: which is told" test "$(jq -r .version "$dir/upgrade.json")" = 9.9.9
	put "$BUILD/blockmirror-disk"
	in_moves alone
	elsewhere "on another server"
	no_good alone
	end_life alone
}

with_daemon() {
	rm -r "$dir/state"
	start_daemon
	begin_life daemon
	begin_move --rate 5M
	check "daemon: upgrade in a move" try_upgrade
	"$bm" job set disk --rate 0 >>"$dir/log"
	check "daemon: it ends" ends
	script 'echo "blockmirror-disk: E_INTERNAL: broken" >&2; exit 1'
	check_fails "daemon: a program that ends: refused" 1 "E_INTERNAL: .*stays with .*broken" \
		"$bm" upgrade disk
	put "$BUILD/blockmirror-disk"
	check "daemon: it is another one" new_daemon
	check "daemon: which has the same process" test "$(show disk .pid)" = "$disk_pid"
	check "daemon: upgrade under it" upgrade
	check "daemon: which knows the new process" wait_for 5 knows
	check "daemon: none was started again for the upgrades" restarts_are 0
	end_life daemon
}
knows() { [ "$(show disk .supervision.pid)" = "$disk_pid" ]; }

install_programs
on_exit clean_up
alone
with_daemon
