#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk passes from one host to the other, by hand or when its guest first writes there: one of the
# two has it at any time, nothing is lost, and whoever dies or is cut off on the way, it comes to an end.
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "$0")/hosts.bash"

have nbdinfo socat || { skip "disks that pass from host to host" "libnbd-bin, socat"; exit; }
need_hosts
BEFORE=0.3 AFTER=0.3

begin() {
	make_image "$dir/disk.img"
	check "two hosts are paired" hosts_up
	cp --sparse=always "$dir/disk.img" "$(in_store a disk.img)"
	check "each may put disks on the other" allow
	check "a serves a disk" on a serve disk "$store/disk.img"
}
allow() { bm_on a peer allow host-b --receive "$store" && bm_on b peer allow host-a --receive "$store"; }

# guest HOST PROGRAM: a client of the disk there; h is libnbd's handle.
guest() { on "$1" /usr/bin/python3 -c "import nbd, time; h = nbd.NBD(); h.connect_uri('$(nbd_uri "$dir/$1/run/disks/disk.nbd" disk)'); $2"; }
writes() { guest "$1" 'h.pwrite(h.pread(4096, 0), 0)'; } # what is there, once more
role_is() { [ "$(on "$1" show disk .role 2>/dev/null)" = "$2" ]; }
gate_is() { [ "$(on "$1" show disk .gate 2>/dev/null)" = "$2" ]; }
has_none() { [ -z "$(bm_on "$1" list --json | jq -r '.disks[].name')" ] && [ ! -e "$dir/$1/state/serve/disk.json" ]; }
record() { jq -R -r "fromjson? | $2" "$dir/$1/state/disks/disk/record"; }
# one_has HOST OTHER: HOST has the disk, and nobody else, by a later record.
one_has() {
	role_is "$1" active && [ "$(record "$1" .role)" = null ] && [ "$(record "$2" .role)" != null ] &&
		[ "$(record "$1" .generation)" -gt "$(record "$2" .generation)" ]
}
all_on() { state_fits "$(nbd_uri "$dir/$1/run/disks/disk.nbd" disk)"; }
moves() { bm_on "$1" relocate disk "bm://host-$2$store/disk.img" --overwrite --guest-latency off "${@:3}"; }

by_hand() {
	local p
	check_fails "what is here is not handed over" 3 "E_NOT_READY: .*relocate it to bm://HOST/PATH first" \
		bm_on a hand-over disk
	check_fails "a file is not served there" 2 "serve-there goes with bm://" \
		bm_on a relocate disk "$store/other.img" --serve-there
	check "a guest" on a start_load disk
	check "its storage moves" bm_on a relocate disk "bm://host-b$store/" --guest-latency off
	check_fails "a guest that writes keeps the disk" 3 "E_SPLIT: .*both run, and this one keeps it" \
		bm_on a hand-over disk
	check "and has noticed nothing" on a end_load
	check "a is as it was" role_is a active
	check "b, too" gate_is b standby
	log=$dir/old spawn_on a /usr/bin/python3 -c "$old_guest"
	p=$pid
	wait_for 5 grep -q connected "$dir/old"
	check "it is handed over" bm_on a hand-over disk
	check "b has it, and nobody else" one_has b a
	check "all is there" all_on b
	check "the guest that a still has is told" wait_for 5 grep -q told "$dir/old"
	check "whois, of b's image: it is the truth" bm_on b whois "$store/disk.img"
	check_fails "of a's: it is not" 1 "retired" bm_on a whois "$store/disk.img"
	wait "$p"
	check "when that guest has gone a has no disk any more" wait_for 10 has_none a
	check_fails "nor is it served there by mistake" 3 "E_RETIRED: .*is on host host-b since generation" \
		bm_on a serve disk
	check "the old image neither" refused_image
	check "b's guest works" writes b
}
# It looks, and flushes when it is told that there is no disk any more, as a VMM that quits.
old_guest="
import nbd, time, errno
h = nbd.NBD()
h.connect_uri('$(nbd_uri "$dir/a/run/disks/disk.nbd" disk)')
print('connected', flush=True)
for i in range(100):
    time.sleep(0.1)
    try:
        h.pread(512, 0)
    except nbd.Error as e:
        assert e.errnum == errno.ESHUTDOWN, e
        h.flush()
        print('told', flush=True)
        break
time.sleep(1)
"
refused_image() {
	bm_on a serve new "$store/disk.img" >"$dir/out" 2>&1
	[ $? -eq 3 ] && grep -q 'E_OWNED\|E_RETIRED' "$dir/out"
}

back() {
	check "it comes back, and is served here" moves b a --serve-there
	check "a has it" one_has a b
	check "b has no disk any more" wait_for 10 has_none b
	check "all is there" all_on a
}

first_write() {
	check_fails "a host that is not said" 2 "to HOST is wanted" bm_on a migrate arm disk
	check_fails "b's old copy is not for nothing" 3 "E_EXISTS.*--overwrite" bm_on a migrate arm disk --to host-b
	check "a guest, again" on a start_load disk --initial any
	check "b is armed" bm_on a migrate arm disk --to host-b --overwrite
	check "it says so" gate_is b armed
	check "a guest there may look" guest b 'h.pread(4096, 0); h.flush()'
	check "and is refused as long as the other one writes" shut_down b
	check "that is told" grep -q 'E_SPLIT\|both run' "$dir/b/run/disks/disk.log"
	check "a's guest has noticed nothing" on a end_load
	check "b is armed no more" gate_is b standby
	check_fails "nor has a offered it" 3 "E_ACCESS" bm_on b recover disk
	check_fails "it cannot be cancelled before b knows" 3 "E_BUSY: .*migrate disarm disk" bm_on a job cancel disk
	check "it is armed again" bm_on a migrate arm disk --to host-b
	check "b writes first" writes b
	check "and has the disk" one_has b a
	check "all is there" all_on b
	check "it is told how long that took" held
	check "a keeps its copy, as a standby" wait_for 10 gate_is a armed
}
shut() { "${@:3}" >"$dir/out" 2>&1; [ $? -eq "$1" ] && grep -q "$2" "$dir/out"; } # STATUS TEXT COMMAND…
shut_down() { guest "$1" "
try:
    h.pwrite(b'x' * 4096, 0)
    raise SystemExit(1)
except nbd.Error as e:
    print(e)
    assert e.errnum == 108, e"; }
held() { [ "$(on b show disk .first_write_held_ns)" -gt 0 ] && echo "$(($(on b show disk .first_write_held_ns) / 1000000)) ms"; }
denied() { guest "$1" "
try:
    h.pwrite(b'x' * 4096, 0)
    raise SystemExit(1)
except nbd.Error as e:
    assert e.errnum == 1, e"; }

ends() {
	check "the way back, for two seconds" bm_on b migrate arm disk --to host-a --overwrite --expires 2s
	check "which pass" wait_for 5 gate_is a standby
	check "a does not write" denied a
	check "b does" writes b
	check "for two seconds, again" bm_on b migrate arm disk --to host-a --expires 2s
	spawn guest a 'print("open", flush=True); time.sleep(4); h.pwrite(h.pread(4096, 0), 0)'
	check "who has opened it in time may write later" wait "$pid"
	lib_forget "$pid"
	check "and has the disk" one_has a b
	check "b's copy follows" wait_for 20 on a job_is disk .progress.target in-sync
	check "it goes back" bm_on a hand-over disk
	check "once more, to be shut" bm_on b migrate arm disk --to host-a --overwrite
	check "the way back is closed, too" shut 3 E_BUSY bm_on b relocate disk "$store/other.img"
	check "and no more" bm_on b migrate disarm disk
	check "a does not write, again" denied a
	check_fails "a's standby does not become the disk" 3 "E_ACCESS: .*was not offered to host host-a" \
		bm_on a recover disk
	check "b has it" role_is b active
}

deaths() {
	check "armed for an hour" bm_on b migrate arm disk --to host-a
	check "both processes die" kill_both
	check "a is armed still" wait_for 10 gate_is a armed
	check "a goes down and comes back" reboot_a
	check "it is armed all the same" wait_for 10 gate_is a armed
	check "b's daemon dies" host_kill b
	spawn writes a
	local write=$pid
	sleep 1
	check "what a writes is held" not lib_gone "$write"
	check "b's daemon is back" host_start b
	check "the write is carried out" wait "$write"
	lib_forget "$write"
	check "and a has the disk" one_has a b
	check "b keeps its copy" wait_for 10 role_is b standby
	check "armed again, the other way" bm_on a migrate arm disk --to host-b --overwrite
	check "the network is cut" cut_network
	spawn writes b
	write=$pid
	sleep 2
	check "what b writes is held" not lib_gone "$write"
	check "a has the disk" role_is a active
	check "the network is back" join_network
	check "b's write is carried out" wait "$write"
	lib_forget "$write"
	check "and b has the disk" one_has b a
}
not() { ! "$@"; }
reboot_a() { a_dies && rm -rf "$dir/a/run" && host_start a; }
kill_both() { kill -KILL "$(on a show disk .pid)" "$(on b show disk .pid)"; }
call() { # HOST METHOD PARAMS: of the disk's process
	printf '{"jsonrpc":"2.0","id":1,"method":"%s","params":%s}\n' "$2" "$3" |
		socat -t 5 - "UNIX:$dir/$1/run/disks/disk.sock"
}

# b has decided, and a was not told.
answer_lost() {
	check "the copies of before are let go" bm_on b release disk
	check "the storage goes back to a" bm_on b relocate disk "bm://host-a$store/disk.img" --overwrite --guest-latency off
	check "a is offered the disk" said '"result":' call b offer "{\"to\":\"host-a\",\"until\":$(($(date +%s) + 60))000000000}"
	check "b has passed it on" said '"generation":' call b yield '{"to":"host-a"}'
	check "to nobody else" said 'E_RETIRED' call b yield '{"to":"host-x"}'
	check "a does not know" role_is a standby
	check "b's process has ended" wait_for 10 has_none b
	check "a asks, and has it" bm_on a recover disk
	check "nobody else" one_has a b
	check "twice is once" bm_on a recover disk
	check "all is there" all_on a
}
said() { "${@:2}" >"$dir/said"; cat "$dir/said"; grep -q "$1" "$dir/said"; }

# Several at a time: each needs calls of both hosts, there and back.
at_once() {
	local i attempts=()
	for i in 1 2 3 4 5; do
		bm_on a serve "d$i" "$store/d$i.img" --create 8M && bm_on a relocate "d$i" "bm://host-b$store/" --guest-latency off
	done >>"$dir/log" 2>&1
	for i in 1 2 3 4 5; do
		bm_on a hand-over "d$i" >>"$dir/log" 2>&1 &
		attempts+=($!)
	done
	check "five disks at a time are handed over" wait_all "${attempts[@]}"
	for i in 1 2 3 4 5; do bm_on b stop "d$i" && bm_on b forget "d$i"; done >>"$dir/log" 2>&1
}
wait_all() { local p; for p; do wait "$p" || return; done; }

# The record that decides may last, and may not: nobody is served until that is known.
doubt() {
	check "a's daemon ends" host_stop a
	check "and comes back with a disk that fails to sync once" doubting_host
	check "b is armed" bm_on a migrate arm disk --to host-b --overwrite
	check "b writes" writes b
	check "it had to ask twice" grep -q "it is not known who has the disk" "$dir/a/run/disks/disk.log"
	check "b has the disk, and nobody else" one_has b a
	check "all is there" all_on b
	check "it comes back" bm_on b hand-over disk
	check "for good" bm_on a release disk
}
doubting_host() {
	ASAN_OPTIONS=verify_asan_link_order=0 LD_PRELOAD=$BUILD/fixtures/record.so host_start a && kill -KILL "$(on a show disk .pid)" && wait_for 10 role_is a active
}

# The guest there waits for an answer that nobody will ever give.
dead_host() {
	# A copy that was just released may be closing yet: the first try is told E_UNREACHABLE then.
	check "b has half of a copy" wait_for 20 bm_on a relocate disk "bm://host-b$store/disk.img" --overwrite --rate 1M --detach
	check_fails "said alone it is not enough" 2 "are said together" bm_on b recover disk --resume-here
	check_fails "half of a copy is not resumed" 3 "E_NOT_READY: .*may be a part of a copy" \
		bm_on b recover disk --resume-here --peer-is-dead
	check "it is given up" bm_on a job cancel disk
	check "b is armed" bm_on a migrate arm disk --to host-b --overwrite
	check_fails "as long as a is the truth b vouches for nothing" 3 "E_NOT_READY" \
		bm_on b recover disk --resume-here --peer-is-dead
	check "the storage moves" bm_on a switch disk
	check "and b is armed, with that" bm_on a migrate arm disk --to host-b
	check "a dies" a_dies
	check_fails "b does not have it by itself" 7 "E_UNREACHABLE" bm_on b recover disk
	spawn writes b
	sleep 0.5
	check "somebody knows that a is dead" bm_on b recover disk --resume-here --peer-is-dead
	check "b has the disk" role_is b active
	check "all is there" all_on b
	check "what b's guest wanted meanwhile is done" wait "$pid"
	lib_forget "$pid"
	check "and it works" writes b
}
a_dies() {
	local p
	p=$(on a show disk .pid)
	host_kill a && kill -KILL "$p" && wait_for 10 lib_gone "$p"
}

begin
by_hand
back
first_write
ends
deaths
answer_lost
at_once
doubt
dead_host
