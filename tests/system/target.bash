# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of targets that fail: disk.bash, and a disk in sync with a server that something is
# done to. $server is its process, $file its image.
# shellcheck source-path=SCRIPTDIR source=disk.bash disable=SC2034
. "$(dirname "${BASH_SOURCE[0]}")/disk.bash"

# Of few granules all are written to again and again, of these none are ever settled.
image_size=$((64 * M)) half=$((32 * M)) # behind it no load touches
image=$dir/disk.img file=$dir/target.img server=''
deadline=600 # ms that a write waits for the target
head -c $image_size /dev/urandom >"$image"

target_is() { job_is disk .progress.target "$1"; }
target_lost() { wait_for 15 target_is target-lost; }
state_is() { job_is disk .state "$1"; }
guest_goes_on() { wait_for 10 more_writes "$(show disk .requests.write)"; }
is_on() { [ "$(show disk .uri)" = "$1" ] || { show disk .uri; return 1; }; }
losses() { job disk .progress.target_losses; }
in_sync() { timeout 60 "$bm" job wait disk --for in-sync; }

# fresh: $file, of nothing but holes.
fresh() { rm -f "$file" && truncate -s $image_size "$file"; }

# begin OPTION…: mirrors to $uri.
begin() {
	"$bm" relocate disk "$uri" --overwrite --switch manual --guest-latency off \
		--target-deadline ${deadline}ms "$@"
}

# A deadline is looked at when an eighth of it has passed; the rest is for a machine that is busy.
longest() {
	json "$report" '"# the longest request took \(.longest_request.ms) ms"'
	json_is "$report" ".longest_request.ms < $((deadline * 9 / 8 + 900))"
}

# guest_content: the load ends; it saw no error, and waited no longer than the deadline.
guest_content() {
	check "$name: the guest saw no error" end_load
	check "$name: and no request waited longer than $deadline ms, and some" longest
	grep '^#' "$dir/out"
}

# ends_equal: in sync again, switched over: both are what the guest wrote, byte for byte.
ends_equal() {
	check "$name: it is in sync again" in_sync
	check "$name: there is nothing left in quarantine" job_is disk .progress.quarantined 0
	guest_content
	check "$name: it switches" "$bm" switch disk
	check "$name: the disk serves the target, byte for byte" serves disk "$file"
	check "$name: it is what the guest wrote" state_fits "$(disk_uri disk)"
	check "$name: and what it never touched" cmp -i $half -n $half "$dir/original" "$file"
}

# ends_with CODE: the job has failed, the disk is where it was.
ends_with() {
	check "$name: the job ends $1" wait_for 15 job_is disk '"\(.state) \(.error.code)"' "failed $1"
	check "$name: the disk is where it was" is_on "$image"
}
