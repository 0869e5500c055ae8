#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The load generator is content with good servers and finds what is wrong with bad ones: images
# that were damaged after the run, power cuts that took too much, servers that lie while it runs.
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

have qemu-nbd nbdkit || { skip "the load generator" "qemu-nbd and nbdkit are needed"; exit; }
size=$((16 << 20))
image=$dir/disk.img state=$dir/state socket=$dir/socket report=$dir/report

# In the page cache requests that overlap may mix within a sector; O_DIRECT has them whole.
dd if=/dev/zero of="$dir/probe" bs=4k count=1 oflag=direct 2>/dev/null && run=("$hammer") ||
	run=("$hammer" --tearing)
rm "$dir/probe"

fresh() { rm -f "$image"; truncate -s $size "$image"; }

# load ARGUMENT…: in the background, its report in $report; $pid is still the server.
load() {
	local server=$pid
	: >"$report"
	log=$report spawn "${run[@]}" "$@"
	load=$pid pid=$server
}

# Waits for the load; its exit status.
loaded() { wait "$load"; load_status=$?; lib_forget "$load"; return $load_status; }

good_servers() {
	local n
	for n in 1 4; do
		fresh
		start_qemu_nbd "$socket" "$image"
		check "good: qemu-nbd, $n connections" "${run[@]}" --time 2 --connections "$n" \
			--hot 20 --overlap 30 "$uri"
		stop "$pid"
		start_nbdkit "$socket" memory $size
		check "good: nbdkit, $n connections" "$hammer" --time 2 --connections "$n" \
			--hot 20 --overlap 30 "$uri"
		stop "$pid"
	done
	fresh
	start_qemu_nbd "$socket" "$image"
	check "good: a small range, where everything overlaps" "${run[@]}" --time 2 \
		--range 1M:256k --connections 2 --overlap 80 "$uri"
	check "good: filled in part" "${run[@]}" --range 2M:4M --fill 40 --requests 500 "$uri"
	"${run[@]}" --range 6M:4M --requests 4000 --json "$uri" >"$report" 2>&1
	check "4000 requests are 4000 requests" json_is "$report" \
		'.requests == 4000 and .status == 0'
	"${run[@]}" --range 10M:4M --time 2 --iops 100 --json "$uri" >"$report" 2>&1
	check "100 requests a second are 100 requests a second" json_is "$report" \
		'.requests > 120 and .requests < 220 and .status == 0'
	check_fails "content of another run is a mismatch" 1 "of another run" \
		"${run[@]}" --range 1M:256k --requests 10 "$uri"
	check "unless it may be there" "${run[@]}" --range 1M:256k --initial any --time 1 "$uri"
	stop "$pid"
}

# The project's own server has overlapping requests in order: nothing may mix.
own_server() {
	local name="good: blockmirror-nbd, killed and started again"
	[ -x "$BUILD/blockmirror-nbd" ] || { skip "$name" "it is not built"; return; }
	fresh
	start_blockmirror_nbd "$socket" "$image"
	load --time 3 --connections 4 --reconnect 10 --hot 20 --overlap 30 --state "$state" "$uri"
	for _ in 1 2; do
		sleep 1
		kill9 "$pid"
		start_blockmirror_nbd "$socket" "$image"
	done
	loaded
	result $? "$name" "$report"
	check "and its image is as it must be" "$hammer" --check "$state" "$uri"
	stop "$pid"
}

usage() {
	check_fails "no URI" 2 "usage" "$hammer"
	check_fails "no server" 7 "cannot connect" "$hammer" "$(nbd_uri "$dir/none")"
	start_nbdkit "$socket" --filter=multi-conn memory $size multi-conn-mode=disable
	check_fails "flushes that do not cover other connections" 2 "multi-conn" \
		"$hammer" --connections 2 "$uri"
	stop "$pid"
}

# Servers that go away

going_away() {
	fresh
	start_qemu_nbd "$socket" "$image"
	load --time 4 --connections 2 --reconnect 10 --state "$state" --json "$uri"
	for _ in 1 2 3; do
		sleep 0.8
		kill9 "$pid"
		sleep 0.2
		start_qemu_nbd "$socket" "$image"
	done
	loaded
	result $? "good: a server that is killed and comes back" "$report"
	check "three reconnects of each connection, and the stall, are reported" \
		json_is "$report" '.reconnects == 6 and .longest_stall.ms > 200'
	check "the saved state fits" "$hammer" --check "$state" "$uri"
	load --time 0 --connections 2 --initial any --state "$state" "$uri"
	sleep 1
	kill -TERM "$load"
	loaded
	result $? "SIGTERM ends the load in order" "$report"
	check "and saves a state that fits" "$hammer" --check "$state" "$uri"
	load --time 0 --initial any "$uri"
	sleep 0.5
	kill9 "$pid"
	loaded
	check_fails "a lost connection is an error" 1 "connection lost" show_report
	start_qemu_nbd "$socket" "$image"
	load --time 0 --initial any --cut-ok --state "$state" "$uri"
	sleep 0.5
	kill9 "$pid"
	loaded
	result $? "unless it was to be expected" "$report"
	start_qemu_nbd "$socket" "$image"
	check "and what had no answer is done or not" "$hammer" --check "$state" "$uri"
	load --time 0 --initial any --patience 1 "$uri"
	sleep 0.5
	kill -STOP "$pid"
	loaded
	check_fails "a server that does not answer is an error" 1 "without an answer" show_report
	stop "$pid"
}

show_report() { cat "$report"; return $load_status; }

# Damaged images

# sector FILE LBA; put_sector FILE LBA, from standard input.
sector() { dd if="$1" bs=512 skip="$2" count=1 2>/dev/null; }
put_sector() { dd of="$1" bs=512 seek="$2" count=1 iflag=fullblock conv=notrunc 2>/dev/null; }

# judge NAME STATUS TEXT FILE [OPTION…]: the check of an image ends so.
judge() {
	local name=$1 status=$2 text=$3 file=$4
	shift 4
	start_qemu_nbd "$socket" "$file" -r
	check_fails "$name" "$status" "$text" "$hammer" --check "$state" "$@" "$uri"
	stop "$pid"
}

# damaged NAME TEXT LBA COMMAND…: a copy of the good image after COMMAND, which writes to $image.
damaged() {
	local name=$1 text=$2 lba=$3
	shift 3
	cp --sparse=never "$dir/good" "$image"
	"$@"
	judge "$name" 1 "mismatch: LBA $lba .*expected .*; found .*$text" "$image"
}

flip() { sector "$dir/good" "$1" | tail -c 200 | tr '\000-\377' '\001-\377\000' >"$dir/tail"
	{ sector "$dir/good" "$1" | head -c 312; cat "$dir/tail"; } | put_sector "$image" "$1"; }
garbage() { head -c 512 /dev/urandom | put_sector "$image" "$1"; }
zeroed() { put_sector "$image" "$1" </dev/zero; }
swapped() { sector "$dir/good" "$1" | put_sector "$image" "$2"
	sector "$dir/good" "$2" | put_sector "$image" "$1"; }
replaced() { sector "$2" "$1" | put_sector "$image" "$1"; }
torn() { { sector "$dir/old" "$1" | head -c 256; sector "$dir/good" "$1" | tail -c 256; } |
	put_sector "$image" "$1"; }

# $dir/old, flushed, then $dir/good: every sector is written in both. $dir/foreign: another run.
# Two parts of the disk stay zero. $lba changed from old to good, $holed is zero in both.
make_images() {
	fresh
	start_qemu_nbd "$socket" "$image"
	"${run[@]}" --range 0:8M --fill 100 --mix read=1 --requests 1 "$uri" >>"$dir/log" 2>&1
	stop "$pid"
	cp "$image" "$dir/foreign"
	fresh
	rm -f "$state"
	start_qemu_nbd "$socket" "$image"
	"${run[@]}" --range 0:8M --fill 50 --mix read=1 --requests 1 --state "$state" "$uri" \
		>>"$dir/log" 2>&1
	stop "$pid"
	cp "$image" "$dir/old"
	start_qemu_nbd "$socket" "$image"
	"${run[@]}" --resume --state "$state" --mix write=1 --sizes 512:64k --requests 300 "$uri" \
		>>"$dir/log" 2>&1
	stop "$pid"
	mv "$image" "$dir/good"
}

# written FILE LBA: the sector holds data.
written() { [ "$(sector "$1" "$2" | tr -d '\000' | wc -c)" -gt 0 ]; }

# Looks for a sector that was overwritten, and for one that never was written.
choose_sectors() {
	local i
	lba='' holed=''
	for i in $(seq 3 37 8190); do
		if written "$dir/old" "$i"; then
			[ -n "$lba" ] || cmp -s <(sector "$dir/old" "$i") <(sector "$dir/good" "$i") ||
				! written "$dir/good" $((i + 1)) || lba=$i
		elif ! written "$dir/good" "$i"; then
			holed=$i
		fi
		[ -n "$lba" ] && [ -n "$holed" ] && return
	done
	return 1
}

damaged_images() {
	check "sectors to damage are found" choose_sectors
	judge "good: the image as it was left" 0 "good" "$dir/good"
	damaged "bytes that changed" "torn" "$lba" flip "$lba"
	damaged "garbage" "no sector of a load generator" "$lba" garbage "$lba"
	damaged "a sector that was lost" "zeros" "$lba" zeroed "$lba"
	damaged "a sector that came back from the past" "seq" "$lba" replaced "$lba" "$dir/old"
	damaged "half a sector from the past" "torn" "$lba" torn "$lba"
	damaged "two sectors that changed places: the one" "misplaced: it belongs to LBA $((lba + 1))" \
		"$lba" swapped "$lba" $((lba + 1))
	damaged "two sectors that changed places: the other" "misplaced: it belongs to LBA $lba" \
		$((lba + 1)) swapped "$lba" $((lba + 1))
	damaged "data where zeros must be" "seq" "$holed" replaced "$holed" "$dir/foreign"
	damaged "a sector of another run" "of another run" "$lba" replaced "$lba" "$dir/foreign"
	judge "the whole disk from the past" 1 "mismatch" "$dir/old"
	head -c 4M "$dir/good" >"$image"
	judge "a disk that is too short" 1 "the state covers" "$image"
	head -c 300 "$state" >"$dir/cut"
	state=$dir/cut judge "a damaged state" 1 "damaged" "$dir/good"
}

# Power cuts: unlike damage, old content is allowed where no flush and no FUA came in between.

# A load that is cut off; then the disk is what it was before.
cut_load() {
	cp "$dir/good" "$image"
	cp "$dir/good.state" "$state"
	start_qemu_nbd "$socket" "$image"
	load --resume --state "$state" --cut-ok --time 0 --mix write=1 "$@" "$uri"
	sleep 0.5
	kill9 "$pid"
	loaded
}

power_cuts() {
	cp "$state" "$dir/good.state"
	judge "good: nothing was lost" 0 "good" "$dir/good" --after-crash
	judge "content from before the last flush" 1 "mismatch" "$dir/old" --after-crash
	cut_load --fua 0
	result $? "a load ends with the power" "$report"
	judge "good: the disk as it was when the power went" 0 "good" "$image" --after-crash
	judge "good: writes without a flush are lost" 0 "good" "$dir/good" --after-crash
	judge "but not without a power cut" 1 "mismatch" "$dir/good"
	judge "content from before the last flush, again" 1 "mismatch" "$dir/old" --after-crash
	judge "what survived is taken for granted" 0 "good" "$dir/good" --after-crash --adopt
	judge "and is what is expected from then on" 0 "good" "$dir/good"
	judge "and nothing else is, after the next power cut" 1 "mismatch" "$image" --after-crash
	cut_load --fua 100
	judge "FUA writes that are lost" 1 "mismatch" "$dir/good" --after-crash
	judge "good: FUA writes that are there" 0 "good" "$image" --after-crash
}

# Servers that lie. A server of shell commands, with parts of it replaced; $at is a place where
# many requests go.

# server NAME=SCRIPT…
server() {
	local -A part=(
		[get_size]='echo 262144' [thread_model]='echo parallel' [flush]='exit 0'
		[pread]=$get [pwrite]=$put [zero]="head -c \$3 /dev/zero | $put"
	)
	local given name parts=()
	for given; do part[${given%%=*}]=${given#*=}; done
	for name in "${!part[@]}"; do parts+=("$name=${part[$name]}"); done
	rm -f "$dir/disk" "$dir/twin"
	truncate -s 256k "$dir/disk" "$dir/twin"
	start_nbdkit "$socket" eval "${parts[@]}"
}
from="iflag=skip_bytes,count_bytes skip=\$4 count=\$3 bs=64k"
get="dd if=$dir/disk $from"
put="dd of=$dir/disk oflag=seek_bytes seek=\$4 bs=1M iflag=fullblock conv=notrunc"
at="[ \$4 -ge 65536 ] && [ \$4 -lt 131072 ]"

# liar NAME NAME=SCRIPT…: it is found out.
liar() {
	local name=$1
	shift
	server "$@"
	check_fails "$name" 1 "mismatch: LBA" "$hammer" --tearing --time 20 --first \
		--sizes 512:32k --overlap 30 "$uri"
	stop "$pid"
}

liars() {
	server
	check "good: a server of shell commands" "$hammer" --tearing --time 2 --sizes 512:32k \
		--overlap 30 "$uri"
	stop "$pid"
	liar "a server that drops writes" pwrite="if $at; then cat >/dev/null; else $put; fi"
	liar "a server that tears writes" \
		pwrite="if $at; then head -c \$((\$3 - 256)) | $put; cat >/dev/null; else $put; fi"
	liar "a server that mixes sectors up" \
		pwrite="cat >\$tmpdir/\$\$; if $at; then
			{ tail -c 512 \$tmpdir/\$\$; head -c \$((\$3 - 512)) \$tmpdir/\$\$; } | $put
			else $put <\$tmpdir/\$\$; fi; rm \$tmpdir/\$\$"
	liar "a server that writes to the wrong place" \
		pwrite="if $at; then set -- x x \$3 \$((\$4 + 512)); fi; $put"
	liar "a server that reads from the wrong place" \
		pread="if $at; then set -- x x \$3 \$((\$4 - 512)); fi; $get"
	liar "a server that returns old content" \
		pwrite="case \$(date +%N) in *0) cp $dir/disk $dir/twin; esac; $put" \
		pread="if $at; then dd if=$dir/twin $from; else $get; fi"
	liar "a server that ignores zeroes" zero='exit 0'
	liar "a server that zeroes too much" zero="head -c \$((\$3 + 512)) /dev/zero | $put"
	liar "a server that trims what it was not asked to" \
		trim="set -- x x \$3 \$((\$4 / 4096 * 4096)); head -c 4096 /dev/zero | $put"
	liar "a server that answers before it writes" pwrite="cat >\$tmpdir/\$\$
		(sleep 0.2; $put <\$tmpdir/\$\$; rm \$tmpdir/\$\$) >/dev/null 2>&1 &"
	sleep 0.5 # and does not write to the next one's disk
	liar "a server whose reads go back in time" \
		pwrite="cat >\$tmpdir/\$\$; $put <\$tmpdir/\$\$; sleep 0.05; set -- x x \$3 \$4
			dd if=\$tmpdir/\$\$ of=$dir/twin oflag=seek_bytes seek=\$4 bs=1M conv=notrunc" \
		pread="case \$(date +%N) in *[02468]) dd if=$dir/twin $from;; *) $get;; esac"
	start_nbdkit "$socket" --filter=error memory $size error-pread-rate=2%
	check_fails "a server that fails reads" 1 "error: read at offset .*: Input/output error" \
		"$hammer" --time 1 "$uri"
	check_fails "and no others" 1 " 0 mismatches" "$hammer" --time 1 --initial any "$uri"
	stop "$pid"
}

good_servers
own_server
usage
going_away
make_images
damaged_images
power_cuts
liars
