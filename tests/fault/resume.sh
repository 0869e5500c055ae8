#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What a process that follows one that is gone knows of a move: its map as long as the host lives,
# the checkpoint after that, nothing where there is none of this job, and whether the target is still
# the one that was there.
# shellcheck source-path=SCRIPTDIR/../system source=../system/disk.bash
. "$(dirname "$0")/../system/disk.bash"

python=${PYTHON:-/usr/bin/python3}
have jq getfattr nbdcopy "$python" || { skip "resuming" "jq, attr, libnbd-bin, python3"; exit; }
image_size=$((64 * M)) half=$((32 * M)) # behind it no load touches
a=$dir/a.img b=$dir/b.img
map=$BLOCKMIRROR_RUN_DIR/disks/disk.map checkpoint=$BLOCKMIRROR_STATE_DIR/disks/disk/map
head -c $image_size /dev/urandom >"$a"
cp "$a" "$dir/original"

ends_by() { # SIGNAL: the disk's process
	kill -"$1" "$disk_pid"
	wait_for 5 lib_gone "$disk_pid"
	lib_forget "$disk_pid"
}
# settled: a good part of the map, at least.
settled() { [ "$(tail -c +4097 "$map" | tr -d '\0' | wc -c)" -gt 20 ]; }
begin() { # OPTION…: a move that has come some way
	"$bm" relocate disk "$b" --detach --rate 4M "$@" && wait_for 20 settled
}
resumed() { job_is disk '"\(.state) \(.resumed.from)"' "running $1"; }
kept() { job_is disk ".resumed.kept_bytes $1" true; }
ends() { "$bm" job set disk --rate 0 && "$bm" job wait disk; }

# A host that is restarted: RUN is empty.
new_host() { rm -f "$map"; }

orderly() {
	check "a move, and an orderly end" begin
	check "the process ends" ends_by TERM
	check "it has left a checkpoint" test -s "$checkpoint"
	cp "$checkpoint" "$dir/old"
	new_host
	check "the disk is served again, on a new host" serve disk
	check "the job goes on from the checkpoint" resumed checkpoint
	check "not from the beginning" kept "> 1e6"
	ends_by KILL
	new_host
	check "killed, on a new host again, it is served" serve disk
	check "the job goes on from the same checkpoint" resumed checkpoint
	check "it ends" ends
	check "and its checkpoint with it" test ! -e "$checkpoint"
}

# The checkpoint of another job.
stale_map() {
	check "a move" begin --overwrite
	ends_by KILL
	cp "$dir/old" "$checkpoint"
	new_host
	check "a crash of the host, and there is an old checkpoint" serve disk
	check "nobody believes it" resumed nothing
	check "all is copied again" kept "== 0"
	check "the job ends" ends
}

# A checkpoint that could not be kept: its id stands on the image that was the authority.
void_map() {
	local id
	check "a move" begin --overwrite
	check "an orderly end" ends_by TERM
	id=$(od -An -tx8 -j 64 -N 8 "$checkpoint" | tr -d ' ').
	id=$(od -An -tx8 -j 24 -N 8 "$checkpoint" | tr -d ' ').${id%.}
	setfattr -n user.blockmirror.void -v "$id" "$1"
	new_host
	check "a checkpoint that is void: the disk is served" serve disk
	check "nobody believes it" wait_for 10 resumed nothing
	check "all is copied again" kept "== 0"
	check "the job ends" ends
}

replaced() {
	check "a move" begin --overwrite
	ends_by KILL
	mv "$b" "$dir/aside"
	truncate -s $image_size "$b"
	check "another image is where the target was: the disk is served" serve disk
	check "the job ends" wait_for 10 job_is disk '"\(.state) \(.error.code)"' "failed E_FOREIGN"
	check "nothing was written to it" cmp -n $image_size "$b" /dev/zero
	check "the disk is where it was" test "$(show disk .uri)" = "$1"
	rm -f "$b"
}

gone() {
	check "a move" begin
	ends_by KILL
	mv "$b" "$dir/aside"
	check "the target is not there: the disk is served" serve disk
	sleep 1
	check "the job waits for it" resumed map
	mv "$dir/aside" "$b"
	check "it is there again: the job ends" ends
}

copying() {
	"$bm" copy disk "$dir/copy.img" --rate 4M >>"$dir/log" 2>&1 &
	check "a copy" wait_for 20 settled
	ends_by KILL
	wait $!
	check "the disk is served again" serve disk
	check "the copy goes on" resumed map
	check "not from the beginning" kept "> 1e6"
	check "it ends" ends
	check "it is what the disk never changed" cmp -i $half -n $half "$dir/copy.img" "$dir/original"
	check "and has no mark" test -z "$(mark "$dir/copy.img")"
}

# What a flush that failed has lost, no later one makes durable, in this process or the next.
flush_failed() {
	local failing=$dir/failing
	flush() { "$python" -m nbd -u "$(disk_uri doubt)" -c 'h.pwrite(b"x" * 512, 0); h.flush()'; }
	in_doubt() { [ "$(show doubt .flush_failed)" = "$1" ]; }
	truncate -s 4M "$dir/doubt.img"
	check "a disk whose flushes can fail" \
		serve doubt "fault:while=$failing,error=EIO,op=flush;$dir/doubt.img"
	check "they do not" flush
	check "so that nothing is in doubt" in_doubt false
	touch "$failing"
	check_fails "one fails" 1 "Input/output error" flush
	rm "$failing"
	check "the next one does not, and is not trusted" eval "flush && in_doubt true"
	check "the process is killed" ends_by KILL
	check "another one serves the disk" serve doubt
	check "and knows of it" eval "flush && in_doubt true"
	check "it is stopped" unserve doubt
}

back() { "$bm" relocate disk "$a" --overwrite; }

serve disk "$a"
start_load disk --initial any --reconnect 60 --iops 500 --sizes 512:128k
orderly
check "back" back
stale_map
check "back again" back
void_map "$a"
check "and back again" back
replaced "$a"
gone
copying
check "the guest lost nothing, through all of that" end_load
check "it is there for others, too" image_fits "$b"
check "so is what it never touched" cmp -i $half -n $half "$b" "$dir/original"
check "it is stopped in the end" unserve disk
flush_failed

# Where there is no memory to take a job over with, it is for the next process, not given up. Of all
# allocations (every_call.sh) those when the map and the mirror are made, one in thirty.
without_memory() {
	mkdir -p "$shm/kth"
	"$python" tests/fault/kth.py "$BUILD" "$shm/kth" --scenario resume --kind alloc --forever 0 \
		--first 200 --last 500 --step 30
}
if nm -D "$BUILD/blockmirror-disk" | grep -qE '__(asan|tsan)_'; then
	skip "a job taken over without memory" "a sanitizer wants to be the first library"
else
	shm=$(mktemp -d /dev/shm/blockmirror-test.XXXXXX) && on_exit "rm -rf '$shm'"
	check "a job taken over without memory goes on with the next process" without_memory
fi
