#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# blockmirror-nbd with 64 clients that verify what they read, some of which are killed at any moment
# and replaced, for $LOAD_SECONDS (3; make check-long: 60), built with ASan and UBSan, and with TSan.
# Nothing is reported or read wrongly; descriptors and memory are back to where they were after the
# first two seconds of it.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
have jq || { skip "many clients" "jq is missing"; exit; }

seconds=${LOAD_SECONDS:-3} clients=64 each=$((1 << 20))
seed=${SEED:-$((RANDOM * 32768 + RANDOM))}
RANDOM=$seed
echo "# seed $seed"
# What the sanitizers keep of freed blocks looks like blocks that were not freed.
export ASAN_OPTIONS=detect_leaks=1:quarantine_size_mb=1:allocator_release_to_os_interval_ms=100
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=flush_memory_ms=5000
slot_pid=() killed=0
shm=$dir
[ ! -w /dev/shm ] || shm=$(mktemp -d /dev/shm/blockmirror-test.XXXXXX)
on_exit "rm -rf '$shm'"

descriptors() { find "/proc/$server/fd" -mindepth 1 | wc -l; }
memory() { awk '/VmRSS/ { print $2 }' "/proc/$server/status"; }
sum() { grep -h '^{' "$dir"/client.* | jq -s "map(.$1) | add"; }

# begin_client SLOT SECONDS: each has a part of the image to itself, and knows nothing of what its
# predecessor left there. When its time is over it reads back what it wrote.
begin_client() {
	log=$dir/client.$1 spawn "$hammer" --time "$2" --depth 4 --sizes 512:64K --initial any --json \
		--patience 30 --seed "$RANDOM" --range $(($1 * each)):$each "$uri"
	slot_pid[$1]=$pid
}

connected() { [ "$(descriptors)" -ge $((before + clients)) ]; }

# begin_clients SECONDS
begin_clients() {
	local slot
	rm -f "$dir"/client.*
	for ((slot = 0; slot < clients; slot++)); do begin_client $slot "$1"; done
}

# On a busy machine one may need so long for the handshake that it is turned away, which is logged.
end_clients() {
	local p bad=0 refused=0
	for p in "${slot_pid[@]}"; do
		wait "$p"
		case $? in
			0) ;;
			7) refused=$((refused + 1)) ;;
			*) bad=$((bad + 1)) ;;
		esac
		lib_forget "$p"
	done
	[ $refused -le "$(grep -c 'took too long to choose' "$dir/server.log")" ] || bad=$((bad + refused))
	[ $bad -eq 0 ] || { grep -hv '"status":0}' "$dir"/client.* | grep -v seed; }
	echo "$bad of $clients clients are not content, $refused were too slow"
	return $bad
}

# load SECONDS: one after the other is killed in the middle of whatever it is doing.
load() {
	local slot now end
	begin_clients $(($1 + 2))
	wait_for 5 connected || echo "not all were there at the same time"
	now=${EPOCHREALTIME/./} end=$((${EPOCHREALTIME/./} + $1 * 1000000))
	while [ "$now" -lt $end ]; do
		sleep 0.0$((RANDOM % 9 + 1))
		slot=$((RANDOM % clients)) now=${EPOCHREALTIME/./}
		kill9 "${slot_pid[slot]}"
		killed=$((killed + 1))
		begin_client $slot $(((end - now) / 1000000 + 2))
	done
	end_clients
}

# back_to DESCRIPTORS KIB: clients that are gone are noticed soon.
back_to() {
	echo "descriptors $(descriptors), at first $1; $(memory) KiB, at first $2"
	[ "$(descriptors)" -eq "$1" ] && [ "$(memory)" -le "$2" ]
}

# many KIND SLACK: of a server built that way; KiB that it may have grown.
many() {
	local kind=$1 kib program=$BUILD/$1/blockmirror-nbd
	[ -x "$program" ] || { skip "$kind" "make $kind-tests was not run"; return; }
	truncate -s $((clients * each)) "$shm/disk.img"
	log=$dir/server.log
	lib_serve "$dir/socket" "$program" --unix "$dir/socket" "$shm/disk.img"
	server=$pid
	before=$(descriptors)
	check "$kind: $clients clients, of which one is killed now and then" load 2
	wait_for 5 back_to "$before" 100000000 >"$dir/out"
	result $? "$kind: no descriptor is left" "$dir/out"
	kib=$(memory) killed=0
	check "$kind: once more, for $seconds s" load "$seconds"
	tail -n 1 "$dir/out" | sed 's/^/# /'
	echo "# $kind: $seconds s, $killed killed, $(sum requests) requests by those that were not"
	wait_for 10 back_to "$before" $((kib + $2)) >"$dir/out"
	result $? "$kind: descriptors and memory are back to where they were" "$dir/out"
	echo "# $(tail -n 1 "$dir/out")"
	kill -TERM "$server"
	wait "$server"
	result $? "$kind: it ends in order" "$dir/server.log"
	lib_forget "$server"
	! grep -E -A 30 'Sanitizer|runtime error' "$dir/server.log" >"$dir/out"
	result $? "$kind: nothing was reported" "$dir/out"
	rm "$shm/disk.img" "$dir/server.log"
}

# Blocks that are in use hold the pages around them, and who was there at the same time is chance.
# What is lost for good is LeakSanitizer's to find.
many asan 32768
many tsan 32768
