#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A target that is in trouble for a while: errors on one range, seconds of latency, read-only, its
# session taken by somebody else. The guest notices nothing, and in the end both are equal.
# shellcheck source-path=SCRIPTDIR/../system source=../system/target.bash
. "$(dirname "$0")/../system/target.bash"

python=${PYTHON:-/usr/bin/python3}
have nbdcopy qemu-nbd jq "$python" || { skip "trouble" "libnbd-bin, qemu-utils, jq, python3"; exit; }
cp "$image" "$dir/original"

# in_trouble NAME: after what has begun the target is lost, and the guest goes on.
in_trouble() {
	name=$1
	check "$name: the target is lost" lost_again
	check "$name: the guest goes on" guest_goes_on
}
lost_again() { wait_for 20 more_losses; }
more_losses() { [ "$(losses)" -gt "$before" ]; }
over() {
	check "$name: it is over, and both are in sync" in_sync
	before=$(losses)
}

fresh
check "a server of ours, with faults" start_blockmirror_nbd "$dir/o" \
	"fault:op=write,range=4M-5M,error=EIO,while=$dir/eio|op=write,delay=3s,while=$dir/slow;file:$file"
server=$pid
serve disk "$image"
start_load disk --initial any --sizes 512:64k
check "a mirror" begin
before=$(losses)

touch "$dir/eio"
in_trouble "EIO on one range"
rm "$dir/eio"
over
touch "$dir/slow"
in_trouble "seconds of latency"
rm "$dir/slow"
over
if "$python" -c 'import nbd' 2>/dev/null; then
	check "a session of a later epoch takes its place" timeout 60 "$python" -c 'import nbd, sys
h = nbd.NBD()
h.add_meta_context("blockmirror:session:%s:%016x" % (sys.argv[2], int(sys.argv[3])))
h.connect_uri(sys.argv[1])
h.shutdown()' "$uri" "$(show disk .disk)" "$(($(date +%s%N) + 1000000000))"
	in_trouble "a session that is taken by another"
	over
else
	skip "a session of a later epoch takes its place" "python3-libnbd"
fi
name="a server that is read-only for a while"
stop "$server"
in_trouble "$name"
check "$name: it is back, and takes no writes" start_qemu_nbd "$dir/o" "$file" -r
server=$pid
sleep 1
check "$name: it is not taken" target_is target-lost
stop "$server"
check "$name: it takes writes" start_qemu_nbd "$dir/o" "$file"
over
ends_equal
check "it is stopped in the end" unserve disk
