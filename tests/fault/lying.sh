#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Servers that lie, as target and as source: lies.py has the lies, and what each must come to. All of
# them with LONG=1; else some, chosen by chance, of those that need no long silence.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

python=${PYTHON:-/usr/bin/python3}
have "$python" || { skip "lies" "python3"; exit; }
seed=${SEED:-$RANDOM}
echo "# seed $seed"

lies() { "$python" tests/fault/lies.py --list; }
some() { lies | grep -vE 'silence|never|half|flush|read-only' | shuf -n 4 --random-source=<(yes "$seed"); }

for lie in $(if [ "${LONG:-}" ]; then lies; else some; fi); do
	SEED=$seed check "$lie" "$python" tests/fault/lies.py "$BUILD" "$dir" "$lie"
	sed 's/^/# /' "$dir/out" | head -n 1
done
