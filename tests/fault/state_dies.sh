#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The folder with the records is full, read-only, gives errors, or hangs: new jobs and switches do not
# come about, the guest goes on, and so does all else when the folder is well again (state.py).
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

python=${PYTHON:-/usr/bin/python3}
have "$python" || { skip "a dead state folder" "python3"; exit; }
unshare -m mount -t tmpfs none "$dir" 2>"$dir/out" || { skip "a dead state folder" "$(cat "$dir/out")"; exit; }
sanitized=$(nm -D "$BUILD/blockmirror-disk" | grep -cE '__(asan|tsan)_')

for how in $("$python" tests/fault/state.py --list); do
	if [ "$sanitized" -gt 0 ] && [[ $how == errors || $how == hangs ]]; then
		skip "$how" "a sanitizer wants to be the first library"
		continue
	fi
	check "$how" "$python" tests/fault/state.py "$BUILD" "$dir" "$how"
	sed 's/^/# /' "$dir/out" | head -n 1
done
