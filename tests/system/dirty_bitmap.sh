#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The dirty map of a disk that moves, read by tools that know nothing of us: nbdinfo and libnbd.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have nbdinfo jq qemu-io || { skip "the dirty map" "libnbd-bin, jq, qemu-utils"; exit; }
map=qemu:dirty-bitmap:disk
image=$dir/a/disk.img
make_image "$image"
mkdir -p "$dir/b"
serve disk "$image"
uri=$(disk_uri disk)

# read_map: into $dir/map, and checks that it covers the disk without a gap.
read_map() {
	timeout 60 nbdinfo --json --map=$map "$uri" >"$dir/map" || return
	jq -e --argjson size $image_size '[0] + [.[] | .offset + .length]
		== [.[] | .offset] + [$size]' "$dir/map"
}
# dirty [START END]: bytes that the map says are dirty, in that part.
dirty() {
	jq --argjson a "${1:-0}" --argjson b "${2:-$image_size}" '[.[] | select(.type == 1)
		| ([.offset + .length, $b] | min) - ([.offset, $a] | max) | select(. > 0)] | add // 0' \
		"$dir/map"
}
dirty_is() { # BYTES [START END]
	local bytes
	read_map || return
	bytes=$(dirty "${@:2}")
	echo "$bytes bytes are dirty, $1 expected"
	[ "$bytes" -eq "$1" ]
}
listed() { nbdinfo --list --json "$uri" | jq -e --arg map $map '.exports[0].contexts | index($map)'; }
write_at() { qemu-io -f raw -c "write -P 7 $1 $2" "$uri"; }
job_dirty() { job disk .progress.dirty; }
as_the_job_says() { # paused: nothing changes in between
	dirty_is "$(job_dirty)"
}
shrinks() { read_map && [ "$(dirty)" -lt "$1" ] && [ "$(dirty)" -gt 0 ]; }

check "it is among the contexts" listed
check "no move: all is clean" dirty_is 0
check "what the guest writes then is not tracked" write_at 5M 1M
check "it is clean as well" dirty_is 0

log=$dir/said spawn "$bm" relocate disk "$dir/b" --rate 1M --switch manual
mover=$pid
check "a slow move begins" wait_for 10 phase_is disk copying
check "most of the disk is dirty" wait_for 10 shrinks $image_size
check "it gets less" wait_for 20 shrinks "$(dirty)"
check "the copy is paused" "$bm" job pause disk
# What is in flight comes to its end.
sleep 2
check "the map says as much as the job" as_the_job_says
before=$(dirty)
check "a guest writes to a granule that is not copied yet" write_at 118M 4k
check "it stays as it is" dirty_is "$before"
check "a guest writes all of one" write_at 120M 64k
check "that one is clean" dirty_is 0 $((120 * M)) $((120 * M + 65536))
check "and no other" dirty_is $((before - 65536))
check "two contexts are read in one question" timeout 60 /usr/bin/python3 - "$uri" $map <<-'END'
	import nbd, sys
	h = nbd.NBD()
	h.add_meta_context("base:allocation")
	h.add_meta_context(sys.argv[2])
	h.connect_uri(sys.argv[1])
	seen = {}
	def extents(context, offset, entries, error):
	    seen[context] = entries
	h.block_status(16 << 20, 48 << 20, extents)
	assert set(seen) == {"base:allocation", sys.argv[2]}, seen
	assert sum(seen[sys.argv[2]][::2]) == 16 << 20, seen
	h.shutdown()
END
check "the copy goes on" "$bm" job resume disk
check "at full speed" "$bm" job set disk --rate 0
check "it comes into sync" "$bm" job wait disk --for in-sync
check "nothing is dirty then" dirty_is 0
check "a guest writes on" write_at 9M 3M
check "to both sides: nothing is dirty" dirty_is 0
check "it switches" "$bm" switch disk
wait "$mover"
lib_forget "$mover"
check "it has moved: all is clean" dirty_is 0
check "it is stopped" unserve disk
