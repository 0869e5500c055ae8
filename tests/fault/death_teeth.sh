#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Breaks what recovery stands on (death_mutants.txt), and demands that death.py notices:
# death_teeth.sh [NAME…]. TAP. $RUNS is how many moves each mutant gets at most.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"
# shellcheck source-path=SCRIPTDIR/.. source=../mutants.bash
. tests/mutants.bash
list=tests/fault/death_mutants.txt python=${PYTHON:-/usr/bin/python3}
have nbdkit nbdcopy qemu-nbd "$python" ||
	{ skip "deaths that must be noticed" "nbdkit, libnbd-bin, qemu-utils, python3"; exit; }
programs=(blockmirror blockmirror-disk blockmirror-nbd blockmirrord)
mkdir -p "$dir/build/fixtures" "$dir/src"
cp -a Makefile blockmirror include nbd-server tests fixtures "$dir/src"
cp -a "$BUILD/obj" "$BUILD"/*.a "${programs[@]/#/$BUILD/}" "$dir/build"
cp "$hammer" "$dir/build/fixtures"
make_it() { make -s -C "$dir/src" CFLAGS=-O1 WARN=-w BUILD="$dir/build" "${programs[@]/#/$dir/build/}"; }

# notices: that something is violated, and not just that nothing works.
notices() {
	! BUILD=$dir/build "$python" "$dir/src/tests/fault/death.py" --runs "${RUNS:-100}" --until-violation \
		--jobs "${JOBS:-4}" ${SEED:+--seed "$SEED"} >"$dir/said" 2>&1 || return
	grep '^# violation: seed' "$dir/said" | grep -qv Traceback
}

one() {
	local name=$1 file files status=1
	if files=$(mutants $list "$name" "$dir/src" 2>"$dir/out") && make_it >"$dir/out" 2>&1; then
		notices
		status=$?
		cp "$dir/said" "$dir/out"
	fi
	for file in $files; do # the object is newer than its source again
		cp -p "$file" "$dir/src/$file"
		cp "$BUILD/obj/${file%.c}.o" "$dir/build/obj/${file%.c}.o"
	done
	return $status
}

while IFS= read -r head; do
	[ $# -eq 0 ] || [[ " $* " == *" ${head%%:*} "* ]] || continue
	one "${head%%:*}"
	result $? "$head: it is noticed" "$dir/out"
	grep -m 1 '^# violation: seed' "$dir/out" | cut -c 1-400
done < <(mutants $list)
