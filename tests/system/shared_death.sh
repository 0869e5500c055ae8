#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk on storage that both hosts reach passes, and somebody dies, is cut off, or cannot reach the
# storage on the way: one of the two has it at any time, it comes to an end, and nothing is lost.
# shellcheck source-path=SCRIPTDIR source=shared.bash
. "$(dirname "$0")/shared.bash"

have nbdinfo qemu-nbd socat jq || { skip "disks on storage of both hosts, and deaths" "libnbd-bin, qemu-utils, socat, jq"; exit; }
need_hosts
BEFORE=0.3 AFTER=0.3 kind='' to='' how=()

begin() {
	check "two hosts are paired" hosts_up
	check "they have a folder in common" pool_up
	make_image "$dir/disk.img"
	check "they may have disks of each other there" allow_pool
}
served() { cp --sparse=always "$dir/disk.img" "$(in_pool disk.img)" && on a serve disk "$pool/disk.img"; }
arm() { check "$kind: $2 is armed" bm_on "$1" migrate arm disk --to "host-$2" "${how[@]}"; } # FROM TO
load() { # HOST: something else is there than before
	check "$kind: a guest works on $1" on "$1" start_load disk --initial any
	check "$kind: it is busy" on "$1" works
	check "$kind: and ends" on "$1" end_load
}
has() { # HOST OTHER
	check "$kind: $1 has it, and nobody else" one_has "$1" "$2"
	check "$kind: every sector is there" all_on "$1"
	check "$kind: $2 has no disk any more" wait_for 10 has_none "$2"
}
not() { ! "$@"; }
process() { on "$1" show disk .pid; }
is_written() { # COMMAND…: what is held meanwhile is done afterwards
	spawn writes "$to"
	local write=$pid
	sleep 1
	check "$kind: what $to writes is held" not lib_gone "$write"
	check "$kind: $1" "${@:2}"
	check "$kind: the write is carried out" wait "$write"
	lib_forget "$write"
}

processes() {
	load a
	arm a b
	check "$kind: both processes die" kill_both
	check "$kind: b is armed still" wait_for 20 gate_is b armed
	check "$kind: a serves it" wait_for 20 role_is a active
	check "$kind: b writes" writes b
	has b a
	load b
	arm b a
	check "$kind: b's daemon dies" host_kill b
	to=a is_written "and is back" host_start b
	has a b
	arm a b
	check "$kind: the network is cut" cut_network
	to=b is_written "and is back" join_network
	has b a
	check "$kind: it goes back" bm_on b hand-over disk --to host-a "${how[@]}"
	has a b
}
kill_both() { kill -KILL "$(process a)" "$(process b)"; }

# As soon as the record says that the disk is passed on: before the storage is let go of, or after.
decided() {
	local victim
	for victim in a b; do
		load a
		arm a b
		check "$kind: the process of $victim dies when a has decided" dies_then "$victim"
		check "$kind: b asks, and has it" wait_for 30 bm_on b recover disk
		has b a
		check "$kind: it goes back" bm_on b hand-over disk --to host-a "${how[@]}"
		has a b
	done
}
dies_then() {
	local victim end
	victim=$(process "$1")
	spawn writes b
	end=$((SECONDS + 10))
	until [ "$(record a .role)" = retired ] || [ $SECONDS -gt $end ]; do :; done
	kill -KILL "$victim"
	wait "$pid" # whatever it was told
	lib_forget "$pid"
	[ "$(record a .role)" = retired ]
}

# b's process was not told; a's has let go, and ended.
answer_lost() {
	load a
	arm a b
	check "$kind: a has passed it on" said '"generation":' call a yield '{"to":"host-b"}'
	check "$kind: to nobody else" said 'E_RETIRED\|E_NOT_FOUND\|refused' call a yield '{"to":"host-x"}'
	check "$kind: b does not know" role_is b standby
	check "$kind: a's process has ended" wait_for 10 has_none a
	check "$kind: b asks, and has it" bm_on b recover disk
	has b a
	check "$kind: twice is once" bm_on b recover disk
	check "$kind: it goes back" bm_on b hand-over disk --to host-a "${how[@]}"
	has a b
}
said() { "${@:2}" >"$dir/said" 2>&1; cat "$dir/said"; grep -q "$1" "$dir/said"; }
call() { # HOST METHOD PARAMS: of the disk's process
	printf '{"jsonrpc":"2.0","id":1,"method":"%s","params":%s}\n' "$2" "$3" |
		socat -t 5 - "UNIX:$dir/$1/run/disks/disk.sock"
}

# The record that decides may last, and may not: nobody is served, and nothing let go of.
doubt() {
	check "$kind: a's daemon ends" host_stop a
	check "$kind: and comes back with a disk that fails to sync once" doubting_host
	arm a b
	check "$kind: b writes" writes b
	check "$kind: it had to ask twice" grep -q "it is not known who has the disk" "$dir/a/run/disks/disk.log"
	has b a
	check "$kind: a's daemon ends again" host_stop a
	check "$kind: and comes back as it was" host_start a
	check "$kind: it goes back" bm_on b hand-over disk --to host-a "${how[@]}"
	has a b
}
doubting_host() {
	ASAN_OPTIONS=verify_asan_link_order=0 LD_PRELOAD=$BUILD/fixtures/record.so host_start a &&
		kill -KILL "$(process a)" && wait_for 20 role_is a active
}

# b does not reach the storage when it is asked for: a keeps the disk.
not_reached() {
	arm a b
	check "$kind: b does not reach the server any more" on b nft 'table inet cut {
		chain out {
			type filter hook output priority 0;
			tcp dport 10809 reject with tcp reset
		}
	}'
	check_fails "$kind: b does not get the disk" 7 "E_UNREACHABLE" env LIMIT=60 "$bm" --run-dir "$dir/b/run" recover disk
	check "$kind: a has it" role_is a active
	check "$kind: and works" writes a
	spawn writes b
	sleep 0.5
	check "$kind: b's write is held" not lib_gone "$pid"
	check "$kind: it reaches it again" on b nft 'delete table inet cut'
	check "$kind: the write is carried out" wait "$pid"
	lib_forget "$pid"
	has b a
	check "$kind: it goes back" bm_on b hand-over disk --to host-a "${how[@]}"
	has a b
}

# a is said to be dead. The lock knows better, as long as a lives.
dead_host() {
	load a
	arm a b
	check "$kind: a's daemon dies" host_kill a
	check_fails "$kind: b does not have it by itself" 7 "E_UNREACHABLE" bm_on b recover disk
	check_fails "$kind: nor by a person's mistake" 3 "E_LOCKED" bm_on b recover disk --resume-here --peer-is-dead
	check "$kind: a's guest works" writes a
	check "$kind: b does not serve it" not role_is b active
	check "$kind: a's process dies, too" kill -KILL "$(process a)"
	check "$kind: b has the disk then" wait_for 60 role_is b active
	check "$kind: every sector is there" all_on b
	check "$kind: b's guest works" writes b
}

begin
kind=path how=(--shared)
check "a serves a disk there" served
processes
decided
answer_lost
doubt
check "it is stopped" wait_for 10 bm_on a stop disk
check "and forgotten" forget_all
kind=NBD how=()
check "a server" start_server "$dir/disk.img"
check "it is allowed" allow_uri "${uri%/}"
check "a serves a disk of it" on a serve disk "$uri"
processes
decided
not_reached
check "it is stopped" wait_for 10 bm_on a stop disk
check "and forgotten" forget_all
kind=path how=(--shared)
check "the pool is allowed again" allow_pool
check "a serves a disk there" served
dead_host
