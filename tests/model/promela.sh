#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The switchover, the recovery, the hand-over to another host and a machine's move as models (switch.pml,
# map.pml, handover.pml, wayback.pml, shared.pml, move.pml), explored whole by spin; then each rule left
# out in turn, which must be noticed. How something comes that must not is printed.
# shellcheck source-path=SCRIPTDIR source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

have spin cc || { skip "models" "spin"; exit; }

# prepare MODEL: the program that explores it is in $dir/MODEL.
prepare() {
	mkdir "$dir/$1" && cp "tests/model/$1.pml" "$dir/$1" && (cd "$dir/$1" && spin -a "$1.pml" &&
		${CC:-cc} -w -DSAFETY -DNOREDUCE -DMEMLIM=400 -o pan pan.c)
}

# explore MODEL [RULE]: 0 when all of it was seen and everything holds; 1 when something does not.
explore() {
	(cd "$dir/$1" && rm -f ./*.trail && BROKEN=${2:-0} ./pan -E -w20 -m400000) >"$dir/report"
	grep -E 'assertion violated|errors:|states, stored|depth reached|elapsed' "$dir/report"
	if grep -q 'too small\|memory limit' "$dir/report"; then return 2; fi
	[ ! -e "$dir/$1/$1.pml.trail" ] || return 1
	grep -q 'errors: 0' "$dir/report" || return 2
}

# story MODEL: the last steps of what went wrong.
story() {
	(cd "$dir/$1" && spin -k "$1.pml.trail" -p -w "$1.pml") | grep -v '(else)\|(goto)' | tail -n 60
}

holds() {
	explore "$1" || { story "$1"; return 1; }
}

noticed() {
	explore "$@"
	[ $? -eq 1 ]
}

for model in switch map handover wayback shared move; do
	check "$model: it can be explored" prepare "$model"
	check "$model: everything holds, whoever dies when" holds "$model"
	sed -n 's/.* \([0-9]* states, stored\)/# \1/p; s/^ *\([0-9]* states, stored\)/# \1/p' "$dir/report"
	while read -r _ rule number _; do
		check "$model: without \"$rule\" that is noticed" noticed "$model" "$number"
	done < <(grep -E '^#define [a-z_]+ +[0-9]+ +/\*' "tests/model/$model.pml")
done
