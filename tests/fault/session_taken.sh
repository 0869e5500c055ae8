#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Somebody logs in to the iSCSI target with our initiator's name and ISIDs: our sessions are ended, under
# load, and what was in flight in them may have been carried out or not.
# shellcheck source-path=SCRIPTDIR/../system source=../system/target.bash
. "$(dirname "$0")/../system/target.bash"

python=${PYTHON:-/usr/bin/python3} deadline=3000
have tgtd tgtadm nbdcopy jq "$python" || { skip "sessions taken away" "tgt, libnbd-bin, jq, python3"; exit; }
unset LIBISCSI_CHAP_USERNAME LIBISCSI_CHAP_PASSWORD
cp "$image" "$dir/original"
start_tgt "$dir/tgt" $((image_size / M)) || { not_ok "the target starts" "$dir/log"; exit; }
file=$dir/tgt/lun1.1.img
log=$dir/relay spawn "$python" tests/fault/reinstate.py "$(cat "$dir/tgt/port")"
thief=$pid
said() { [ "$(wc -l <"$dir/relay")" -ge "$1" ]; }
wait_for 10 said 1
uri="iscsi://127.0.0.1:$(head -n 1 "$dir/relay")/${uri##*/}:disk/1"

# take N: for the n-th time; all that we have is taken.
take() {
	kill -USR1 "$thief" && wait_for 10 said $(($1 + 1)) && [ "$(tail -n 1 "$dir/relay")" -ge "$1" ]
}
lost_again() { [ "$(losses)" -ge "$1" ]; }

name="sessions taken away"
serve disk "$image"
start_load disk --initial any --sizes 512:64k
check "$name: a mirror" begin
for round in 1 2 3; do
	check "$name: $round" take "$round"
	check "$name: $round, it is noticed" wait_for 15 lost_again "$round"
	check "$name: $round, in sync again" in_sync
	check "$name: $round, the guest goes on" guest_goes_on
done
ends_equal
check "it is stopped in the end" unserve disk
