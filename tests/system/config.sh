#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# blockmirror.conf: its mistakes are told by file and line; parser, manual and example know the same keys;
# what it says holds, and the command line wins. And maintenance, that nothing new lands where it is on.
# shellcheck disable=SC2034,SC2317,SC2015
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have jq || { skip "the configuration" "jq"; exit; }
conf=$dir/blockmirror.conf
json_of() { "${@:2}" >"$dir/json" && jq -e "$1" "$dir/json"; }
check_config() { "$bm" --check-config "$@"; }
# What a file of these lines is told.
told() {
	printf '%s\n' "${@:2}" >"$conf"
	check_config "$conf" >"$dir/told" 2>&1
	[ $? -eq 2 ] && grep -qE -- "$1" "$dir/told" || { cat "$dir/told"; return 1; }
}

mistakes() {
	check "no section" told "blockmirror.conf:1: a section is wanted" 'rate = 5M'
	check "no such section" told 'blockmirror.conf:3: \[disks\]: no such section' '' '[disks]' 'a = b'
	check "no such key" told "blockmirror.conf:2: speed: no such key in \[limits\]; there are per-host," '[limits]' 'speed = 1'
	check "neither key nor section" told "blockmirror.conf:3: neither" '[limits]' 'rate = 5M' 'what'
	check "twice" told "blockmirror.conf:4: rate was given before" '[limits]' 'rate = 5M' '# so' 'rate = 6M'
	check "no value" told "blockmirror.conf:2: rate = : a value" '[limits]' 'rate ='
	check "a long line" told "blockmirror.conf:2: the line is longer than 198" '[limits]' "rate = $(printf '%0300d' 5)"
	check "a datastore without a path" told "blockmirror.conf:2: datastore x has no path" '[datastore x]' 'fill = 5%'
	check "two of one path" told "blockmirror.conf:4: datastore (x|y) is where" '[datastore x]' 'path = /a' '[datastore y]' 'path = /a'
	check "all of them, in order" all_in_order
	check_fails "no such file" 2 "none: No such file" check_config "$dir/none"
	while read -r line; do
		check "$line" told "blockmirror.conf:2: " "[${line%% *}]" "${line#* }"
	done <<-'END'
		limits per-host = 0
		limits per-datastore = 65
		limits rate = fast
		limits window = 22-6
		limits reserve = 105%
		defaults run-dir = run
		defaults hook-timeout = soon
		defaults listen = here
		defaults guest-latency = low
		defaults target-deadline = 1ms
		defaults on-target-loss = panic
		defaults tls-dir = tls
		datastore/x fill = 80
		datastore/x deny = vmdk
		datastore/x path = srv
		peer/x address = 7700
		peer/x receive = srv
	END
}
all_in_order() {
	told . 'a = 1' '[limits]' 'b' 'c = 1' 'per-host = x'
	[ "$(grep -o 'conf:[0-9][0-9]*' "$dir/told" | tr '\n' ' ')" = "conf:1 conf:3 conf:4 conf:5 " ]
}
eval "$(declare -f told | sed '1s/told/told_plain/')"
# "datastore/x" is for the list above: names have no slash.
told() { local args=("${@//datastore\/x/datastore x}"); told_plain "${args[@]//peer\/x/peer x}"; }

# SECTION KEY, of each of the three that must agree.
of_manual() { awk '/^\.Ss \[/ { s = $2; gsub(/[][]/, "", s) } /^\.Sh ENV/ { s = "" } /^\.It Cm/ && s != "" { print s, $3 }' man/blockmirror.conf.5 | sort; }
of_example() { sed -n 's/^#\?\[\([a-z]*\).*/[\1/p; s/^#\?\([a-z-]*\) = .*/\1/p' etc/blockmirror.conf | awk '/^\[/ { s = substr($0, 2); next } { print s, $0 }' | sort -u; }
of_parser() {
	local section
	for section in defaults limits "datastore x" "peer x"; do
		printf '[%s]\nno-such-key = 1\n' "$section" >"$conf"
		check_config "$conf" 2>&1 | sed -n 's/.*no such key in \[\([a-z]*\)\]; there are /\1, /p' |
			awk -F ', ' '{ for (i = 2; i <= NF; i++) print $1, $i }'
	done | sort
}
same() { diff <("$1") <("$2") && [ "$("$1" | wc -l)" -gt 20 ]; }
agreement() {
	check "the manual has the parser's keys" same of_manual of_parser
	check "so has the example" same of_example of_parser
	check "the example is good" check_config etc/blockmirror.conf
	sed 's/^#\([a-z[]\)/\1/' etc/blockmirror.conf >"$conf"
	check "also when all of it counts" check_config "$conf"
	check "the playbook is YAML, and says what is run" /usr/bin/python3 - etc/examples/drain-fleet.yml <<-'END'
		import sys, yaml
		play, = yaml.safe_load(open(sys.argv[1]))
		runs = [str(v) for task in play["tasks"] for v in task.values()]
		assert any("drain" in r and "--dry-run" in r for r in runs) and any("maintenance on" in r for r in runs)
	END
}

it_holds() {
	mkdir -p "$conf.d" "$dir/store"
	printf '[defaults]\nstate-dir = %s/state\nguest-latency = 7ms\n[datastore here]\npath = %s/store\n' "$dir" "$dir" >"$conf"
	printf '[limits]\nwindow = 01:00-02:00\n' >"$conf.d/10-night.conf"
	printf '[limits]\nwindow = 03:00-04:00\n' >"$conf.d/20-later.conf"
	export BLOCKMIRROR_CONFIG=$conf
	check "drop-ins count, the later one" json_of '.config.limits.window == "03:00-04:00"' "$bm" --json --check-config
	unset BLOCKMIRROR_STATE_DIR
	check "records are where it says" "$bm" maintenance on here
	check "that is there" test -e "$dir/state/maintenance.datastores"
	BLOCKMIRROR_STATE_DIR=$dir/other check "the environment wins" json_of '.datastores == []' "$bm" --json maintenance status
	check "so does the command line" json_of '.datastores == []' "$bm" --json --state-dir "$dir/another" maintenance status
	check "a datastore has its name" json_of '.datastore.maintenance' "$bm" --json maintenance status here
	check "and is on no more" json_of '.datastores == []' "$bm" --json maintenance off here
	printf 'nonsense\n' >>"$conf"
	check_fails "with a mistake nothing is drained" 2 "check-config" "$bm" drain here --to "$dir" --keep-source
	check "but disks are listed" "$bm" list
	check_fails "and blockmirrord does not start" 2 "blockmirror.conf:6: neither" "$BUILD/blockmirrord" --run-dir "$dir/run2"
	export BLOCKMIRROR_CONFIG=/dev/null BLOCKMIRROR_STATE_DIR=$dir/state
}

maintenance() {
	make_image "$dir/disk.img"
	mkdir -p "$dir/target" "$dir/cold"
	check "a disk is served" serve disk "$dir/disk.img"
	check "a folder is in maintenance" "$bm" maintenance on "$dir/target"
	check_fails "no disk is moved there" 3 "E_MAINTENANCE: $dir/target is in maintenance" "$bm" relocate disk "$dir/target/"
	check_fails "nor made there" 3 "E_MAINTENANCE" "$bm" serve new "$dir/target/new.img" --create 1M
	truncate -s 1M "$dir/cold/a.img"
	check_fails "nor copied" 3 "E_MAINTENANCE" "$bm" copy "$dir/cold/a.img" "$dir/target/"
	check_fails "nor drained" 3 "E_MAINTENANCE" "$bm" drain "$dir/cold" --to "$dir/target" --keep-source --dry-run
	check "this host, too" "$bm" maintenance on
	check_fails "no disk is made on it" 3 "E_MAINTENANCE: this host" "$bm" serve new "$dir/cold/new.img" --create 1M
	check "all of it is told" json_of ".host and .datastores == [\"$dir/target\"]" "$bm" --json maintenance status
	check "it is over" "$bm" maintenance off
	check "for the folder, too" "$bm" maintenance off "$dir/target"
	check "the disk moves there" "$bm" relocate disk "$dir/target/"
	check_fails "a word that is none" 2 "on, off or status" "$bm" maintenance maybe
}

mistakes
agreement
it_holds
maintenance
