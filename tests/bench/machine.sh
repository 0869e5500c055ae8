#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A whole machine moves to another host: ours beside plain QEMU (disks mirrored to its NBD server, then
# migrate), the same Linux guest, the same disks, the same link; the engines take turns, several rounds,
# medians, and ratios.
#
#	machine.sh          DATA=64M OF=files ROUNDS=3 LINKS="1gbit unshaped" ENGINES="ours peer" BUDGET=300ms RAM=16:8
#
# The guest has 128 MiB, of which RAM=MIB:MIB/S become noise all the time, two disks that it writes to, and
# one with DATA bytes of this system's files, as most disks have (OF=noise: random ones). Ours is under TLS, QEMU's is not. What is measured: the time of all of it
# (ours has the start of the target's QEMU in it, QEMU's has not), the pause and its parts, as the engine
# tells them, the bytes that the host has sent, and the processor's time of all processes of both hosts,
# the guest's included.
# shellcheck source-path=SCRIPTDIR/../system source=../system/machine.bash
. "$(dirname "$0")/../system/machine.bash"

need_machine
have tc bc || { skip "bench" "iproute2, bc"; exit; }
rounds=${ROUNDS:-3} data=$(numfmt --from=iec "${DATA:-64M}") budget=${BUDGET:-300ms} of=${OF:-files}
guest_words=ram=${RAM:-8:4}
read -ra links <<<"${LINKS:-1gbit unshaped}"
read -ra engines <<<"${ENGINES:-ours peer}"
machine_disks=(disk0 disk1 data)
machine_more=(-blockdev "driver=nbd,node-name=data,server.type=unix,server.path=$dir/a/run/disks/data.nbd,export=data,reconnect-delay=60,discard=unmap"
	-device "virtio-blk-pci,id=vdata,drive=data")

# link_is LINK: both ends send at that rate at most, through the queue of a switch's port.
link_is() {
	local host
	for host in a b; do
		on $host tc qdisc del dev eth0 root 2>/dev/null
		[ "$1" = unshaped ] || on $host tc qdisc add dev eth0 root tbf rate "$1" burst 256k latency 20ms || return
	done
}
sent() { on "$1" ip -s -j link show eth0 | jq '.[0].stats64.tx.bytes'; }
# count: from here on; counted: $bytes that a has sent, $spent seconds of processor.
count() {
	before=$(sent a)
	log=$dir/cpu spawn /usr/bin/python3 tests/bench/machine.py --cpu "/proc/${host_holder[a]}/ns/net" "/proc/${host_holder[b]}/ns/net"
	counter=$pid
	wait_for 10 grep -q counting "$dir/cpu"
}
counted() {
	bytes=$(($(sent a) - before))
	kill -TERM "$counter" && wait "$counter"
	lib_forget "$counter"
	spent=$(tail -n 1 "$dir/cpu")
}
files() { tar -cf - -C / usr/lib/x86_64-linux-gnu usr/share usr/bin 2>/dev/null; }
fill_data() { # HOST FILE
	if [ "$of" = noise ]; then
		head -c "$data" /dev/urandom
	else
		{ files || true; } | head -c "$data"
	fi >"$(in_store "$1" "$2")"
	truncate -s "$data" "$(in_store "$1" "$2")"
}

# Each leaves a report in $dir/report.json, and what was counted.
run_ours() {
	local disk
	fill_data a data.img || return
	rm -f "$dir/a/vm.qmp" "$dir/watch.qmp"
	: >"$console.0"; : >"$console.1"
	for disk in "${machine_disks[@]}"; do
		case $disk in
		data) on a serve data "$store/data.img" ;;
		*) on a serve "$disk" "$store/$disk.img" --create 32M ;;
		esac >>"$dir/log" || return
	done
	if ! start_machine || ! bm_on a machine add vm --qmp "$dir/a/vm.qmp" || ! wait_for "${BOOT:-90}" ticked 60 60; then
		echo "no machine on a: $(ticks 0) and $(ticks 1) records"
		return 1
	fi
	count
	move a b --json --timeout 300s >"$dir/report.json" || return
	counted
	machine_qmp b quit >>"$dir/log"
	bm_on b machine remove vm && bm_on a machine remove vm || return
	clear_disks
}
clear_disks() {
	local disk host
	for disk in "${machine_disks[@]}"; do
		bm_on b release "$disk" >>"$dir/log" 2>&1
		wait_for 20 bm_on b stop "$disk" >>"$dir/log" 2>&1 || return
		bm_on a stop "$disk" >>"$dir/log" 2>&1
		for host in a b; do bm_on $host forget "$disk" >>"$dir/log" 2>&1; done
		rm -rf "$dir"/{a,b}/state/disks/"$disk"
	done
	on a sh -c "rm -f $store/*.img*" && on b sh -c "rm -f $store/*.img*"
}

on_file=discard=unmap,file.driver=file,file.cache.direct=on,file.aio=native,file.discard=unmap,file.filename=$store
# peer_qemu HOST [OPTION…]: the same machine, on files.
peer_qemu() {
	local host=$1 i words=()
	mapfile -t words < <(machine_more=(); machine_command | sed -e "s#,path=$console#,path=$console.$host#" \
		-e "s#driver=nbd,node-name=\(disk[01]\),.*#driver=raw,node-name=\1,$on_file/\1.img#" \
		-e "s#$dir/a/vm.qmp#$dir/peer.$host.qmp#; s#$dir/watch/qmp#$dir/peer.$host.watch#")
	words+=(-blockdev "driver=raw,node-name=data,$on_file/data.img" -device "virtio-blk-pci,id=vdata,drive=data")
	spawn_on "$host" "${words[@]}" "${@:2}"
	wait_for 20 test -S "$dir/peer.$host.qmp"
}
run_peer() {
	local host image pids=()
	fill_data a data.img || return
	rm -f "$dir"/peer.*
	for host in a b; do
		for image in disk0 disk1; do truncate -s 32M "$(in_store $host $image.img)" || return; done
		: >"$console.$host.0"; : >"$console.$host.1"
	done
	truncate -s "$data" "$(in_store b data.img)"
	peer_qemu a || return
	pids+=("$pid")
	wait_for "${BOOT:-90}" peer_ticked || return
	peer_qemu b -incoming defer -S || return
	pids+=("$pid")
	count
	/usr/bin/python3 tests/bench/machine.py "$dir/peer.a.qmp" "$dir/peer.b.qmp" "${host_address[b]}" \
		"$(bc <<<"${budget%ms}")" disk0 disk1 data >"$dir/report.json" 2>>"$dir/log" || return
	counted
	stop "${pids[@]}"
	on a sh -c "rm -f $store/*.img" && on b sh -c "rm -f $store/*.img"
}
peer_ticked() { [ "$(grep -c ^TICK "$console.a.0")" -ge 60 ] && [ "$(grep -c ^TICK "$console.a.1")" -ge 60 ]; }

# measured: a line in the results: link, engine, ms of all, of the pause, of its disks, MB sent, s of processor.
measured() {
	: >"$dir/log"
	"run_$engine" >>"$dir/log" 2>&1 || { not_ok "$link: $engine" "$dir/log"; exit 1; }
	line="$link $engine $(jq -r '[.took_ns, .pause_ns, .pause.disks_ns // .disks_ns] | map(. / 1e6 * 10 | round / 10) | join(" ")' "$dir/report.json") $(bc <<<"scale=1; $bytes / 1000000") $spent"
	echo "$line" >>"$dir/results"
	echo "# round $round: $line; $(jq -c '.pause // del(.took_ns, .pause_ns)' "$dir/report.json")"
}
median() { # ENGINE COLUMN
	grep "^$link $1 " "$dir/results" | cut -d ' ' -f "$2" | sort -n |
		awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : 0 }'
}

host_options=([a]="--machine-hooks $hooks" [b]="--machine-hooks $hooks")
{ make_guest && hosts_up && may_receive && watchable a && watchable b; } >>"$dir/log" 2>&1 || { not_ok "two hosts" "$dir/log"; exit; }
: >"$dir/results"
for round in $(seq "$rounds"); do
	for link in "${links[@]}"; do
		link_is "$link" || { not_ok "a link of $link" "$dir/log"; exit; }
		for engine in "${engines[@]}"; do measured; done
	done
done
echo "# load average $(cut -d ' ' -f 1-3 /proc/loadavg), $(nproc) processors"
printf '%-9s %-22s %10s %10s %7s\n' "median of" "$rounds rounds" ours peer ratio
for link in "${links[@]}"; do
	for column in 3:"ms, all" 4:"ms, pause" 5:"ms of it, disks" 6:"MB sent" 7:"s of processor"; do
		a=$(median ours "${column%%:*}") b=$(median peer "${column%%:*}")
		printf '%-9s %-22s %10s %10s %7.2f\n' "$link" "${column#*:}" "$a" "$b" \
			"$(awk -v a="$a" -v b="$b" 'BEGIN { print b ? a / b : 0 }')"
	done
done
[ -z "${CSV:-}" ] || cp "$dir/results" "$CSV"
ok "bench"
