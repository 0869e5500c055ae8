#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk's storage moves to another host (bm://HOST/PATH), which lets it in where its owner allows it,
# serves it to the disk's host alone, and comes back when any of its processes dies.
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "$0")/hosts.bash"

have nbdinfo gnutls-cli ss qemu-img || { skip "disks on other hosts" "libnbd-bin, gnutls-bin, iproute2, qemu-utils"; exit; }
need_hosts
there=bm://host-b$store
if [ "${BY:-}" = x509 ]; then by_key='' trust=tls-certificates=$dir/a/state/peers/x509
else by_key=yes trust=tls-psk-file=$dir/a/state/peers/host-b.psk; fi

begin() {
	make_image "$dir/disk.img"
	check "two hosts are paired" hosts_up
	on a mkdir "$store/img"
	on b mkdir "$store/img" "$store/other" "$store/small"
	on a truncate -s 1M "$store/cold.img"
	on b ln -s "$store/other" "$store/img/way-out"
	cp --sparse=always "$dir/disk.img" "$(in_store a img/disk.img)"
	check "a serves a disk" on a serve disk "$store/img/disk.img"
}
uri_of_disk() { jq -R -r 'fromjson? | .uri' "$dir/$1/state/disks/disk/record"; }
role_is() { [ "$(on "$1" show disk .role)" = "$2" ]; }
nothing_on_b() { [ -z "$(on b find "$store" -type f)" ] && [ ! -e "$dir/b/state/disks/disk" ] && [ ! -e "$dir/b/state/serve/disk.json" ]; }
pid_of() { on "$1" show disk .pid; }

refusals() {
	local move=(bm_on a relocate disk)
	check_fails "what is not allowed is refused" 3 \
		"E_ACCESS: host host-b does not let host host-a put disks into $store/img: .*peer allow host-a --receive $store/img" \
		"${move[@]}" "$there/img/"
	check "b allows a folder" bm_on b peer allow host-a --receive "$store/img" --receive "$store/small"
	check "that is listed" json_of '.peers[0].receive | length == 2' bm_on b peer list --json
	check_fails "another folder is not" 3 "E_ACCESS" "${move[@]}" "$there/other/disk.img"
	check_fails "nor by way of a link" 3 "E_ACCESS" "${move[@]}" "$there/img/way-out/disk.img"
	check_fails "nor by dots" 3 "E_ACCESS" "${move[@]}" "$there/img/../other/disk.img"
	check_fails "nor one beside it" 3 "E_ACCESS" "${move[@]}" "$there/imgs/disk.img"
	check_fails "a folder that is not there looks like it" 3 "E_ACCESS" "${move[@]}" "$there/img/no/disk.img"
	check_fails "a host that nobody knows" 4 "E_NOT_FOUND: host host-c is not known" \
		"${move[@]}" bm://host-c/srv/disk.img
	check_fails "no path" 2 "E_URI: .*bm://HOST/PATH" "${move[@]}" bm://host-b
	check_fails "it is no image to serve" 3 "E_UNSUPPORTED" bm_on a serve other "$there/img/disk.img"
	check_fails "nor to copy from nothing" 3 "E_UNSUPPORTED.*a served disk" \
		bm_on a copy "$store/cold.img" "$there/img/copy.img"
	on b mount -t tmpfs -o size=1M tmpfs "$store/small"
	check_fails "no space" 3 "E_ENOSPC: $store/small on host host-b: no space: the disk takes" \
		"${move[@]}" "$there/small/"
	on b umount "$store/small"
	on b truncate -s 128M "$store/img/disk.img"
	check_fails "an image that exists" 3 "E_EXISTS: $store/img/disk.img exists on host host-b; --overwrite" \
		"${move[@]}" "$there/img/"
	on b truncate -s 1M "$store/img/disk.img"
	check_fails "one that is too small" 3 "E_TOO_SMALL" "${move[@]}" "$there/img/" --overwrite
	on b rm "$store/img/disk.img"
	check "nothing came of it on b" nothing_on_b
	check "nor on a" disk_on_a
}
disk_on_a() { [ "$(on a show disk .uri)" = "$store/img/disk.img" ]; }
json_of() { "${@:2}" | jq -e "$1" >"$dir/out"; } # FILTER COMMAND…

moving() {
	check "a guest" on a start_load disk
	check "a move begins" bm_on a relocate disk "$there/img/" --rate 2M --detach
	check "b has the copy" role_is b standby
	check "it is cancelled" bm_on a job cancel disk
	check "b has it no more" wait_for 10 nothing_on_b
	check "it moves" bm_on a relocate disk "$there/img/" --guest-latency off
	check "the guest has noticed nothing" on a end_load
	check "all is there" store_fits b img/disk.img
	check "and no more" sparse_on_b
	check "it is shown as it was named" on_b_now
	check "its record has the key's place, not the key" grep -q "$trust" \
		"$dir/a/state/disks/disk/record"
	check "b lists it as a standby" grep_of '^disk .* standby ' bm_on b list
	check "whois knows it there" answers 1 "which host host-a has" bm_on b whois "$store/img/disk.img"
	check "the old image is retired" grep_of retired bm_on a whois "$store/img/disk.img"
}
grep_of() { "${@:2}" 2>&1 | grep -q "$1"; }
answers() { # STATUS TEXT COMMAND…
	"${@:3}" >"$dir/out" 2>&1
	[ $? -eq "$1" ] && grep -q "$2" "$dir/out"
}
sparse_on_b() { on b is_sparse "$(in_store b img/disk.img)"; }
on_b_now() { [ "$(on a show disk .uri)" = "$there/img/disk.img" ]; }

# What a guest of b gets: a VMM probes the disk, and may not change it.
standby() {
	local uri
	uri=$(nbd_uri "$dir/b/run/disks/disk.nbd" disk)
	check "a guest of the standby reads" guest "h.pread(4096, 0)"
	check "and flushes" guest "h.flush()"
	check "and sees a disk that can be written" guest "assert not h.is_read_only()"
	check_fails "but does not write" 1 "Operation not permitted" guest "h.pwrite(b'x' * 4096, 0)"
	check_fails "nor zero" 1 "Operation not permitted" guest "h.zero(4096, 0)"
	check_fails "nor trim" 1 "Operation not permitted" guest "h.trim(4096, 0)"
	check "that is told" grep -q "a guest's write is refused: the disk is a standby of host host-a" \
		"$dir/b/run/disks/disk.log"
	check_fails "a standby does not move" 3 "E_RETIRED: .*on host host-a" bm_on b relocate disk "$store/other/"
	check_fails "nor is it upgraded" 3 "E_UNSUPPORTED: .*standby" bm_on b upgrade disk
}

guest() { /usr/bin/python3 -c "import nbd; h = nbd.NBD(); h.connect_uri('$uri'); $1"; }

# b's port for it is a's alone.
strangers() {
	local port key
	port=$(uri_of_disk a | sed 's/.*:\([0-9]*\)\/disk?.*/\1/')
	bm_on b peer pair host-x 10.77.0.9:1 >"$dir/pairing"
	key=$(sed -n 's/.*<<<//p' "$dir/pairing")
	echo "host-x:$key" >"$dir/x.psk"
	check "it is on b's address" grep_of "10.77.0.2:$port" on b ss -tln
	check "a may" on a nbdinfo "nbds://${by_key:+host-a@}10.77.0.2:$port/disk?$trust"
	check_fails "another host of b's may not" 1 "error|unknown|No such|credentials" \
		on a nbdinfo "nbds://host-x@10.77.0.2:$port/disk?tls-psk-file=$dir/x.psk"
	sed 's/^host-x/host-a/' "$dir/x.psk" >"$dir/a.psk"
	check_fails "nor by a's name" 1 "TLS|handshake" \
		on a nbdinfo "nbds://host-a@10.77.0.2:$port/disk?tls-psk-file=$dir/a.psk"
	check_fails "nor without TLS" 1 "TLS" on a nbdinfo "nbd://10.77.0.2:$port/disk"
	check "what a host discards must be its own" says_not_found
	bm_on b peer remove host-x >>"$dir/log"
}
says_not_found() {
	{ echo '{"jsonrpc":"2.0","id":1,"method":"hello","params":{"versions":[1,1]}}'
	  echo '{"jsonrpc":"2.0","id":2,"method":"discard","params":{"name":"disk","disk":"'"$(on b show disk .disk)"'"}}'
	  sleep 0.5; } | on a gnutls-cli --pskusername host-x --pskkey "$key" --priority \
		'NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK' -p 7700 10.77.0.2 >"$dir/said" 2>&1
	grep -q 'is no standby of the host' "$dir/said"
}

# The disk is on b: whatever dies there, or here, its guest only waits.
deaths() {
	local port
	port=$(uri_of_disk a)
	check "a guest, on storage of b" on a start_load disk --initial any --reconnect 60
	check "b's process is killed" kill -KILL "$(pid_of b)"
	check "it is back, and the guest goes on" on a works
	check "b's daemon is killed" host_kill b
	check "the guest goes on" on a works
	check "and started again" host_start b
	check "it has adopted the standby" role_is b standby
	check "b's process is killed again" kill -KILL "$(pid_of b)"
	check "the guest goes on again" on a works
	check "at the same port" test "$port" = "$(uri_of_disk a)"
	check "b goes down and comes back" reboot_b
	check "the guest goes on, as before" on a works
	check "the network is cut" cut_network
	sleep 3
	check "and heals" join_network
	check "the guest goes on, too" on a works
	check "a's process is killed" kill -KILL "$(pid_of a)"
	check "a's guest goes on" on a works
	check "nothing is lost" on a end_load
	check "all is on b" store_fits b img/disk.img
}
reboot_b() {
	local p
	p=$(pid_of b)
	host_kill b && kill -KILL "$p" && wait_for 10 lib_gone "$p" && rm -rf "$dir/b/run" && host_start b
}

back() {
	check "a guest, again" on a start_load disk --initial any
	check_fails "with the image that is there already it stays" 3 "E_EXISTS|E_SAME" \
		bm_on a relocate disk "$there/img/disk.img"
	check_fails "nor is it overwritten by itself" 3 "E_SAME: bm://host-b.* is the image that the disk is on" \
		bm_on a relocate disk "$there/img/disk.img" --overwrite
	check "it moves back, and b's copy goes" bm_on a relocate disk "$store/img/back.img" --delete-source \
		--guest-latency off
	check "the guest has noticed nothing" on a end_load
	check "b has nothing any more" nothing_on_b
	check "all is on a" store_fits a img/back.img
	check "it moves, and b keeps its copy" bm_on a relocate disk "$there/img/" --guest-latency off
	check "it moves back, again" bm_on a relocate disk "$store/img/again.img" --guest-latency off
	check_fails "b's old copy is not for nothing" 3 "E_EXISTS: .*from an earlier move; --overwrite" \
		bm_on a relocate disk "$there/img/back.img"
	check_fails "there is no second one" 3 "E_EXISTS: .*back.img, from an earlier move: move it there" \
		bm_on a relocate disk "$there/img/" --overwrite
	check "it is used again" bm_on a relocate disk "$there/img/back.img" --overwrite --guest-latency off
	check "all is there" store_fits b img/back.img
}

# One cap for all that a host sends: at once, and no more when it is lifted.
capped() {
	check "no cap is set" grep_of 'no limit' bm_on a rate
	check "a cap of 1 MiB/s" bm_on a rate 1M
	check_fails "another word" 2 "rate" bm_on a rate fast
	check "is shown" json_of '.rate == 1048576' bm_on a rate --json
	check "a disk moves back" bm_on a relocate disk "$store/capped.img" --delete-source --guest-latency off
	check "what it reads from b is not sent" disk_is_on_a "$store/capped.img"
	check "and to b" bm_on a relocate disk "$there/img/capped.img" --guest-latency off --detach
	check "it is limited" wait_for 20 limited_by "rate cap"
	check "by half as much" bm_on a rate 512k
	check "until it is not" bm_on a rate off
	check "then it comes to its end" wait_for 60 on_b_at img/capped.img
}
disk_is_on_a() { [ "$(on a show disk .uri)" = "$1" ]; }
limited_by() { [ "$(on a show disk .limiter)" = "$1" ]; }

# b's storage fills up while the disk comes.
full() {
	on b mount -t tmpfs -o size=80M tmpfs "$store/small"
	check "a disk of 60 MiB goes where 80 are free" bm_on a relocate disk "$store/full.img" --delete-source --guest-latency off
	check "slowly" bm_on a relocate disk "$there/small/" --rate 4M --detach
	on b dd if=/dev/zero of="$store/small/other" bs=1M count=60 status=none
	bm_on a job set disk --rate 0 >>"$dir/log"
	check "b is full" wait_for 20 limited_by "target full"
	on b rm "$store/small/other"
	check "when there is space it goes on" wait_for 60 on_b_at small/full.img
}
on_b_at() { [ "$(on a show disk .uri)" = "$there/$1" ] && [ "$(on a job disk .state)" = "done" ]; }

without_daemon() {
	check "a's daemon is gone" host_stop a
	check_fails "nobody asks b" 7 "E_UNREACHABLE: blockmirrord does not run" \
		bm_on a relocate disk "$there/img/other.img"
	check "it comes back" host_start a
	check "b's daemon is gone" host_stop b
	check_fails "b cannot be asked" 7 "E_UNREACHABLE: cannot connect to 10.77.0.2:7700" \
		bm_on a relocate disk "$there/img/other.img"
}

begin
refusals
moving
standby
strangers
deaths
back
capped
full
without_daemon
