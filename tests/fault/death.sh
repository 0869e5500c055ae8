#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Process death: a disk moves under load while its process, the target's server and the daemon are
# killed, alone and together, at random moments and as phases begin (death.py). $RUNS moves.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

python=${PYTHON:-/usr/bin/python3}
have nbdkit nbdcopy qemu-nbd "$python" ||
	{ skip "process death" "nbdkit, libnbd-bin, qemu-utils, python3"; exit; }
runs=${RUNS:-6}

log=$dir/figures spawn env TMPDIR="$dir" "$python" tests/fault/death.py --runs "$runs" \
	--jobs "${JOBS:-3}" ${SEED:+--seed "$SEED"}
wait "$pid"
status=$?
lib_forget "$pid"
cat "$dir/figures"
result $status "$runs moves, and nothing is lost, whatever dies"
check "somebody was killed" grep -qE "^# kills: [1-9]" "$dir/figures"
