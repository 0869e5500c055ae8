#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine with no migration of its own (fixtures/tinyvm) moves to and fro between two processes that
# stand for two hosts, with its disk on blockmirror-disk, and with harm at random (native_campaign.py).
# MOVES=N: that many; with LONG=1 200.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

moves=${MOVES:-${LONG:+200}}
truncate -s 8M "$dir/disk.img"
serve disk "$dir/disk.img"

campaign() {
	timeout 3000 /usr/bin/python3 tests/system/native_campaign.py --moves "${moves:-10}" --seed "$seed" \
		--dir "$dir" --disk "$(disk_uri disk)" --tinyvm "$BUILD/fixtures/tinyvm"
}

check "${moves:-10} moves with harm at random: nothing is lost, nothing runs twice" campaign
sed 's/^/# /' "$dir/out"
