# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of the whole product: lib.sh, and disks, their load, moves, comparisons.
#
#	. "$(dirname "$0")/disk.bash"
#	make_image "$dir/a/disk.img"
#	serve disk "$dir/a/disk.img"
#	start_load disk
#	check "it moves" "$bm" relocate disk "$dir/b"
#	check "the guest has noticed nothing" end_load
#
# Sockets and records are in $dir. Numbers that tests choose by chance come from $seed, which is
# printed; SEED=… gives the same ones again.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bm=$BUILD/blockmirror
export BLOCKMIRROR_RUN_DIR=$dir/run BLOCKMIRROR_STATE_DIR=$dir/state
seed=${SEED:-$((RANDOM * 32768 + RANDOM))} load='' disk_pid=''
state=$dir/load.state report=$dir/load.json
RANDOM=$seed
echo "# seed $seed"

M=$((1 << 20))
image_size=$((128 * M)) # of make_image
half=$((64 * M))        # what is behind it no load touches

# make_image PATH: empty up to $half; behind it data, zeros that are written, and holes.
make_image() {
	mkdir -p "$(dirname "$1")"
	rm -f "$1"
	truncate -s $image_size "$1"
	{
		dd if=/dev/urandom bs=1M count=12 seek=68 of="$1" conv=notrunc
		dd if=/dev/zero bs=1M count=12 seek=84 of="$1" conv=notrunc
		for i in 1601 1667 1760 2047; do
			dd if=/dev/urandom bs=64k count=1 seek=$i of="$1" conv=notrunc
		done
	} 2>/dev/null
	sync "$1"
}

# allocated IMAGE START END: prints how many bytes of that part the file system has allocated.
allocated() {
	qemu-img map -U -f raw --output=json "$1" | jq --argjson a "$2" --argjson b "$3" \
		'[.[] | select(.data) | ([.start + .length, $b] | min) - ([.start, $a] | max)
		| select(. > 0)] | add // 0'
}

# is_sparse IMAGE: the half that nobody writes to takes what its data takes.
is_sparse() {
	local bytes
	bytes=$(allocated "$1" $half $image_size)
	echo "$bytes bytes of the second half are allocated"
	[ "$bytes" -ge $((12 * M)) ] && [ "$bytes" -le $((13 * M)) ]
}

# Disks

disk_socket() { echo "$BLOCKMIRROR_RUN_DIR/disks/$1.nbd"; }
disk_uri() { nbd_uri "$(disk_socket "$1")" "$1"; }

# serve NAME [ARGUMENT…]: of blockmirror serve; its process is $disk_pid, and ends with the test.
serve() {
	"$bm" serve "$@" >>"$dir/log" 2>&1 || return
	disk_pid=$(show "$1" .pid)
	lib_pids+=("$disk_pid")
}

# Clients need a moment to be seen gone.
unserve() {
	disk_pid=$(show "$1" .pid)
	wait_for 5 "$bm" stop "$1" >>"$dir/log" 2>&1 || return
	lib_forget "$disk_pid"
}

# kill_disk NAME: SIGKILL, until it is gone. It is no child of ours.
kill_disk() {
	disk_pid=$(show "$1" .pid)
	kill -KILL "$disk_pid"
	lib_forget "$disk_pid"
	wait_for 10 lib_gone "$disk_pid"
}

# show NAME FILTER, job NAME FILTER: of the JSON about a disk, its last job.
show() { "$bm" show "$1" --json | jq -r "$2"; }
job() { "$bm" job show "$1" --json | jq -r "$2"; }
job_is() { [ "$(job "$1" "$2")" = "$3" ]; }
phase_is() { job_is "$1" .phase "$2"; }

# disk_is_on URI: what the disk named "disk" is on now.
disk_is_on() { [ "$(show disk .uri)" = "$1" ] || { show disk .uri; return 1; }; }

# works: the guest of "disk", $load, gets answers.
works() {
	local before
	before=$(show disk .requests.write)
	wait_for 10 more_writes "$before" && ! lib_gone "$load"
}
more_writes() { [ "$(show disk .requests.write)" -gt "$1" ]; }

# mark FILE: prints the state that its mark has.
mark() { getfattr --only-values -n user.blockmirror "$1" 2>/dev/null | jq -r .state; }
marked() { [ "$(mark "$1")" = "$2" ] || { echo "$1 is marked: $(mark "$1")"; return 1; }; }

# Load

# start_load NAME|URI [OPTION…]: the load generator on the first half of the disk, at a guest's pace; at
# full speed with --iops 0.
start_load() {
	local uri=$1
	shift
	[[ $uri == *:* ]] || uri=$(disk_uri "$uri")
	: >"$report"
	rm -f "$state"
	log=$report spawn "$hammer" --json --time 0 --least 501 --iops 500 --connections 4 --overlap 20 \
		--range 0:$half --fill 25 --seed "$seed" --state "$state" "$@" "$uri"
	load=$pid
	sleep "${BEFORE:-0.5}"
}

# end_load: in good order; it must have found nothing.
end_load() {
	local status
	sleep "${AFTER:-1}"
	kill -TERM "$load"
	wait "$load"
	status=$?
	lib_forget "$load"
	[ $status -eq 0 ] || { tail -n 5 "$report"; return 1; }
	json "$report" '"\(.requests) requests, longest \(.longest_request.ms) ms"'
	json_is "$report" '.requests > 500 and .errors == 0 and .mismatches == 0'
}

# state_fits URI [OPTION…]: the load generator's state against what is there.
state_fits() {
	local uri=$1
	shift
	timeout 60 "$hammer" --check "$state" "$@" "$uri"
}

# image_fits FILE: the same, exported by somebody else, whoever has it open.
image_fits() {
	local status
	start_nbdkit "$dir/fits.sock" -r file "$1" || return
	state_fits "$uri"
	status=$?
	stop "$pid"
	return $status
}

# serves NAME FILE [SIZE]: what clients of the disk read is what is in FILE, byte for byte.
serves() {
	cmp -n "${3:-$image_size}" <(timeout 60 nbdcopy "$(disk_uri "$1")" -) "$2"
}

# fingerprint FILE: for "untouched since".
fingerprint() { md5sum <"$1" >"$dir/fingerprint"; }
untouched() { md5sum <"$1" | cmp - "$dir/fingerprint"; }

# move NAME SOURCE-FILE TARGET TARGET-FILE [URI]: the disk under full load, and all that can be
# said about it afterwards. URI exports the target; without it TARGET-FILE is looked at. The image
# as it was at first is $dir/original. ${load_options[@]} go to the load.
load_options=()
move() {
	local name=$1 source=$2 target=$3 file=$4
	start_load disk --initial any --iops 0 "${load_options[@]}"
	check "$name: it moves under full load" "$bm" relocate disk "$target" --overwrite \
		--guest-latency off
	check "$name: writes were mirrored" job_is disk '.progress.mirrored_writes > 20' true
	fingerprint "$source"
	check "$name: the guest noticed nothing" end_load
	check "$name: the source was not touched after the switch" untouched "$source"
	check "$name: the disk serves the target, byte for byte" serves disk "$file"
	check "$name: what no guest wrote is what it was" \
		cmp -i $half -n $half "$dir/original" "$file"
	check "$name: holes and zeros take no space" is_sparse "$file"
	if [ $# -gt 4 ]; then
		check "$name: the target holds what the guest wrote" state_fits "$5"
	else
		check "$name: the target holds what the guest wrote" image_fits "$file"
	fi
}

# witness NAME COMMAND…: fio writes, reads back and verifies crc32c before, while and after COMMAND
# runs; then it reads all of the last round again.
witness() {
	local name=$1 fio status uri
	shift
	uri=$(disk_uri "$name")
	local job=(timeout 60 fio --name=witness --ioengine=nbd --thread --rw=randwrite --bs=4k
		--size=32M --iodepth=16 --fsync=32 --verify=crc32c --verify_backlog=256
		--randseed="$seed" --aux-path="$dir" --uri="$uri")
	rm -f "$dir/moved"
	log=$dir/fio.out spawn fio_rounds "${job[@]}"
	fio=$pid
	sleep 0.5
	"$@"
	status=$?
	sleep 0.3
	touch "$dir/moved"
	wait "$fio" || { tail -n 20 "$dir/fio.out"; status=1; }
	lib_forget "$fio"
	"${job[@]}" --verify_only || status=1
	return $status
}

fio_rounds() {
	while [ ! -e "$dir/moved" ]; do "$@" || return; done
}
