#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Breaks what recovery stands on (death_mutants.txt), and demands that death.py notices:
# death_teeth.sh [NAME…]. TAP. $RUNS is how many moves each mutant gets at most.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"
# shellcheck source-path=SCRIPTDIR/.. source=../mutants.bash
. tests/mutants.bash
python=${PYTHON:-/usr/bin/python3}
have nbdkit nbdcopy qemu-nbd "$python" ||
	{ skip "deaths that must be noticed" "nbdkit, libnbd-bin, qemu-utils, python3"; exit; }
copy_tree blockmirror blockmirror-disk blockmirror-nbd blockmirrord
cp "$hammer" "$dir/build/fixtures"

notices() {
	campaign_notices "$python" "$dir/src/tests/fault/death.py" --runs "${RUNS:-100}" \
		--until-violation --jobs "${JOBS:-4}"
}

break_each tests/fault/death_mutants.txt "$@"
