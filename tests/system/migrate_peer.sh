#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine's move to a host that is not what it should be, by its certificate or by what it speaks; and of a machine
# whose VMM does not answer, has ended, or lets go of its QMP connection half way, at each command: it stays, and
# the other host has nothing of it.
# shellcheck source-path=SCRIPTDIR source=plain_machine.bash
BY=x509
. "$(dirname "$0")/plain_machine.bash"

need_plain

certificates() {
	check "there is another authority" make_authority "$dir/other"
	AUTHORITY=$dir/other host_certify b
	refused "b's certificate is another authority's" E_ACCESS "not signed by the authority" 3
	host_certify b cn=b dns_name=host-y ip_address=10.77.0.2
	refused "b's certificate is another host's" E_ACCESS "is not for dns:host-b" 3
	host_certify b
	check "with its own it could go" move --dry-run
}

# The two agree on a version before anything else.
versions() {
	host_stop b
	log=$dir/other.log spawn_on b /usr/bin/python3 tests/system/other_peer.py 10.77.0.2 7700 "$dir/b/tls"
	check "b is one that speaks another version" wait_for 10 grep -q ^ready "$dir/other.log"
	refused "b speaks another version" E_UNSUPPORTED "speaks versions 7 to 9"
	check "nothing else was asked" not grep -v '^ready$\|"hello"' "$dir/other.log"
	stop "$pid"
	check "b is as it was" host_start b
}

silent() {
	kill -STOP "$machine"
	refused "its VMM does not answer" E_QMP_BUSY "takes one" 3
	kill -CONT "$machine"
	check "it could go again" move --dry-run
}

# seen_through MODE NUMBER: vm is known by a monitor that does this to the NUMBER-th command from here on.
seen_through() {
	rm -f "$dir/a/vm.through" "$dir/through"
	as_it_is && log=$dir/through spawn_on a /usr/bin/python3 tests/system/qmp_proxy.py "$dir/a/vm.through" "$dir/a/vm.too" after 1000000 &&
		through=$pid && wait_for 10 test -S "$dir/a/vm.through" && bm_on a machine add vm --qmp "$dir/a/vm.through" || return
	stop "$through"
	log=$dir/through spawn_on a /usr/bin/python3 tests/system/qmp_proxy.py "$dir/a/vm.through" "$dir/a/vm.too" "$1" "$2"
	through=$pid
	wait_for 10 listens
}
listens() { grep -q "$dir/a/vm.through" <(on a ss -lxH); }
runs() { too vm query-status | grep -q '"running": true'; }
settled() { no_move && is_empty_there && [ "$(on a show vm .gate)" = active ] && runs; }

# Whose command line it is cannot be seen through that: b's hook knows it, with other sockets.
known_there() {
	jq -Rs --arg a "$dir/a/vm." --arg b "$dir/b/vm." 'split("\u0000") | map(select(. != "") | split($a) | join($b))' \
		"/proc/$machine/cmdline" >"$dir/arguments" && cp etc/hooks/qemu/start-target "$dir/start" || return
	# shellcheck disable=SC2016 # the hook's
	hook start-target "jq --slurpfile a '$dir/arguments' '.description.arguments = \$a[0]' \"\$1\" >'$dir/description'" \
		"exec '$dir/start' '$dir/description'"
}
# A rehearsal does all but the decision.
let_go() {
	local mode n at
	check "b's hook knows how it is started" known_there
	for mode in before after; do
		for n in 2 7 13 19 23 25 27 29 31 33 35 37 39 41 43 45 50; do
			seen_through $mode $n >>"$dir/log" 2>&1 || { not_ok "$mode $n: it is known"; return; }
			move --rehearse --pause-budget 5s >"$dir/out" 2>&1
			at=$(grep "^$mode" "$dir/through")
			check "it lets go $mode command $n ($at): it stays, and b has nothing" wait_for 40 settled
			stop "$through"
			[ -n "$at" ] || break
		done
	done
	wait_for 20 as_it_is
	check "it can be rehearsed" move --rehearse --pause-budget 5s
}

ended() {
	kill9 "$machine"
	check_fails "its VMM has ended" 7 "E_UNREACHABLE: cannot connect to .*vm.qmp" move
}

plain_up
for part in ${PARTS:-certificates versions silent let_go}; do
	$part
	check "$part: nothing has changed" wait_for 20 settled
done
ended
