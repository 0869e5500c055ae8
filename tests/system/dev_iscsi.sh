#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The iSCSI device against tgtd: units with and without thin provisioning, one that claims what it
# cannot do, passwords; targets that die, hang, refuse, and units that are reset by somebody else.
# shellcheck source-path=SCRIPTDIR source=dev.bash
. "$(dirname "$0")/dev.bash"
command -v tgtd >/dev/null || { skip "iSCSI targets" "no tgtd"; exit; }
unset LIBISCSI_CHAP_USERNAME LIBISCSI_CHAP_PASSWORD

cleanup() {
	fixtures/tgt.sh resume "$dir/hung" 2>/dev/null
	fixtures/tgt.sh stop "$dir/hung"
	fixtures/tgt.sh stop "$dir/tgt"
}
target=$(fixtures/tgt.sh start "$dir/tgt")
hung=$(fixtures/tgt.sh start "$dir/hung")
portal=${target#iscsi://}
portal=${portal%%/*}

# A target that stops in the middle: 30 s later the commands time out. Looked at in the end.
timeout 120 "$devcheck" -k "$hung:disk/1" 90 >"$dir/hung.out" 2>&1 &
hung_check=$!
has_begun "$dir/hung.out"
fixtures/tgt.sh pause "$dir/hung"

names=([1]="thin unit" "unit that claims UNMAP and WRITE SAME" "thick unit" "" "blocks of 4096 bytes")
for lun in 1 2 3 5; do
	check "${names[$lun]}" "$devcheck" "$target:disk/$lun" 0.8
	check "${names[$lun]}, without order device" "$devcheck" -n "$target:disk/$lun" 0.4
done
check "more requests than slots" "$devcheck" -n -d 400 "$target:disk/1" 0.4
check "one session" "$devcheck" -c 1 "$target:disk/1" 0.4
check "cancelled with requests in flight" "$devcheck" -x "$target:disk/1" 0.4
check "cancelled with requests waiting" "$devcheck" -x -n -d 400 "$target:disk/1" 0.4
check "with a fence" "$devcheck" -f "$target:disk/1" 0.4
check "write-protected unit, read-only" "$devcheck" -r "$target:disk/4" 0.4
refused "write-protected unit" 3 E_ACCESS "$devcheck" -i "$target:disk/4"

# Names and passwords
check "the portal by name" "$devcheck" -i "${target/127.0.0.1/localhost}:disk/1"
chap=${target#iscsi://}:chap/1
check "password" "$devcheck" "iscsi://mirror%secretsecret12@$chap" 0.4
check "password in the environment" env LIBISCSI_CHAP_USERNAME=mirror \
	LIBISCSI_CHAP_PASSWORD=secretsecret12 "$devcheck" -i "iscsi://$chap"
refused "no password" 3 E_ACCESS "$devcheck" -i "iscsi://$chap"
for mark in % :; do
	refused "wrong password" 3 E_ACCESS "$devcheck" -i "iscsi://mirror${mark}wrongwrong123@$chap"
	! grep -q wrongwrong "$dir/out"
	result $? "the password is not shown (after $mark)"
done
refused "not a URI, with a password" 2 E_URI "$devcheck" -i "iscsi://mirror%wrongwrong123@$portal"
! grep -q wrongwrong "$dir/out"
result $? "the password is not shown in what is no URI"

# Refusals
refused "no such unit" 4 E_NOT_FOUND "$devcheck" -i "$target:disk/9"
refused "no such target" 4 E_NOT_FOUND "$devcheck" -i "$target:nothing/1"
refused "the target's controller" 3 E_NOT_IMAGE "$devcheck" -i "$target:disk/0"
refused "a negative unit" 2 E_URI "$devcheck" -i "$target:disk/-1"
refused "an argument without a value" 2 E_URI "$devcheck" -i "$target:disk/1?header_digest"
refused "nobody listens" 7 E_UNREACHABLE "$devcheck" -i iscsi://127.0.0.1:1/iqn.test:disk/1
refused "no such host" 7 E_UNREACHABLE "$devcheck" -i iscsi://nowhere.invalid/iqn.test:disk/1
start=$SECONDS
refused "a dead target" 7 E_UNREACHABLE "$devcheck" -i "$hung:disk/1"
[ $((SECONDS - start)) -le 12 ]
result $? "a dead target is given up after ten seconds"
start=$SECONDS
refused "a dead target, interrupted" 1 E_CANCELLED "$devcheck" -w 1 -i "$hung:disk/1"
[ $((SECONDS - start)) -le 3 ]
result $? "an interruption is noticed at once"

# Ends
timeout 60 "$devcheck" -k "$target:disk/3" 20 >"$dir/out" 2>&1 &
check=$!
has_begun "$dir/out"
"$devcheck" -f -i "$target:disk/3" >/dev/null
wait $check
result $? "a unit that somebody else resets is lost"
dies_with "$(cat "$dir/tgt/pid")" "the target is killed" "$target:disk/1"
fixtures/tgt.sh start "$dir/tgt" >/dev/null
check "after its restart it is there again" "$devcheck" -f "$target:disk/1" 0.4
dies_with "$(cat "$dir/tgt/pid")" "the target is killed, one session, more requests than slots" \
	"$target:disk/1" -c 1 -n -d 400
fixtures/tgt.sh start "$dir/tgt" >/dev/null
wait $hung_check
status=$?
cp "$dir/hung.out" "$dir/out"
result $status "a target that stops in the middle times out"
