#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The limits of the NBD server, with clients at them: who is one too many waits, memory stays within
# what the manual and "show" say, and comes back.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

python=${PYTHON:-/usr/bin/python3}
have "$python" nbdinfo jq || { skip "limits" "python3, libnbd-bin, jq"; exit; }
"$python" -c 'import nbd' 2>/dev/null || { skip "limits" "python3-libnbd"; exit; }
clients=64 data=$((4 * M))
truncate -s $((128 * M)) "$dir/a.img" "$dir/b.img" "$dir/c.img"

# kib WHAT PID: VmRSS or VmHWM.
kib() { sed -n "s/^$1:[^0-9]*\([0-9]*\) kB/\1/p" "/proc/$2/status"; }
# What the manual says, in KiB: each connection its data and 1.2 MiB, and 16 MiB for the rest.
bound() { echo $((clients * (data / 1024 + 1229) + 16384)); }
# stays_within CLIENTS COMMAND…: which prints how many it had and what memory that took.
stays_within() {
	local count=$1 line had most
	shift
	line=$("$@") || return
	read -r had most <<<"$line"
	echo "$had clients, at most $most KiB; $(bound) KiB are stated"
	[ "$had" = "$count" ] && [ "$most" -le "$(bound)" ] && [ "$most" -gt $((count * data / 1024)) ]
}

# Writes get stuck in the device, reads in the sockets of clients that do not take them.
check "a server with limits" start_blockmirror_nbd "$dir/s" "fault:op=write,delay=60s;file:$dir/a.img" \
	--max-connections $clients --max-data $data --max-requests 16
server=$pid
idle=$(kib VmRSS "$server")
check "64 clients read 64 MiB each, and take none of it" stays_within $clients \
	timeout 60 "$python" tests/system/nbd_limits.py "$dir/s" "" read $clients "$server"
given_back() { [ "$(kib VmRSS "$server")" -le $((idle + 16384)) ]; }
check "their memory is given back" wait_for 10 given_back
check "64 clients have 64 MiB in writes each, and none ends" stays_within $clients \
	timeout 60 "$python" tests/system/nbd_limits.py "$dir/s" "" write $clients "$server"
# Their writes are still there, and so are they.
spawn nbdinfo --size "$uri"
late=$pid
sleep 0.5
result "$(lib_gone "$late"; echo $((! $?)))" "one more client waits"
kill -TERM "$server"
wait_for 5 test ! -e "$dir/s"
kill -TERM "$server"
check "the server does not wait for them when it is told twice" wait_for 5 lib_gone "$server"
wait "$server"
result $? "and it ends well" "$dir/log"
lib_forget "$server"

check "a server for two clients" start_blockmirror_nbd "$dir/s" "$dir/b.img" --max-connections 2
hold() { # a client that stays until it is ended
	log=$1 spawn "$python" -c 'import nbd, signal, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
print("connected", flush=True)
signal.pause()' "$uri"
}
both() { grep -q connected "$dir/first" && grep -q connected "$dir/second"; }
hold "$dir/first"
first=$pid
hold "$dir/second"
check "two clients are served" wait_for 10 both
log=$dir/third spawn timeout 20 nbdinfo --size "$uri"
third=$pid
sleep 0.5
result "$([ ! -s "$dir/third" ]; echo $?)" "a third one waits" "$dir/third"
stop "$first"
wait "$third"
result $? "until one of them leaves" "$dir/third"
lib_forget "$third"

check "a hurried server" start_blockmirror_nbd "$dir/t" "$dir/c.img" --handshake-timeout 1 \
	--idle-timeout 2
silent() { # how long a client lasts that says nothing, or nothing more after its handshake
	"$python" -c 'import nbd, socket, sys, time
if sys.argv[2] == "mute":
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    s.recv(18)
    began = time.monotonic()
    s.recv(1)
else:
    h = nbd.NBD()
    h.connect_unix(sys.argv[1])
    began = time.monotonic()
    h.poll(10000)
took = time.monotonic() - began
print(took)
sys.exit(not float(sys.argv[3]) <= took < float(sys.argv[3]) + 3)' "$dir/t" "$@"
}
check "a client that does not choose an export is disconnected in time" silent mute 0.9
check "and one that asks for nothing" silent idle 1.9

image_size=$((16 * M))
truncate -s $image_size "$dir/disk.img"
check "a disk is served with limits" serve disk "$dir/disk.img" --max-connections 5 --max-data 2M
check "its memory is bounded" jq -e \
	'.server | .max_connections == 5 and .memory_bound > 5 * 2097152 and .memory_bound < 5 * 3500000' \
	<("$bm" show disk --json)
start_load disk --range 0:$((8 * M)) --sizes 4k:64k
check "and stays within that" jq -e \
	'.server | .connections > 1 and .connections <= 5 and .memory > 0 and .memory <= .memory_bound
	and .buffers <= .memory' <("$bm" show disk --json)
check "people are told, too" grep -qE '^server +[2-5] of 5 connections' <("$bm" show disk)
AFTER=2 check "its guest is served as ever" end_load
check_fails "a limit that is none" 2 'E_USAGE: --max-data 1k: a size' "$BUILD/blockmirror-disk" \
	--name x --max-data 1k "$dir/disk.img"
check_fails "a disk is not served with it" 2 'E_USAGE: --max-connections none: a number from 1 to 10000' \
	"$bm" serve other "$dir/disk.img" --max-connections none
check_fails "neither is an image" 2 'E_USAGE: --idle-timeout 1s: a number' "$BUILD/blockmirror-nbd" \
	--idle-timeout 1s --unix "$dir/u" "$dir/a.img"
check "it is stopped" unserve disk
