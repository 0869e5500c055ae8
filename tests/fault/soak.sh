#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk moves to and fro for some minutes (the first argument, or 2) while all sorts of things go
# wrong (soak.py): nothing is lost, and no process grows.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

python=${PYTHON:-/usr/bin/python3} minutes=${1:-2}
have nbdkit nbdcopy qemu-nbd "$python" ||
	{ skip "soak" "nbdkit, libnbd-bin, qemu-utils, python3"; exit; }
log=$dir/figures spawn env TMPDIR="$dir" "$python" tests/fault/soak.py "$minutes" \
	${SEED:+--seed "$SEED"} ${KEEP:+--keep "$KEEP"}
wait "$pid"
status=$?
lib_forget "$pid"
cat "$dir/figures"
result $status "$minutes minutes, and nothing is lost, and nothing grows"
check "moves were made" grep -qE "^# .*moves: .*done [1-9]" "$dir/figures"
