#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine with a network, that somebody outside talks with all the time, moves to another host and back,
# in one pause each: no record is lost, no request fails, a ping and a TCP connection go on, no frame of
# the guest leaves the target before the decision, nor the source after it, and the pause that is told is
# the one that is seen from outside. Rehearsals leave it as it was. $ROUNDS there and back and $REHEARSALS:
# by default 1 and 1, LONG=1: 20 and 10. With ACCEL=kvm what is told is held against what the guest says, too.
# shellcheck source-path=SCRIPTDIR source=network.bash
. "$(dirname "$0")/network.bash"

need_machine
have cc || { skip "a guest with a network" "a C compiler"; exit; }
rounds=${ROUNDS:-${LONG:+20}} rehearsals=${REHEARSALS:-${LONG:+10}}
pauses=() begun=0 rarp=8035 arp=0806

# goes FROM TO
goes() {
	begun=$(date +%s%N)
	check "it is watched" watch "$1"
	watched_there "$2"
	check "$1 to $2: it moves" move "$1" "$2"
	grep -q "runs on host" "$dir/out" || { tail -n 8 "$dir"/{a,b}/run/moves/*.log | sed 's/^/# /'; exit; }
	check "it runs there" wait_for 10 machine_is "$2" running
	check "its disks are there, and nowhere else" wait_for 20 only_on "$2" "$1"
	check "its guest goes on, and is heard" goes_on_and_answers
	check "it was stopped once, and its QEMU on $1 is gone" stopped_once
	report=$(bm_on "$1" machine show vm --json)
	decided=$(decided_at "$1")
	check "$2 sent nothing of it before the decision" sent_none "to-$2" "$begun" "$decided"
	check "$1 sent nothing of it after that" sent_none "to-$1" "$decided" "$(date +%s%N)"
	check "it is announced by $2" sent_some "to-$2" "$decided" "$(date +%s%N)" "$rarp"
	check "and its other card" announced_by "$2" "$decided"
	check "what is told of the pause is what is seen" same_pause "$2"
	sed 's/^/# /' "$dir/out"
	check "ping, TCP and UDP have not noticed" outside faults "$begun"
	check "nothing is lost" sound_machine "$2"
}
goes_on_and_answers() { goes_on && answers; }
# decided_at HOST: by the log of its last move; ns since 1970.
decided_at() {
	local line
	line=$(cat "$dir/$1"/run/moves/*.log | grep ': passed$' | sort | tail -n 1)
	date -d "${line%% blockmirror-move:*}" +%s%N
}
sent() { outside frames "$@"; }
sent_none() { local n; n=$(sent "$@"); echo "$n frames"; [ "$n" -eq 0 ]; }
sent_some() { [ "$(sent "$@")" -gt 0 ]; }

announced_by() { # HOST SINCE
	local now
	now=$(date +%s%N)
	sent_some "to-$1" "$2" "$now" "$rarp/$other_mac" && sent_some "to-$1" "$2" "$now" "$arp/$other_mac"
}
# apart A B: whether they are more than max(20 %, 10 ms) apart, and more than $3.
apart() {
	local most=$(($2 / 5 > 10000000 ? $2 / 5 : 10000000))
	[ "$most" -ge "${3:-0}" ] || most=$3
	[ $(($1 > $2 ? $1 - $2 : $2 - $1)) -gt "$most" ]
}
event_at() { sed -n "s/^$2 at //p" "$dir/$1"; }
# same_pause HOST: what is told of a move, what both QEMUs say, and since when until when the network saw nothing of
# the machine's card; QEMU announces it as soon as it runs. The guest itself is heard later than that: without KVM
# the target's QEMU has to translate all its code anew, which is shown.
same_pause() {
	local told stop run from to seen
	told=$(jq .last.pause_ns <<<"$report")
	stop=$(event_at events STOP) run=$(event_at events.there RESUME)
	read -r from to _ < <(outside pause "$decided") && seen=$(outside first "to-$1" "$decided" "$guest_mac") || return
	echo "told $((told / 1000)) us, QEMU's $(((run - stop) / 1000)); silent since $(((stop - from) / 1000)) us before," \
		"seen $(((seen - run) / 1000)) and heard $(((to - run) / 1000)) after it; $(jq -c .last.pause <<<"$report")"
	pauses+=("$((told / 1000000))/$(((run - stop) / 1000000))/$(((seen - stop) / 1000000))/$(((to - from) / 1000000))")
	! apart "$told" $((run - stop)) && ! apart "$told" $((seen - stop)) && [ "$from" -le $((stop + 20000000)) ] &&
		[ "$to" -ge "$run" ] && { [ "$accel" = tcg ] || ! apart "$told" $((to - from)); }
}
# same_silence: what is told of a rehearsal, and how long the guest was not heard. Its datagrams are as far
# apart as they are when it runs, too: no more can be seen by them.
same_silence() {
	local told stop from to other
	told=$(bm_on a machine show vm --json | jq .last.pause_ns)
	stop=$(event_at events STOP)
	read -r from to other < <(outside pause $((stop + told / 2))) || return
	echo "told $((told / 1000)) us, silent for $(((to - from) / 1000)); otherwise for up to $((other / 1000)) us"
	! apart "$told" $((to - from)) "$other"
}

rehearsed() {
	begun=$(date +%s%N)
	check "it is watched" watch a
	check "it is rehearsed" move a b --rehearse
	check "its guest goes on, and is heard" goes_on_and_answers
	check "it was stopped once, and ran on" stopped_and_resumed
	stop "$watcher"
	check "what is told of the pause is what is seen" same_silence
	sed 's/^/# /' "$dir/out"
	check "its disks are here, and nowhere else" wait_for 20 only_on a b
	check "b has nothing of it" wait_for 10 no_copy
	check "it is announced by a" wait_for 5 sent_some to-a "$begun" "$(date +%s%N)0" "$rarp"
	check "and its other card" announced_by a "$begun"
	check "b sent nothing of it" sent_none to-b "$begun" "$(date +%s%N)"
	check "ping, TCP and UDP have not noticed" outside faults "$begun"
	check "nothing is lost" sound_machine a
}
stopped_and_resumed() {
	cat "$dir/events"
	[ "$(grep -cx STOP "$dir/events")" -eq 1 ] && [ "$(grep -cx RESUME "$dir/events")" -eq 1 ]
}
no_copy() { [ ! -e "$(in_store b disk0.img)" ] && [ ! -e "$(in_store b disk1.img)" ]; }

network_machine_up
for _ in $(seq "${rehearsals:-1}"); do rehearsed; done
for _ in $(seq "${rounds:-1}"); do
	goes a b
	goes b a
done
echo "# pauses with $accel, ms, told/by QEMU/seen/heard: ${pauses[*]}"
