#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Breaks what makes a power cut harmless (power_mutants.txt), and demands that power.py notices:
# power_teeth.sh [NAME…]. TAP.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"
# shellcheck source-path=SCRIPTDIR/.. source=../mutants.bash
. tests/mutants.bash
list=tests/fault/power_mutants.txt python=${PYTHON:-/usr/bin/python3}
[ "$(id -u)" -eq 0 ] || { skip "power cuts that must be noticed" "root mounts file systems"; exit; }
mkdir -p "$dir/build/fixtures" "$dir/src"
cp -a Makefile blockmirror include nbd-server tests fixtures "$dir/src"
cp -a "$BUILD/obj" "$BUILD"/*.a "$BUILD/blockmirror" "$BUILD/blockmirror-disk" "$BUILD/blockmirror-nbd" \
	"$dir/build"
cp "$BUILD/fixtures/hammer" "$BUILD/fixtures/powerfs" "$dir/build/fixtures"
make_it() {
	make -s -C "$dir/src" CFLAGS=-O1 WARN=-w BUILD="$dir/build" "$dir/build/blockmirror" \
		"$dir/build/blockmirror-disk" "$dir/build/blockmirror-nbd"
}

# notices KIND CYCLES: that something is violated, and not just that nothing works.
notices() {
	! BUILD=$dir/build TMPDIR=/dev/shm "$python" "$dir/src/tests/fault/power.py" "$1" --cycles "$2" \
		--first --jobs "${JOBS:-2}" ${SEED:+--seed "$SEED"} >"$dir/said" 2>&1 || return
	grep '^# violation: seed' "$dir/said" | grep -qv Traceback
}

one() {
	local name=$1 file files kind cycles status=1
	read -r kind cycles < <(grep -A 1 "^=== $name:" $list | tail -n 1)
	if files=$(mutants $list "$name" "$dir/src" 2>"$dir/out") && make_it >"$dir/out" 2>&1; then
		notices "$kind" "$cycles"
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
