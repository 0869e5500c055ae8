#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk goes there and back between two hosts, its storage under load and then the disk itself, while
# processes and daemons of either host are killed and the network is cut at random moments: nothing is
# lost, the guest sees no error, and never do both have the disk. CYCLES=… moves (default 2), with LONG=1
# a hundred: fifty times there and back.
# shellcheck source-path=SCRIPTDIR source=../system/hosts.bash
. "$(dirname "$0")/../system/hosts.bash"

need_hosts
cycles=${CYCLES:-${LONG:+100}}
cycles=${cycles:-2}
# shellcheck disable=SC2034 # disk.bash has them
BEFORE=0.3 AFTER=0.3
here=a there=b

begin() {
	check "two hosts are paired" hosts_up
	bm_on a peer allow host-b --receive "$store" >>"$dir/log"
	bm_on b peer allow host-a --receive "$store" >>"$dir/log"
	make_image "$dir/disk.img"
	cp --sparse=always "$dir/disk.img" "$(in_store a disk.img)"
	check "a serves a disk" on a serve disk "$store/disk.img"
	watch_both &
	watcher=$!
	lib_pids+=("$watcher")
}

# Never two. A record says so without a role; what S said must be true before and after T says it.
record_role() { sed -n '1s/.*"role":"\([a-z]*\)".*/\1/p;t;1s/.*/active/p' "$dir/$1/state/disks/disk/record" 2>/dev/null; }
watch_both() {
	local before between after
	while [ ! -e "$dir/stop" ]; do
		before=$(record_role a) between=$(record_role b) after=$(record_role a)
		if [ "$before$between$after" = activeactiveactive ]; then
			cat "$dir"/[ab]/state/disks/disk/record >>"$dir/both"
		fi
		sleep 0.002
	done
}
never_two() { [ ! -e "$dir/both" ] || { cat "$dir/both"; return 1; }; }

# disturb: one fault, after up to 0.4 s; what is undone by itself, is.
disturb() {
	local host=$here p
	[ $((RANDOM % 2)) -eq 0 ] && host=$there
	sleep "0.$((RANDOM % 4))$((RANDOM % 10))"
	case $1 in
	process)
		p=$(on "$host" show disk .pid 2>/dev/null)
		[ -z "$p" ] || [ "$p" = null ] || kill -KILL "$p" 2>/dev/null
		;;
	daemon)
		host_kill "$host"
		sleep "0.$((RANDOM % 10))"
		host_start "$host"
		;;
	network)
		cut_network "$host"
		sleep "$((RANDOM % 2)).$((RANDOM % 10))"
		join_network
		;;
	esac >>"$dir/log" 2>&1
	echo "$1 $host" >>"$dir/faults"
}
faults=(process process daemon network none)
random_fault() { echo "${faults[RANDOM % ${#faults[@]}]}"; }

stuck() {
	for host in a b; do
		bm_on $host show disk
		tail -n 15 "$dir/$host/run/disks/disk.log"
	done
	tail -n 2 "$dir/faults"
}

# Every other move keeps a copy of where the disk comes from: the next one has nothing to move.
pair() { [ "$(on "$here" job disk .phase 2>/dev/null)" = undo-window ]; }
equal() { [ "$(on $here job disk .progress.target 2>/dev/null)" = in-sync ]; }
pair_is_equal() {
	local end=$((SECONDS + 60))
	disturb "$(random_fault)"
	until pair && equal; do
		[ $SECONDS -lt $end ] || { stuck; return 1; }
		sleep 0.1
	done
}
is_there() { [[ $(on $here show disk .uri 2>/dev/null) == bm://host-$there/* ]] && { pair || ! moving; }; }
moving() { [ "$(on $here job disk .state 2>/dev/null)" = running ]; }
# The storage: begun again when it came to nothing.
storage_moves() {
	local end=$((SECONDS + 60)) first=1
	pair && { pair_is_equal; return; }
	until is_there; do
		[ $SECONDS -lt $end ] || { stuck; return 1; }
		if ! moving; then
			bm_on $here relocate disk "bm://host-$there$store/disk.img" --overwrite --guest-latency off --detach \
				"${window[@]}" \
				>>"$dir/log" 2>&1
			[ -z "$first" ] || disturb "$(random_fault)"
			first=''
		fi
		sleep 0.1
	done
}

arrived() { [ "$(on $there show disk .role 2>/dev/null)" = active ]; }
# The disk: whatever became of the first attempt, whoever has it says how it goes on.
disk_passes() {
	local end=$((SECONDS + 60)) attempt
	bm_on $here hand-over disk >>"$dir/log" 2>&1 &
	attempt=$!
	disturb "$(random_fault)"
	wait $attempt
	until arrived; do
		[ $SECONDS -lt $end ] || { stuck; return 1; }
		if [ "$(record_role $here)" = active ]; then
			bm_on $here hand-over disk
		else
			bm_on $there recover disk
		fi >>"$dir/log" 2>&1
		sleep 0.1
	done
}
all_there() { state_fits "$(nbd_uri "$dir/$there/run/disks/disk.nbd" disk)" --reconnect 30; }
gone_here() { [[ $(record_role $here) == @(retired|standby) ]]; }
released() { bm_on $there release disk >>"$dir/log" 2>&1 || ! here=$there pair; }

one_move() {
	window=(--undo-window 1h)
	[ $(($1 % 4)) -ne 0 ] || window=()
	check "$1: a guest on host $here" on $here start_load disk --initial any --reconnect 60
	check "$1: its storage moves to $there" storage_moves
	check "$1: the guest has seen no error" on $here end_load
	check "$1: the disk passes to $there" disk_passes
	check "$1: $here knows" gone_here
	check "$1: nothing is lost" all_there
	check "$1: it was never with both" never_two
	[ $(($1 % 4)) -ne 3 ] || check "$1: no copy is kept any more" released
}

begin
for ((move = 1; move <= cycles; move++)); do
	one_move "$move"
	swap=$here here=$there there=$swap
done
touch "$dir/stop"
echo "# faults: $(sort "$dir/faults" | uniq -c | tr -s ' \n' ' ')"
