#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The RAM of a running Linux guest goes from one QEMU to another one through sender, connections and
# receiver: byte for byte, in fewer bytes. And when a connection is lost, the guest goes on where it was.
# shellcheck source-path=SCRIPTDIR source=ram.bash
. "$(dirname "$0")/ram.bash"

truncate -s 64M "$image"
check "a guest runs" machine a
check "it writes records" wait_for 120 ticked a 10
[ "$lib_failed" -eq 0 ] || exit

# A move
check "there is a path to another QEMU" path a b
check "it migrates" migrate a 1000000000
check "the target has all, the source waits" wait_for 120 says a ^held
check "the target's QEMU says so, too" wait_for 30 migration_is b completed
! status_is a postmigrate
result $? "the source's has not ended its migration"
printf o >&8
check "with the gate open it ends" wait_for 60 status_is a postmigrate
check "both relays end" halves
check "and are content" grep -c ^done "$dir/a.log" "$dir/b.log"
check "the guest goes on at the target" monitor b cont
check "it writes records there" goes_on b
same_stream() {
	wait_for 30 grep -q ^out "$dir/in.tee" && grep -h ^out "$dir/out.tee" "$dir/in.tee"
	[ "$(grep -h ^out "$dir/out.tee" "$dir/in.tee" | sort -u | wc -l)" -eq 1 ]
}
check "what came out is what went in, byte for byte" same_stream
sed 's/^/# /' "$dir/out"
tail -n 1 "$dir/a.log" | jq -r '"# \(.stream) bytes of stream, \(.wire) on the wire (\(.wire * 100 / .stream | floor) %); \(.batches) batches, \(.compressed) compressed; pages: \(.fills) fills, \(.copies) copies, \(.deltas) deltas, \(.raw) raw"'
check "the stream was looked at to its device state" json_is "$dir/a.log" '.why == "device state" and .sections > 2'
check "with fewer bytes" json_is "$dir/a.log" '.wire < .stream * 0.95 and .copies > 100'
cat "$dir/a.console" "$dir/b.console" >"$dir/console"
monitor a quit >/dev/null

# The guest is in b.
check "a path" path b c
check "it migrates" migrate b 16000000
check "RAM is under way" wait_for 60 under_way b
kill9 "${forwarders[1]}"
fails "a connection is lost" b c 'E_UNREACHABLE.*connection'

monitor b quit >/dev/null
cat "$dir/b.console" >>"$dir/console"
check "no record was lost" "$records" check "$image" "$dir/console"
