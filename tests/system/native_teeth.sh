#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Breaks what the moves of native machines stand on (native_mutants.txt), and demands that their tests
# notice: native_teeth.sh [NAME…]. TAP. $MOVES is how many moves each mutant gets at most.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"
# shellcheck source-path=SCRIPTDIR/.. source=../mutants.bash
. tests/mutants.bash

copy_tree fixtures/tinyvm blockmirror blockmirror-disk
truncate -s 8M "$dir/disk.img"
serve disk "$dir/disk.img"
uri=$(disk_uri disk)

# It must say what is wrong, and not just fail.
says() {
	timeout 300 /usr/bin/python3 "$@" >"$dir/said" 2>&1
	# A machine that has too much to do is not what is looked for.
	grep -E '^(bad:|VIOLATED)' "$dir/said" | grep -v 'has said nothing for'
}

notices() {
	local name tinyvm=$dir/build/fixtures/tinyvm
	rm -f "$dir"/vm*
	for name in $(/usr/bin/python3 tests/system/native_orders.py "$dir" "$uri" "$tinyvm"); do
		says tests/system/native_orders.py "$dir" "$uri" "$tinyvm" "$name" && return
	done
	says tests/system/native_campaign.py --moves "${MOVES:-60}" --seed "$seed" --dir "$dir" \
		--disk "$uri" --tinyvm "$tinyvm"
}

break_each tests/system/native_mutants.txt "$@"
