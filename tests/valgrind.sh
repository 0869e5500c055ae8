#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A short run of the engine and of a whole move under valgrind, which sees into the libraries, too.
. "$(dirname "$0")/system/lib.sh"
have valgrind || { skip "valgrind" "valgrind is missing"; exit; }
vg=(valgrind -q --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite)
check "the model test, 40 seeds" "${vg[@]}" "$BUILD/tests/model/mirror_test" -n 40
check "the event loop's tests" "${vg[@]}" "$BUILD/tests/unit/loop_test"

truncate -s 24M "$dir/a.img"
mkdir "$dir/b"
export BLOCKMIRROR_RUN_DIR=$dir/run BLOCKMIRROR_STATE_DIR=$dir/state
log=$dir/disk.log spawn "${vg[@]}" "$BUILD/blockmirror-disk" --name v "$dir/a.img"
check "a disk is served" wait_for 30 "$BUILD/blockmirror" show v
check "hammer is content" "$hammer" --time 3 --connections 2 --depth 8 "$(nbd_uri "$dir/run/disks/v.nbd" v)"
check "it moves" "$BUILD/blockmirror" relocate v "$dir/b"
check "it stops" "$BUILD/blockmirror" stop v
wait "$pid"
result $? "valgrind is content with the disk process" "$dir/disk.log"
