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
copy_tree blockmirror blockmirror-disk blockmirror-nbd
cp "$hammer" "$BUILD/fixtures/powerfs" "$dir/build/fixtures"

# The line after a mutant's head says of which kind its power cuts are, and how many it gets at most.
notices() {
	local kind cycles
	read -r kind cycles < <(grep -A 1 "^=== $1:" "$list" | tail -n 1)
	campaign_notices env TMPDIR=/dev/shm "$python" "$dir/src/tests/fault/power.py" "$kind" \
		--cycles "$cycles" --first --jobs "${JOBS:-2}"
}

break_each "$list" "$@"
