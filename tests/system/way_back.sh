#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk that can still be undone passes to another host: the copy that stays behind is kept equal, and a
# guest that goes on where it came from has the disk again, once, by the same rule. Nothing is copied
# for the way back, nothing is lost, and never do both have it.
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "$0")/hosts.bash"

need_hosts
# shellcheck disable=SC2034 # disk.bash has them
BEFORE=0.3 AFTER=0.3

begin() {
	make_image "$dir/disk.img"
	check "two hosts are paired" hosts_up
	cp --sparse=always "$dir/disk.img" "$(in_store a disk.img)"
	bm_on a peer allow host-b --receive "$store" >>"$dir/log"
	bm_on b peer allow host-a --receive "$store" >>"$dir/log"
	check "a serves a disk" on a serve disk "$store/disk.img"
}

guest() { on "$1" /usr/bin/python3 -c "import nbd, time; h = nbd.NBD(); h.connect_uri('$(nbd_uri "$dir/$1/run/disks/disk.nbd" disk)'); $2"; }
writes() { guest "$1" 'h.pwrite(h.pread(4096, 0), 0)'; } # what is there, once more
refused() { guest "$1" "
try:
    h.pwrite(b'x' * 4096, 0)
    raise SystemExit(1)
except nbd.Error as e:
    assert e.errnum == $2, e"; }
record() { jq -R -r "fromjson? | $2" "$dir/$1/state/disks/disk/record"; }
role_is() { [ "$(on "$1" show disk .role 2>/dev/null)" = "$2" ]; }
gate_is() { [ "$(on "$1" show disk .gate 2>/dev/null)" = "$2" ]; }
one_has() {
	role_is "$1" active && [ "$(record "$1" .role)" = null ] && [ "$(record "$2" .role)" != null ] &&
		[ "$(record "$1" .generation)" -gt "$(record "$2" .generation)" ]
}
in_sync() { [ "$(on "$1" job disk .phase)/$(on "$1" job disk .progress.target)" = undo-window/in-sync ]; }
pair_on() { wait_for 10 in_sync "$1"; }
copied() { on "$1" job disk .progress.copied_bytes; }
nothing_copied() { [ "$(copied "$1")" = 0 ]; }
all_on() { state_fits "$(nbd_uri "$dir/$1/run/disks/disk.nbd" disk)"; }
images_equal() { # of the guest's bytes, when nobody writes
	bm_on "$1" release disk >>"$dir/log" 2>&1 && cmp "$(in_store a disk.img)" "$(in_store b disk.img)"
}
call() { # HOST METHOD PARAMS: of the disk's process
	printf '{"jsonrpc":"2.0","id":1,"method":"%s","params":%s}\n' "$2" "$3" |
		socat -t 5 - "UNIX:$dir/$1/run/disks/disk.sock"
}
said() { "${@:2}" >"$dir/said"; cat "$dir/said"; grep -q "$1" "$dir/said"; }

fails_back() {
	check "b is armed" bm_on a migrate arm disk --to host-b
	check "b writes first" writes b
	check "and has the disk" one_has b a
	check "a has a copy that is kept equal" pair_on b
	check "nothing was copied for that" nothing_copied b
	check "a would have the disk again" wait_for 5 gate_is a armed
	check "b's guest writes a lot" on b state_load
	check "all is there" all_on b
	check "a is equal still" pair_on b
	check "whois, on a: it is a standby" said 'standby' bm_on a whois "$store/disk.img"
	check "the manager fails back: a writes" writes a
	check "and has the disk" one_has a b
	check "all is there" all_on a
	check "b, which has failed, does not have it by itself" refused b 1
	check "a's disk stays where it is" role_is a active
}
state_load() { start_load disk --initial any && end_load; }

there_and_back() {
	local i from=a to=b swap
	check "they are equal" pair_on a
	for i in 1 2 3 4; do
		check "$i: $from hands it over" bm_on $from hand-over disk
		check "$i: $to has it" one_has $to $from
		check "$i: the copy that was left is there" wait_for 20 on $to job_is disk .progress.target in-sync
		check "$i: its guest works" on $to state_load
		check "$i: nothing is copied" nothing_copied $to
		check "$i: they are equal" pair_on $to
		swap=$from from=$to to=$swap
	done
	check "all is there" all_on a
}

# The other host's storage is not in the way of the guest.
cut_off() {
	check "b is armed" bm_on a migrate arm disk --to host-b
	check "a guest on a" on a start_load disk --initial any
	check "the network is cut" cut_network
	check "the guest goes on" wait_for 15 moves_on a
	check "the network is back" join_network
	check "the copies become equal" pair_on a
	check "the guest has seen no error" on a end_load
	check "b has the disk by a write" writes b
	check "a guest on b" on b start_load disk --initial any
	check "the network is cut" cut_network
	check "the guest goes on" wait_for 15 moves_on b
	check "a's guest is held" held a
	check "the network is back" join_network
	check "the copies become equal" pair_on b
	check "a, whose guest writes, too: both run" wait_for 10 grep -q 'both run' "$dir/a/run/disks/disk.log"
	check "a's write was refused" wait "$held"
	lib_forget "$held"
	check "b has noticed nothing" on b end_load
	check "and has the disk" one_has b a
	check "all is there" all_on b
}
moves_on() {
	local before
	before=$(on "$1" show disk .requests.write)
	sleep 0.5
	[ "$(on "$1" show disk .requests.write)" -gt $((before + 100)) ]
}
held() {
	spawn refused "$1" 108
	held=$pid
	sleep 1
	! lib_gone "$held"
}

deaths() {
	local host
	check "who was refused is told nothing else" bm_on b migrate arm disk --to host-a
	for host in a b; do
		check "a guest on b" on b start_load disk --initial any --reconnect 60
		check "$host's process dies" kill -KILL "$(on $host show disk .pid)"
		check "the copies become equal again" pair_on b
		[ $host = a ] || check "not all was copied for that" kept_some
		check "the guest has seen no error" on b end_load
	done
	check "b is asked for the disk while a is away: it passes when they are equal again" asked_early
	check "a has it" writes a
	check "and b has not" one_has a b
	check "the copies become equal" pair_on a
	check "b is armed" bm_on a migrate arm disk --to host-b
	check "and has it again" writes b
	check "the copies become equal" pair_on b
	check "b's host dies, and comes back" reboot_b
	check "the copies become equal" pair_on b
	check "a has the disk when its guest writes" writes a
	check "and b has not" one_has a b
	check "all is there" all_on a
}
kept_some() { [ "$(on b job disk .resumed.from)" = map ] && [ "$(on b job disk .resumed.kept_bytes)" -gt 0 ]; }
asked_early() {
	local daemon p
	daemon=${host_daemon[a]} p=$(on a show disk .pid)
	kill -STOP "$daemon" && kill -KILL "$p" && writes b || return
	(sleep 1; kill -CONT "$daemon") &
	said '"kept":true' call b yield "{\"to\":\"host-a\",\"keep\":true,\"generation\":$(record a .generation)}"
}
reboot_b() {
	local p
	p=$(on b show disk .pid)
	host_kill b && kill -KILL "$p" && wait_for 10 lib_gone "$p" && rm -rf "$dir/b/run" && host_start b &&
		wait_for 10 role_is b active
}

# Both have a record that says "passed on"; the last one counts.
answers_lost() {
	check "a passes it on, and b does not hear of it" passed_on a b
	check "twice is once" wait_for 5 said '"generation":' call a yield '{"to":"host-b","keep":true,"generation":1}'
	check "both are standbys" both_standby
	check "b, which does not know, passes nothing on" said E_BUSY call b yield "{\"to\":\"host-a\",\"keep\":true,\"generation\":$(record a .generation)}"
	check "but has it now" wait_for 5 one_has b a
	check "equal" pair_on b
	check "b passes it on, and a does not hear of it" passed_on b a
	check "both are standbys" both_standby
	check "b, whose word of before counts no more, is not told so by a" \
		said 'E_BUSY' call a yield "{\"to\":\"host-b\",\"keep\":true,\"generation\":$(record b .generation)}"
	check "a takes it" wait_for 5 one_has a b
	check "all is there" all_on a
}
both_standby() { wait_for 5 role_is a standby && role_is b standby; }
passed_on() { # HOST TO
	local until=$(($(date +%s) + 60))000000000
	said '"result":' call "$1" offer "{\"to\":\"host-$2\",\"until\":$until,\"returns\":true}" &&
		said '"result":' call "$2" arm "{\"time_ns\":60000000000,\"window_ns\":60000000000,\"back\":\"$(back_uri "$1")\"}" &&
		said '"kept":true' call "$1" yield "{\"to\":\"host-$2\",\"keep\":true,\"generation\":$(record "$2" .generation)}"
}
# As the other host reaches it: of the last job's two images the one that is there.
back_uri() { record "$(other "$1")" '.job | .source, .target' | grep "host-$1" | tail -n 1; }
other() { [ "$1" = a ] && echo b || echo a; }

the_end() {
	check "the window's end" bm_on a release disk
	check "both images are equal" cmp "$(in_store a disk.img)" "$(in_store b disk.img)"
	check "b has a copy of before" role_is b standby
	check_fails "which vouches for nothing" 3 "E_NOT_READY" bm_on b recover disk --resume-here --peer-is-dead
	check_fails "and is not used for nothing" 3 "E_EXISTS.*--overwrite" bm_on a migrate arm disk --to host-b
}

begin
fails_back
there_and_back
cut_off
deaths
answers_lost
the_end
