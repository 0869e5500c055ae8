#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Records that cannot be read are refused, and nothing is changed; moves that cannot begin leave
# their targets as they were.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have nbdcopy jq getfattr setfattr || { skip "records" "libnbd-bin, jq, attr"; exit; }
records=$BLOCKMIRROR_STATE_DIR/disks
record=$records/files/record
size=$((4 * M))

disk_is_on() { [ "$(show "$1" .uri)" = "$2" ] || { show "$1" .uri; return 1; }; }
whole_mark() { getfattr --only-values -n user.blockmirror "$1" 2>/dev/null; }

# NAME.map cannot be made: the job has a record, and ends.
moves_that_cannot_begin() {
	local map=$BLOCKMIRROR_RUN_DIR/disks/files.map before
	head -c $size /dev/urandom >"$dir/two.img"
	cp "$dir/two.img" "$dir/content"
	mkdir -p "$map"
	serve files "$dir/two.img"
	cp "$dir/content" "$dir/target.img"
	setfattr -n user.blockmirror -v '{"state":"retired","where":"/far"}' "$dir/target.img"
	before=$(whole_mark "$dir/target.img" | jq -c '[.state, .where]')
	check_fails "a map that cannot be made" 3 "$map" \
		"$bm" relocate files "$dir/target.img" --overwrite
	check "the target holds what it held" cmp "$dir/content" "$dir/target.img"
	check "and is marked as it was" test \
		"$(whole_mark "$dir/target.img" | jq -c '[.state, .where]')" = "$before"
	check_fails "the same with a target to be made" 3 "$map" "$bm" relocate files "$dir/made.img"
	check "it is not left behind" test ! -e "$dir/made.img"
	check "the disk goes on where it was" disk_is_on files "$dir/two.img"
	check "the job has failed" job_is files .state failed
	rmdir "$map"
	check "it moves when it can" "$bm" relocate files "$dir/target.img" --overwrite
	unserve files
}

# xxh64 SEED: of standard input, 32 bytes or more; prints 16 digits. Bash's numbers wrap as C's do.
xxh64() {
	local a=0x9E3779B185EBCA87 b=0xC2B2AE3D27D4EB4F c=0x165667B19E3779F9 d=0x85EBCA77C2B2AE63 \
		e=0x27D4EB2F165667C5 i=0 h r v bytes
	rotate() { r=$(($1 << $2 | $1 >> (64 - $2) & ((1 << $2) - 1))); }
	turn() { rotate $(($1 + $2 * b)) 31 && r=$((r * a)); }
	word() { # AT LENGTH
		r=0
		for k in $(seq $(($1 + $2 - 1)) -1 "$1"); do r=$((r << 8 | bytes[k])); done
	}
	mapfile -t bytes < <(od -An -v -tu1 -w1 | tr -d ' ')
	v=($(($1 + a + b)) $(($1 + b)) "$1" $(($1 - a)))
	for (( ; i + 32 <= ${#bytes[@]}; i += 32)); do
		for l in 0 1 2 3; do
			word $((i + 8 * l)) 8
			turn "${v[l]}" "$r"
			v[l]=$r
		done
	done
	h=0
	for l in "0 1" "1 7" "2 12" "3 18"; do
		rotate "${v[${l% *}]}" "${l#* }"
		h=$((h + r))
	done
	for l in 0 1 2 3; do
		turn 0 "${v[l]}"
		h=$(((h ^ r) * a + d))
	done
	h=$((h + ${#bytes[@]}))
	for (( ; i + 8 <= ${#bytes[@]}; i += 8)); do
		word $i 8
		turn 0 "$r"
		rotate $((h ^ r)) 27
		h=$((r * a + d))
	done
	if [ $((i + 4)) -le ${#bytes[@]} ]; then
		word $i 4
		rotate $((h ^ r * a)) 23
		h=$((r * b + c)) i=$((i + 4))
	fi
	for (( ; i < ${#bytes[@]}; i++)); do
		rotate $((h ^ bytes[i] * e)) 11
		h=$((r * a))
	done
	h=$(((h ^ h >> 33 & 0x7fffffff) * b))
	h=$(((h ^ h >> 29 & 0x7ffffffff) * c))
	printf '%016x\n' $((h ^ h >> 32 & 0xffffffff))
}

# seal: the record's first line, with its checksum.
seal() {
	local line
	line=$(head -n 1 "$record")
	printf '%s\nxxh64 %s\n' "$line" "$(printf %s "$line" | xxh64 1)" >"$record"
}

# unreadable NAME: the record as it is now.
unreadable() {
	local name=$1
	(cd "$records/files" && md5sum -- *) >"$dir/sums"
	check_fails "$name: refused" 6 "E_RECORD: $records/files/record" "$bm" serve files
	check_fails "$name: with an image, too" 6 E_RECORD "$bm" serve files "$dir/target.img"
	check_fails "$name: with --create, too" 6 E_RECORD \
		"$bm" serve files "$dir/fresh.img" --create 4M
	check "$name: nothing is made" test ! -e "$dir/fresh.img"
	check "$name: nothing is changed" cmp "$dir/sums" <(cd "$records/files" && md5sum -- *)
	check "$name: its image is marked as it was" marked "$dir/target.img" active
}

bad_records() {
	local good=$dir/good
	cp "$record" "$good"
	sed -i 's/"size":4/"size":5/' "$record"
	unreadable "a damaged record"
	: >"$record"
	unreadable "an empty record"
	head -n 1 "$good" >"$record"
	unreadable "half a record"
	cp "$good" "$record"
	seal
	check "a checksum of one's own is right" cmp "$good" "$record"
	sed -i 's/"format":1/"format":4/' "$record"
	seal
	unreadable "a newer format"
	cp "$good" "$record"
	check "the good one is served" serve files
	check "it is what it was" serves files "$dir/content" $size
	unserve files
}

# Of a process that was killed: its record is made durable before anybody acts on it, and once more
# where no new one can be written.
records_that_may_not_last() {
	truncate -s $size "$dir/last.img"
	serve last "$dir/last.img"
	"$bm" relocate last "$dir/last.two" --switch manual --detach >>"$dir/log"
	wait_for 20 phase_is last in-sync
	kill_disk last
	check_fails "a record that may not last is not acted on" 1 "sync $records/last: .*may not last" \
		strace -f -qq -o "$dir/trace" -P "$records/last" -e inject=fsync:error=EIO "$bm" serve last
	mkdir "$records/last/record.new"
	spawn strace -f -qq -y -o "$dir/trace" -e trace=openat,fsync "$bm" serve last
	check "one that cannot be replaced is" wait_for 20 phase_is last in-sync
	# shellcheck disable=SC2016 # awk has words in dollars, too
	check "and what was found instead is synced before it serves" \
		awk -v folder="$records/last" 'index($0, "\"" folder "/record.new\"") { tried = 1 }
			tried && /fsync\(/ && index($0, "<" folder ">") { synced = 1 }
			END { exit !synced }' "$dir/trace"
	rmdir "$records/last/record.new"
	"$bm" job cancel last >>"$dir/log"
	wait_for 20 job_is last .state cancelled
	check "it is stopped in the end" unserve last
}

moves_that_cannot_begin
bad_records
if have strace; then records_that_may_not_last; else skip "records that may not last" strace; fi
