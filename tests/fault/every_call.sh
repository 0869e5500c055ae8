#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Every k-th call of a disk's process fails, of each kind, once and for ever (kth.py). All of it with
# LONG=1, which takes hours; else what comes by chance in a minute.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

python=${PYTHON:-/usr/bin/python3}
have "$python" || { skip "every call" "python3"; exit; }
if nm -D "$BUILD/blockmirror-disk" | grep -qE '__(asan|tsan)_'; then
	skip "every call" "a sanitizer wants to be the first library"
	exit
fi
seed=${SEED:-$RANDOM}

# kth NAME FOLDER ARGUMENT…
kth() {
	local name=$1 folder=$2
	shift 2
	mkdir -p "$folder"
	check "$name" "$python" tests/fault/kth.py "$BUILD" "$folder" --seed "$seed" "$@"
	grep '^#' "$dir/out"
}

# Where files have no asynchronous I/O workers do it; tmpfs is one of these.
shm=$(mktemp -d /dev/shm/blockmirror-test.XXXXXX) && on_exit "rm -rf '$shm'"
aio=(--kind submit --kind complete --kind setup)
if [ "${LONG:-}" ]; then
	LIMIT=36000 kth "each asynchronous transfer" "$dir" "${aio[@]}"
	LIMIT=36000 kth "each call" "$shm"
else
	kth "asynchronous transfers" "$dir" "${aio[@]}" --scenario move --seconds 3
	kth "calls" "$shm" --scenario move --seconds 4
fi
