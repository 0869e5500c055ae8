#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Power cuts: a disk moves under load, and the power of a host goes (power.py): file systems that are
# shut down beneath image, target, record and map; disks that forget, tear and reorder what was not
# flushed. $CYCLES of each.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

python=${PYTHON:-/usr/bin/python3} cycles=${CYCLES:-2}
have "$python" || { skip "power cuts" "python3"; exit; }
for kind in shutdown volatile; do
	log=$dir/figures-$kind spawn env TMPDIR="${TMPDIR:-/dev/shm}" "$python" tests/fault/power.py $kind \
		--cycles "$cycles" --jobs "${JOBS:-1}" ${SEED:+--seed "$SEED"}
	wait "$pid"
	status=$?
	lib_forget "$pid"
	cat "$dir/figures-$kind"
	if [ $status -eq 77 ]; then
		skip "$kind: $cycles power cuts" "$(sed -n 's/^# impossible: //p' "$dir/figures-$kind")"
	else
		result $status "$kind: $cycles power cuts, and nothing that was flushed is lost"
	fi
done
