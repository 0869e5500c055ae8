# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced, after machine.bash, by tests of a move that is in doubt: hosts that die, and hook fence.

# The hooks of etc, and fence, which says what the test knows: that a host has died.
make_hooks() {
	mkdir "$dir/hooks" && cp "$hooks"/* "$dir/hooks/" || return
	cat >"$dir/hooks/fence" <<-END
		#!/bin/bash
		echo asked >>"$dir/asked"
		[ -e "$dir/dead.\$(jq -r .peer "\$1")" ] || { echo "it may live" >&2; exit 1; }
	END
	chmod +x "$dir/hooks/fence" && hooks=$dir/hooks
}
fences() { : >"$dir/dead.host-$1"; }
alive() { rm -f "$dir/dead.host-$1"; }

# dies HOST: all that runs there, at once.
dies() {
	local pids p
	mapfile -t pids < <(host_processes "$1")
	kill -KILL "${pids[@]}"
	for p in "${pids[@]}"; do wait "$p" 2>/dev/null; lib_forget "$p"; done
	unset "host_daemon[$1]"
	wait_for 5 nobody_on "$1"
}
nobody_on() { [ -z "$(host_processes "$1")" ]; }

# decides FROM TO STEP: a move, whose process waits at that step.
decides() { rm -f "$dir/asked" "$dir"/{a,b}/run/moves/*.log && begins "$@" --overwrite; }
over() { stop "$client"; rm -f "$dir/move"; }
says() { "${@:2}" >"$dir/said" 2>&1; cat "$dir/said"; grep "$1" "$dir/said"; }
in_doubt() { says "in doubt\|doubt  " bm_on "$1" machine show vm; }
runs_on() { wait_for 60 machine_is "$1" running; }
show_logs() { tail -n 40 "$dir"/{a,b}/log "$dir"/{a,b}/run/{moves,disks}/*.log | cut -c 1-300 | sed "s/^/# /"; }
stop_here() { [ "$lib_failed" -eq 0 ] || { show_logs; exit; }; }
fenced_on() { [ "$(on "$1" show disk0 .gate)$(on "$1" show disk1 .gate)" = fencedfenced ]; }
asked() { [ -s "$dir/asked" ]; }

# Its guest writes from the first record on.
started_again() {
	: >"$console.0"
	: >"$console.1"
	start_machine && wait_for "${BOOT:-90}" ticked 60 60
}
not_begun() { ! grep -h ": started" "$dir/$1"/run/moves/*.log; }
# source_gone [HOST OTHER]
source_gone() { dies "${1:-a}" && wait_for 20 in_doubt "${2:-b}"; }

# goes_on_alone: a, which has decided a move to b, dies; hook fence knows; then it comes back.
goes_on_alone() {
	check "a dies, b is in doubt" source_gone
	check "it runs nowhere" not_begun b
	fences a
	check "the hook knows: it runs on b" runs_on b
	check "its guest goes on" goes_on
	over
	alive a
	check "a is back" host_start a
	check "it learns of that" wait_for 60 only_on b a
}
