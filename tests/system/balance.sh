#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Datastores are levelled: what one has too much goes to those that have room, the fewest bytes; a disk
# that is served moves while its guest writes; one in maintenance gets nothing.
# shellcheck disable=SC2034,SC2317,SC2015
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"
# shellcheck source=datastore.bash
. "$(dirname "$0")/datastore.bash"

have mkfs.ext4 losetup jq || { skip "balance" "e2fsprogs, util-linux, jq"; exit; }
need_stores "balance"
full=$dir/full one=$dir/one two=$dir/two

fill_of() { df --output=used,size -B1 "$1" | awk 'NR == 2 { printf "%d", $1 * 100 / $2 }'; }
at_most() { [ "$(fill_of "$1")" -le "$2" ] || { df "$1"; return 1; }; }
balance() { "$bm" balance "$full" "$one" "$two" "$@"; }
make_plan() { balance --fill 70% --reserve 0 --dry-run --json >"$dir/plan"; }
planned() { jq -e "$1" "$dir/plan" >>"$dir/log"; }

begin() {
	local i
	check "a datastore" store "$full" 200M
	check "one with room" store "$one" 120M
	check "another one" store "$two" 120M
	for i in 3 5 7 11 13 17 19 23; do random "$full/c$i.img" "$i"; done
	truncate -s 24M "$full/live.img"
	random "$dir/some" 20 && dd if="$dir/some" of="$full/live.img" bs=1M count=8 seek=16 conv=notrunc 2>>"$dir/log"
	random "$full/held.img" 23
	random "$one/stays.img" 10
	serve disk "$full/live.img"
	sync -f "$full"
	exec {holds}<"$full/held.img"
	(cd "$full" && sha256sum -- *.img) >"$dir/sums"
}

the_plan() {
	local bytes least
	check "a plan is made" make_plan
	check "twice alike" twice_alike
	check "what is open stays" planned ".images[] | select(.image == \"$full/held.img\") | .why.code == \"E_LOCKED\""
	check "and what is elsewhere" planned ".images[] | select(.image == \"$one/stays.img\") | .store == null"
	bytes=$(jq '[.images[] | select(.store) | .allocated] | add' "$dir/plan")
	least=$(df --output=used,size -B1 "$full" | awk 'NR == 2 { printf "%d", $1 - $2 * 0.7 }')
	echo "# $bytes bytes of $least that must leave"
	check "little more moves than has to" test "$bytes" -ge "$least" -a "$bytes" -le $((least + 2 * M))
	check "the table says how full all will be" table
	check "nothing has moved" test "$(find "$one" "$two" -type f | wc -l)" = 1
	check "one in maintenance" "$bm" maintenance on "$two"
	check "still has a plan" make_plan
	check "where nothing goes to it" planned "[.images[] | select(.store == \"$two\")] == []"
	check "it is over" "$bm" maintenance off "$two"
}
twice_alike() { cp "$dir/plan" "$dir/first" && make_plan && cmp "$dir/first" "$dir/plan"; }
table() { balance --fill 70% --reserve 0 --dry-run | tee -a "$dir/log" | grep -E "^$full: [0-9]+% full, (69|70)% after that; at most 70%"; }

it_moves() {
	start_load_here
	check "it is done" balance --fill 70% --reserve 0 --json
	cp "$dir/out" "$dir/events"
	check "the guest has noticed nothing" end_load_here
	check "the full one is not full any more" at_most "$full" 71
	check "nor is one of the others" at_most "$one" 71
	check "nor the other" at_most "$two" 71
	check "all images are there once, as they were" all_there
	check "events were told" jq -es '[.[].event] | (index("begun") != null) and (index("over") != null) and .[-1] == "summary"' "$dir/events"
	check "again there is nothing to do" nothing_to_do
	check "more than can be had" test "$(balance --fill 10% --reserve 0 >>"$dir/log" 2>&1; echo $?)" = 1
}
start_load_here() { log=$dir/load.out spawn "$hammer" --time 0 --least 50 --connections 1 --fill 25 --range 0:$((8 * M)) --seed "$seed" --state "$dir/load.state" "$(disk_uri disk)"; load_pid=$pid; sleep 0.3; }
end_load_here() { kill -TERM "$load_pid" && wait "$load_pid"; local status=$?; tail -n 5 "$dir/load.out"; lib_forget "$load_pid"; return $status; }
all_there() {
	local sum name
	while read -r sum name; do
		[ "$name" != live.img ] || continue
		[ "$(find "$full" "$one" "$two" -name "$name" | wc -l)" = 1 ] || { echo "$name"; return 1; }
		[ "$(find "$full" "$one" "$two" -name "$name" -exec sha256sum {} + | cut -d ' ' -f 1)" = "$sum" ] || { echo "$name differs"; return 1; }
	done <"$dir/sums"
}
nothing_to_do() { balance --fill 71% --reserve 0 --dry-run | tee -a "$dir/log" | grep -E "^0 of [0-9]+ move"; }

on_exit stores_down
begin
the_plan
it_moves
check_fails "two that are one" 3 "on one file system" "$bm" balance "$full" "$full" --dry-run
check_fails "one alone" 2 "too few" "$bm" balance "$full"
check_fails "no share" 2 "a share like 80%" balance --fill 80
