#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A datastore is drained to another host (bm://HOST/FOLDER): a disk that is served goes on being served here
# and has its storage there; images that nobody uses are files there, byte for byte, and nobody's disk.
# That host is asked for its room, may say no, and is in maintenance.
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "$0")/hosts.bash"

need_hosts
have qemu-img || { skip "drains to other hosts" "qemu-utils"; exit; }
there=bm://host-b$store/in old=$store/old

begin() {
	check "two hosts are paired" hosts_up
	on a mkdir -p "$old/sub" "$store/here"
	on b mkdir "$store/in"
	make_image "$dir/disk.img"
	cp --sparse=always "$dir/disk.img" "$(in_store a old/disk.img)"
	check "a serves a disk" on a serve disk "$old/disk.img"
	on a dd if=/dev/urandom of="$old/raw.img" bs=1M count=9 2>>"$dir/log"
	on a dd if=/dev/urandom of="$old/sub/deep.img" bs=1M count=1 2>>"$dir/log"
	on a qemu-img create -q -f qcow2 "$old/c.qcow2" 16M
	on a qemu-io -f qcow2 -c 'write -q -P 7 1M 3M' "$old/c.qcow2" >>"$dir/log"
	raw=$(on a sha256sum "$old/raw.img" | cut -d ' ' -f 1)
}
drain() { bm_on a drain "$old" --to "$there" "$@"; }
stays() { jq -e ".images[] | select(.image == \"$old/$1\") | .why.code == \"$2\"" "$dir/out"; }
sum_on_b() { on b sha256sum "$store/in/$1" | cut -d ' ' -f 1; }

refusals() {
	check_fails "what is not allowed is refused" 3 "E_ACCESS: .*peer allow host-a --receive" drain --delete-source --dry-run
	check "b allows a folder" bm_on b peer allow host-a --receive "$store/in"
	check "b is in maintenance" bm_on b maintenance on
	check_fails "nothing goes there" 3 "E_MAINTENANCE" drain --delete-source --dry-run
	check_fails "no disk by itself, either" 3 "E_MAINTENANCE" bm_on a relocate disk "$there/"
	check "no more" bm_on b maintenance off
	check "the folder alone is" bm_on b maintenance on "$store/in"
	check_fails "that is the same" 3 "E_MAINTENANCE: $store/in" drain --delete-source --dry-run
	check_fails "for one disk, too" 3 "E_MAINTENANCE" bm_on a relocate disk "$there/"
	check "it is over" bm_on b maintenance off "$store/in"
	check "the plan" drain --delete-source --dry-run --json
	check "what is in a folder stays" stays sub/deep.img E_UNSUPPORTED
	check "no room" drain --delete-source --dry-run --json --reserve 10G
	check "there for any" jq -e '[.images[] | select(.store)] == []' "$dir/out"
	check_fails "it cannot be drained from here" 3 "another host's" bm_on a drain "$there" --to "$store/here" --keep-source
}

cut_off() {
	log=$dir/drain.log spawn "$dir/a/as/blockmirror" drain "$old" --to "$there" --delete-source --rate 1M --json
	check "a copy is on its way" wait_for 20 on_its_way
	kill -KILL "$pid"
	wait "$pid" 2>/dev/null
	lib_forget "$pid"
	check "killed, the image is here" on a test -e "$old/raw.img"
	check "its process notices that, and ends" wait_for 20 nobody_has "$old/raw.img"
}
nobody_has() { [ -z "$(find /proc/[0-9]*/fd -lname "$1" 2>/dev/null)" ]; }
on_its_way() { jq -ne 'first(inputs | select(.event == "begun" and .kind == "cold"))' "$dir/drain.log" && on b test -e "$store/in/raw.img"; }

it_goes() {
	LIMIT=60 check_fails "it goes there, but for one" 1 "1 left" drain --delete-source --parallel 3
	check "the image is there" test "$(sum_on_b raw.img)" = "$raw"
	check "and here no more" on a test ! -e "$old/raw.img" -a ! -e "$old/c.qcow2" -a ! -e "$old/disk.img"
	check "the qcow2 is good" on b qemu-img check -q "$store/in/c.qcow2"
	check "b has no disk of them" test -z "$(find "$dir/b/state/disks" "$dir/b/state/serve" -name 'cold-*')"
	check "whois knows no disk of it" whois_none
	check "the disk is served here" test "$(on a show disk .role)" = active
	check "its storage is there" on b test -e "$store/in/disk.img"
	on a mv "$old/sub/deep.img" "$old/deep.img"
	check "the rest goes, and is kept" bm_on a drain "$old" --to "$there" --keep-source
	check "it is marked" bm_on_says "disk went to bm://host-b" bm_on a whois "$old/deep.img"
}
whois_none() { bm_on b whois "$store/in/raw.img"; [ $? -eq 4 ]; }
bm_on_says() { "${@:2}" >"$dir/said" 2>&1; cat "$dir/said"; grep -q "$1" "$dir/said"; }

begin
refusals
cut_off
it_goes
