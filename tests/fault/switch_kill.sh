#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk goes to and fro under load, and its process is killed as near as can be to the moment when
# authority passes: the kills home in on it. Whichever image the record names is served, and has all
# that the guest was told is written. $ROUNDS times.
# shellcheck source-path=SCRIPTDIR/../system source=../system/disk.bash
. "$(dirname "$0")/../system/disk.bash"

have nbdkit jq getfattr || { skip "kills at the switch" "nbdkit, jq, attr"; exit; }
half=$((8 * M)) # all of it
source=$dir/a.img target=$dir/b.img
delay=20000 # µs from the call of switch to the kill
stayed=0 passed=0
head -c $half /dev/urandom >"$source"
truncate -s $half "$target" # one that a job has made goes with it when that is cancelled

# crash: SIGKILL; the next process begins while the kernel may still end the old one's I/O.
crash() {
	kill -KILL "$disk_pid"
	lib_forget "$disk_pid"
	timeout 60 "$bm" serve disk || return
	disk_pid=$(show disk .pid)
	lib_pids+=("$disk_pid")
}

# is IMAGE STATE MARK-OF-SOURCE MARK-OF-TARGET
is() {
	[ "$(show disk '"\(.uri) \(.job.state)"')" = "$1 $2" ] && marked "$source" "$3" &&
		marked "$target" "$4"
}

round() {
	local switcher
	"$bm" relocate disk "$target" --overwrite --switch manual || return
	"$bm" switch disk >>"$dir/log" 2>&1 &
	switcher=$!
	sleep "$(printf '0.%06d' $delay)"
	crash || return
	wait $switcher
	lib_gone "$load" && { echo "the load has ended"; return 1; }
	where=$(show disk .uri)
	if [ "$where" = "$source" ]; then
		is "$source" running active incomplete && "$bm" job wait disk --for in-sync &&
			"$bm" job cancel disk && is "$source" cancelled active incomplete
	else
		is "$target" "done" retired active
	fi
}

serve disk "$source"
start_load disk --initial any --reconnect 60 --iops 600 --sizes 512:64k
for i in $(seq "${ROUNDS:-30}"); do
	where='' after=$delay step=$((RANDOM % 6000))
	lib_run round
	result $? "round $i: killed after $after us, the disk is on ${where##*/}" "$dir/out"
	if [ "$where" = "$target" ]; then
		target=$source source=$where
		passed=$((passed + 1)) delay=$((delay > step ? delay - step : 0))
	else
		stayed=$((stayed + 1)) delay=$((delay + step))
	fi
done
check "it stayed $stayed times, it passed $passed times" test $stayed -gt 0 -a $passed -gt 0
check "the guest lost nothing, through all of that" end_load
check "it was cut off each time" json_is "$report" ".reconnects >= ${ROUNDS:-30}"
check "it is there for others, too" image_fits "$source"
check "it is stopped in the end" unserve disk
