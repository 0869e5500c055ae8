#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A guest is at work all the time. Its disk's process is killed again and again, while it rests and
# while it moves; the daemon is; both are; the host "boots". The guest gets an answer to everything,
# whoever knocks at the disk's sockets is let in, and the next process is there in no time. What is
# stopped stays so, what ends by itself is given time, and show tells why.
# $KILLS: how many times the disk's process is killed (default 20).
# shellcheck source-path=SCRIPTDIR/../system source=../system/disk.bash
. "$(dirname "$0")/../system/disk.bash"

python=${PYTHON:-/usr/bin/python3}
have nbdkit nbdcopy jq getfattr "$python" || { skip "the daemon" "nbdkit, libnbd-bin, jq, attr, python3"; exit; }
image_size=$((64 * M)) half=$((32 * M)) # behind it no load touches
disks=$BLOCKMIRROR_RUN_DIR/disks
mkdir "$dir/a" "$dir/b"
head -c $image_size /dev/urandom >"$dir/a/disk.img"
cp "$dir/a/disk.img" "$dir/original"

# The daemon, and what it has started, which are no children of ours.

start_daemon() {
	: >"$dir/daemon.out"
	log=$dir/daemon.out spawn "$BUILD/blockmirrord"
	daemon=$pid
	wait_for 10 grep -q ^ready "$dir/daemon.out"
}
pid_of() { show "$1" .pid; }
disk_pids() { "$bm" list --json | jq -r '.disks[].pid // empty'; }
clean_up() {
	local p
	kill9 "$daemon"
	for p in $(disk_pids); do kill -KILL "$p"; done
}
is_running() { [ "$(show "$1" '.supervision.state // .state')" = running ]; }
state_is() { [ "$("$bm" list --json | jq -r --arg n "$1" '.disks[] | select(.name == $n) | .supervision.state // .state')" = "$2" ]; }

# killed SIGNAL PID SOCKET: prints the milliseconds until another process answers a call there.
killed() {
	"$python" - "$@" <<-'END'
		import json, os, socket, sys, time
		signal, pid, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
		start = time.monotonic()
		os.kill(pid, signal)
		while time.monotonic() - start < 30:
		    s = socket.socket(socket.AF_UNIX)
		    s.settimeout(30)
		    try:
		        s.connect(path)
		        s.sendall(b'{"jsonrpc":"2.0","id":1,"method":"show"}\n')
		        said = b""
		        while not said.endswith(b"\n"):
		            more = s.recv(65536)
		            if not more:
		                raise ConnectionResetError
		            said += more
		        if json.loads(said)["result"]["pid"] != pid:
		            print(round((time.monotonic() - start) * 1000))
		            sys.exit(0)
		    except (ConnectionResetError, BrokenPipeError):
		        pass # the one that dies had taken it
		    time.sleep(0.001)
		sys.exit(1)
	END
}

# knock: connects to the disk's sockets every few ms until it is told to end; prints how it fared.
knock() {
	exec "$python" - "$disks/disk.nbd" "$disks/disk.sock" "${KILLS:-20}" <<-'END'
		import signal, socket, sys, time
		stop = []
		signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
		let_in, refused, kills = 0, [], int(sys.argv[3])
		while not stop:
		    for path in sys.argv[1:3]:
		        s = socket.socket(socket.AF_UNIX)
		        try:
		            s.connect(path)
		            let_in += 1
		        except OSError as e:
		            refused.append(f"{path}: {e}")
		        s.close()
		    time.sleep(0.01)
		print(let_in, "let in,", len(refused), "refused", refused[:3])
		sys.exit(1 if refused or let_in < 10 * kills else 0)
	END
}

# queued PID SOCKET: who has come to a process that no longer answers, and then is killed, is
# answered by the next one.
queued() {
	timeout 60 "$python" - "$@" <<-'END'
		import os, signal, socket, sys
		pid, path = int(sys.argv[1]), sys.argv[2]
		os.kill(pid, signal.SIGSTOP)
		s = socket.socket(socket.AF_UNIX)
		s.connect(path)
		os.kill(pid, signal.SIGKILL)
		said = s.recv(8)
		print("the next process says", said)
		sys.exit(said != b"NBDMAGIC")
	END
}

# Moves to and fro, at a pace that lets them be killed early, late, and not at all.
begin_move() {
	local target=$dir/b rates=(4M 60M 0)
	disk_is_on "$dir/a/disk.img" >>"$dir/log" || target=$dir/a
	"$bm" relocate disk "$target" --overwrite --rate "${rates[RANDOM % 3]}" --guest-latency off \
		--detach >>"$dir/log" 2>&1
}

# pause LEAST MOST: some milliseconds in between.
pause() { sleep "$(printf '0.%03d' $(($1 + RANDOM % ($2 - $1))))"; }

# What starting a program, and no more, takes on this machine as busy as it is: in µs.
start_time() {
	local before=${EPOCHREALTIME/./}
	"$BUILD/blockmirror-disk" --version >>"$dir/log"
	echo $((${EPOCHREALTIME/./} - before))
}

# middle FILE: of its numbers.
middle() { sort -n "$1" | sed -n "$((($(wc -l <"$1") + 1) / 2))p"; }

kill_disks() {
	local i ms took=() moves=0 n=${KILLS:-20} knocker status median longest start
	log=$dir/knocked spawn knock
	knocker=$pid
	for i in $(seq "$n"); do
		if [ $((i % 2)) -eq 0 ]; then # the process has hardly begun
			pause 10 400
		else
			pause 300 400
			begin_move # unless the last one goes on
			pause 250 500
		fi
		[ "$(job disk .state)" != running ] || moves=$((moves + 1))
		start_time >>"$dir/starts"
		ms=$(killed 9 "$(pid_of disk)" "$disks/disk.sock") || break
		took+=("$ms")
	done
	kill -TERM "$knocker"
	wait "$knocker"
	status=$?
	lib_forget "$knocker"
	result $status "nobody who knocked was refused" "$dir/knocked"
	sed 's/^/# /' "$dir/knocked"
	printf '%s\n' "${took[@]}" >"$dir/took"
	median=$(middle "$dir/took") longest=$(sort -n "$dir/took" | tail -n 1) start=$(middle "$dir/starts")
	echo "# $n kills, $moves of them in a move; back after: median $median ms, longest $longest ms; starting a program takes $start us"
	check "each time another process served it" test ${#took[@]} -eq "$n"
	check "moves were killed, too" test $moves -ge $((n / 4))
	# On a machine that has nothing else to do a start takes less than 15 ms.
	[ "$start" -ge 15000 ] || start=15000
	check "within 300 ms, as a rule" test "$median" -lt $((20 * start / 1000))
	check "within a second, always" test "$longest" -lt $((66 * start / 1000))
	check "who waits in the queue is answered by the next one" queued "$(pid_of disk)" "$disks/disk.nbd"
	check "the guest goes on" works
	check "show has counted them" test "$(show disk .supervision.restarts)" -ge "$n"
	check "and says why" test "$(show disk .supervision.error.code)" = E_INTERRUPTED
}

kill_daemon() {
	local before
	before=$(pid_of disk)
	kill9 "$daemon"
	check "without the daemon: the guest goes on" works
	check "its process can be asked" test "$before" = "$(pid_of disk)"
	check "the daemon is started again" start_daemon
	check "it has the same process" wait_for 5 is_running disk
	check "which nobody has started anew" test "$before" = "$(pid_of disk)"
	check "both disks are there" test "$("$bm" list --json | jq -c '[.disks[].supervision.state]')" \
		= '["running","running"]'
	check "the adopted process is killed: another one follows" killed 9 "$before" "$disks/disk.sock"
	check "the guest goes on, again" works
	before=$(pid_of disk)
	check "told to end, the daemon does" end_daemon
	check "and its disks do not" test "$before" = "$(pid_of disk)"
	start_daemon
	wait_for 5 is_running disk
}
end_daemon() {
	local status
	kill -TERM "$daemon"
	wait "$daemon"
	status=$?
	lib_forget "$daemon"
	return $status
}

kill_both() {
	local p
	for _ in 1 2; do
		p=$(pid_of disk)
		kill -KILL "$p" "$daemon"
		kill9 "$daemon"
		check "both killed: the daemon is started again" start_daemon
		check "both killed: and the disk" wait_for 10 is_running disk
		check "both killed: the guest goes on" works
	done
}

# What a boot leaves: no process, and nothing in RUN.
boot() {
	local p
	kill9 "$daemon"
	for p in $(disk_pids); do
		kill -KILL "$p"
		wait_for 10 lib_gone "$p"
	done
	rm -r "$BLOCKMIRROR_RUN_DIR"
	start_daemon
}

stopping() {
	"$bm" job cancel disk >>"$dir/log" 2>&1 # one that was killed goes on, if it has not ended
	check_fails "stop, while the guest is connected: refused" 3 "E_BUSY: .*1 client|E_BUSY: .*clients" "$bm" stop disk
	check "serve, and it is: refused" test "$("$bm" serve other 2>&1 | grep -c E_BUSY)" = 1
	check "another disk is stopped" "$bm" stop other
	check "its sockets are gone" test ! -e "$disks/other.sock" -a ! -e "$disks/other.nbd"
	check_fails "once is enough" 4 "E_NOT_FOUND: " "$bm" stop other
	check "show says so" state_is other stopped
	kill9 "$daemon"
	start_daemon
	check "to a new daemon, too" state_is other stopped
	check "it is served again" "$bm" serve other
	check "by its record" test "$(show other .uri)" = "$dir/other.img"
	check_fails "an image that is not there: refused" 4 "E_NOT_FOUND: .*nowhere" \
		"$bm" serve third "$dir/nowhere.img"
	check "and nothing is left of it" test -z "$(find "$BLOCKMIRROR_STATE_DIR" "$disks" -name 'third*' ! -name '*.log')"
	check_fails "other records than the daemon's: refused" 2 "E_USAGE: .*$BLOCKMIRROR_STATE_DIR" \
		"$bm" --state-dir "$dir/elsewhere" serve third "$dir/other.img"
	check_fails "a second daemon: refused" 3 E_BUSY timeout 10 "$BUILD/blockmirrord"
	check_fails "forget, while it is served: refused" 3 E_BUSY "$bm" forget other
}

failing() {
	mv "$dir/other.img" "$dir/away.img"
	kill -KILL "$(pid_of other)"
	check "its image is gone: it is tried again, and told" wait_for 40 waits_for_long other
	check "why" test "$(show other .error.code)" = E_NOT_FOUND
	check "how often" test "$(show other .restarts)" -ge 4
	check_fails "commands do not hang" 7 "E_UNREACHABLE: .*E_NOT_FOUND: .*other.img" \
		timeout 5 "$bm" relocate other "$dir/b"
	check "list neither, and says so" is_down other
	mv "$dir/away.img" "$dir/other.img"
	check "serve does not wait" serve_now other
	check "it is served" test "$(show other .uri)" = "$dir/other.img"
}
is_down() { state_is "$1" waiting || state_is "$1" starting; }
serve_now() { "$bm" serve "$1" >"$dir/said" 2>&1 || grep "E_BUSY: disk $1 is .* already" "$dir/said"; }
waits_for_long() { [ "$(show "$1" '.retry_ns // 0')" -gt 500000000 ]; }

# Processes that a time without a daemon has left.
strangers() {
	local alien
	"$bm" stop other
	end_daemon
	truncate -s 4M "$dir/stray.img" "$dir/alien.img"
	check "a disk is served without a daemon" serve stray "$dir/stray.img"
	check "one with records elsewhere" serve alien "$dir/alien.img" --state-dir "$dir/elsewhere"
	alien=$disk_pid
	check "one that was stopped" serve other
	disk_pid=$(pid_of stray)
	start_daemon
	check "a daemon adopts the one that was stopped" wait_for 5 state_is other running
	check "what has its records elsewhere is left alone" test "$(pid_of alien)" = "$alien"
	check "and not adopted" test "$(show alien .supervision)" = null
	check "and the one of the time without it" wait_for 5 state_is stray running
	check "as it is" test "$disk_pid" = "$(pid_of stray)"
	kill -TERM "$disk_pid"
	wait_for 10 lib_gone "$disk_pid"
	lib_forget "$disk_pid"
	check "it is started again, however it ended" wait_for 10 is_running stray
	check "at the same address" nbdcopy "$(disk_uri stray)" null:
	check "it is stopped" "$bm" stop stray
	check "and forgotten" "$bm" forget stray
	check_fails "for good" 4 E_NOT_FOUND "$bm" show stray
	"$bm" stop alien
}

limit_is() { [ "$(show other .server.max_connections)" = "$1" ]; }
booting() {
	local where
	check "the guest lost nothing, through all of that" end_load
	check "it was cut off each time" json_is "$report" ".reconnects >= ${KILLS:-20}"
	json "$report" '"# the guest: \(.requests) requests, longest \(.longest_request.ms) ms, \(.reconnects) times cut off"'
	where=$(show disk .uri)
	"$bm" stop other
	check "after a boot" boot
	check "every disk is served: the one at work" wait_for 10 is_running disk
	check "from where it was" disk_is_on "$where"
	check "the one that was stopped" wait_for 10 is_running other
	check "with its limit" limit_is 7
	check "and no other one" test "$("$bm" list --json | jq -c '[.disks[].name]')" = '["disk","other"]'
	check "what the guest wrote is there" state_fits "$(disk_uri disk)"
	check "what no guest wrote is what it was" cmp -i $half -n $half "$where" "$dir/original"
	"$bm" stop other && "$bm" forget other
	check "after another boot" boot
	check "what was forgotten is not served" test "$("$bm" list --json | jq -c '[.disks[].name]')" = '["disk"]'
	check "its record is still there" test -e "$BLOCKMIRROR_STATE_DIR/disks/other/record"
}

start_daemon
on_exit clean_up
check "a disk is served by the daemon" "$bm" serve disk "$dir/a/disk.img"
check "another one, which is made" "$bm" serve other "$dir/other.img" \
	--create 4M --max-connections 7
check "its limit is kept" limit_is 7
start_load disk --initial any --reconnect 60 --iops 500 --sizes 512:128k
kill_disks
kill_daemon
kill_both
stopping
failing
strangers
booting
