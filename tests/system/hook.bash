# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of hooks: disk.bash, and a home-made manager. It has two ways to us, and no other:
# it calls "blockmirror hook relocate", and its own program is called, from $dir/hooks.
# shellcheck disable=SC2034
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "${BASH_SOURCE[0]}")/disk.bash"

heard=$dir/heard orders=$dir/orders
export BLOCKMIRROR_HOOKS=$dir/hooks
mkdir -p "$orders"
mkdir -m 755 "$dir/hooks"

# The manager's program notes what it is told. A file $orders/EVENT has what it does then.
install_hook() { # NAME
	cat >"$dir/hooks/$1" <<-EOF
		#!/bin/bash
		facts=\$(cat)
		echo "\$facts" >>"$heard"
		env | grep ^BLOCKMIRROR_ | sort >"$dir/environment.\$1"
		[ ! -e "$orders/\$1" ] || . "$orders/\$1"
	EOF
	chmod 755 "$dir/hooks/$1"
}
order() { echo "$2" >"$orders/$1"; } # EVENT SHELL
free() { rm -f "$orders"/*; }
# hold EVENT: it does not come back before go.
hold() {
	rm -f "$dir/go"
	order "$1" "until [ -e $dir/go ]; do sleep 0.05; done"
}
go() {
	free
	touch "$dir/go"
}
# heard_of FILTER: what jq makes of all that was heard.
heard_of() { jq -rs "$1" "$heard"; }
events() { heard_of '[.[] | .event] | join(" ")'; }
# times EVENT: how often that happened, however often it was told.
times() { heard_of "[.[] | select(.event == \"$1\") | .event_id] | unique | length"; }
told() { [ "$(events)" = "$1" ] || { events; return 1; }; }
forget_heard() { : >"$heard"; }

# ask JSON: the answer is in $dir/answer.
ask() { "$bm" hook relocate <<<"$1" | tee "$dir/answer"; return "${PIPESTATUS[0]}"; }
# ask_at_once JSON: eight calls, whose answers are $dir/many.1 to 8.
ask_at_once() {
	local i pids=()
	for i in 1 2 3 4 5 6 7 8; do
		"$bm" hook relocate <<<"$1" >"$dir/many.$i" &
		pids+=($!)
	done
	wait "${pids[@]}"
	cat "$dir"/many.?
}
answer() { jq -r "$1" "$dir/answer"; }
# asks STATE JSON: that is the answer's state.
asks() { ask "$2"; [ "$(answer .state)" = "$1" ]; }
under_way() { ask "$1" && [[ $(answer .state) = @(accepted|running) ]]; }
is_done() { asks "done" "$1"; }
# request ID TARGET [OPTIONS [MORE]]: for disk "disk".
request() { echo "{\"id\":\"$1\",\"disk\":\"disk\",\"target\":\"$2\",\"options\":${3:-{\}}${4:-}}"; }

start_daemon() {
	spawn "$BUILD/blockmirrord" --run-dir "$dir/run" --state-dir "$dir/state" --hooks "$dir/hooks" "$@"
	daemon=$pid
	# A socket that a killed one has left is there, too; and without one a disk is served all the same.
	wait_for 10 lib_listens "$dir/run/blockmirrord.sock" "$daemon" && ! lib_gone "$daemon"
}
