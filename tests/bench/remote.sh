#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk that moves to another host, ours beside qemu-storage-daemon's blockdev-mirror into qemu-nbd:
# the same data, guest and link, in plain text and under TLS; the engines take turns, several rounds,
# medians.
#
#	remote.sh           SIZE=1G DATA=384M ROUNDS=3 LINKS="1gbit unshaped" TRANSPORTS="plain tls"
#	                    LOADS="idle 500" ENGINES="ours peer" RTT_MS=0.5 CONGESTION=
#	                    OF=noise (or: files) MODE=write-blocking PEER_TLS=x509 HEAP=kept LATENCY=off
#
# Ours is `relocate` to bm:// under TLS, in plain to a blockmirror-nbd. Of the image the first DATA
# bytes are there, the rest is holes. A load is a guest's rate of 4 KiB random writes, as many a
# second. Time counts from the command on, so it has the connecting in it, and with bm:// the making
# of the image; to "in sync", which both report after a flush. Processor's time is that of both hosts'
# processes, which is of use when the machine has other things to do.
#
# The peer is taken at its best:
# - MODE=background is its default, but with a guest it may never get there; ours is write-blocking.
# - PEER_TLS=psk is what ours has, but there QEMU ends up with ChaCha20 where the processor has AES.
# - HEAP=own is how it is by itself: each request's megabyte is taken from the kernel and given back, a
#   page fault for every 4 KiB of it, and in a virtual machine those can cost more than all the rest.
size=$(numfmt --from=iec "${SIZE:-1G}") data=$(numfmt --from=iec "${DATA:-384M}")
# The link is what is measured, not a disk: the stores are in memory where there is room.
[ $(($(df --output=avail -B 1 /dev/shm 2>/dev/null | tail -n 1))) -lt $((4 * size)) ] ||
	export TMPDIR=${TMPDIR:-/dev/shm}
# shellcheck source-path=SCRIPTDIR/../system source=../system/hosts.bash
. "$(dirname "$0")/../system/hosts.bash"
# shellcheck source-path=SCRIPTDIR/../system source=../system/tls.bash
. "$PWD/tests/system/tls.bash"
have fio socat tc bc qemu-storage-daemon qemu-nbd ||
	{ skip "bench" "fio, socat, iproute2, bc, qemu-system-common, qemu-utils"; exit; }
need_hosts
rounds=${ROUNDS:-3} mode=${MODE:-write-blocking} peer_tls=${PEER_TLS:-x509} rtt=${RTT_MS:-0.5}
read -ra links <<<"${LINKS:-1gbit unshaped}"
read -ra transports <<<"${TRANSPORTS:-plain tls}"
read -ra loads <<<"${LOADS:-idle 500}"
read -ra engines <<<"${ENGINES:-ours peer}"
store_size=$((size * 5 / 2))
port=10809 peers_socket=$dir/peer.sock target=$store/target.img keys=$dir/keys

# The link

# link_is LINK: both ends send at that rate at most, through the queue of a switch's port, and half
# the round trip later, where the kernel has netem; not all have it.
link_is() {
	local host place
	for host in a b; do
		on $host tc qdisc del dev eth0 root 2>/dev/null
		[ "$1" = unshaped ] && continue
		place=(parent 1:1)
		on $host tc qdisc add dev eth0 root handle 1: netem delay "$(bc <<<"$rtt * 500")us" \
			2>>"$dir/log" || { place=(root) delayed=no; }
		on $host tc qdisc add dev eth0 "${place[@]}" tbf rate "$1" burst 256k latency 20ms || return
	done
}

# The guest

start_guest() { # URI
	[ "$load" != idle ] || return 0
	rm -f "$dir"/guest_*.log
	log=/dev/null spawn fio --name=guest --ioengine=nbd --uri="$1" --rw=randwrite --bs=4k \
		--iodepth=8 --size="$data" --rate_iops="$load" --time_based --runtime=600 \
		--randrepeat=0 --write_lat_log="$dir/guest" --log_unix_epoch=1 --log_avg_msec=0 \
		--disable_clat=1 --disable_slat=1 --aux-path="$dir" --output="$dir/fio.out"
	guest=$pid
	sleep 1.8
}

# end_guest: what he wrote is in the log when he has ended, not before.
end_guest() {
	[ "$load" != idle ] || return 0
	kill -INT "$guest"
	wait "$guest"
	lib_forget "$guest"
}

# felt BEGIN END: of the requests that ended in [BEGIN, END), in ms: the p99 in us, and how many a second.
felt() {
	[ "$load" != idle ] || { echo 0 0; return; }
	awk -F', *' -v a="$1" -v b="$2" '$1 >= a && $1 < b { print int($2 / 1000) }' "$dir"/guest_lat.1.log |
		sort -n | awk -v t=$(($2 - $1)) '{ v[NR] = $1 }
			END { print NR ? v[NR - int(NR / 100)] : 0, int(NR * 1000 / t) }'
}

# The engines. Each leaves $begin and $end, in ms, and its processes in ${at[a]}, ${at[b]}.

declare -A at=() before=()
now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }
# ticks PID: of the processor, that it has used, threads that ended included.
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }

# serve_target TRANSPORT: the peer's server or, in plain, ours, of an image that is all holes.
serve_target() { # COMMAND…
	on b truncate -s "$size" "$target"
	spawn_on b "$@" "$target"
	at[b]=$pid before[b]=0
	wait_for 10 listens "$pid" && ! lib_gone "$pid"
}
listens() { lib_gone "$1" || grep -qi " 02004D0A:$(printf %04X $port) 00000000:0000 0A " "/proc/$1/net/tcp"; }

run_ours() { # TRANSPORT
	local to=bm://host-b$target
	bm_on a serve bench "$store/ours.img" >>"$dir/log" || return
	at[a]=$(on a show bench .pid)
	if [ "$1" = plain ]; then
		to=nbd://${host_address[b]}:$port/bench
		serve_target "$BUILD/blockmirror-nbd" --listen "${host_address[b]}:$port" --insecure \
			--export-name bench || return
	fi
	start_guest "$(nbd_uri "$dir/a/run/disks/bench.nbd" bench)"
	before[a]=$(ticks "${at[a]}") begin=$(now_ms)
	# From outside: what "on" takes to get in there is not part of it.
	BLOCKMIRROR_RUN_DIR=$dir/a/run BLOCKMIRROR_STATE_DIR=$dir/a/state "$bm" relocate bench "$to" \
		--overwrite --guest-latency "${LATENCY:-off}" --switch manual --progress none >>"$dir/log" 2>&1 || return
	end=$(now_ms)
	[ "$1" = plain ] || { at[b]=$(on b show bench .pid) before[b]=0; }
	spent
	end_guest
	looked_at "$store/ours.img"
	bm_on a job cancel bench >>"$dir/log" 2>&1 && wait_for 20 bm_on a stop bench >>"$dir/log" 2>&1 ||
		return
	[ "$1" = plain ] && stop "${at[b]}"
	wait_for 20 lib_gone "${at[b]}"
}

# qmp PATTERN JSON: sends that, and waits for a line with PATTERN.
qmp() {
	local line
	echo "$2" >&"$qmp_in"
	while read -r -t 120 line <&"$qmp_out"; do
		case $line in
		*"$1"*) return ;;
		*'"error"'*) break ;;
		esac
	done
	echo "$1: ${line:-no answer}" >>"$dir/log"
	return 1
}

heap=(env MALLOC_MMAP_THRESHOLD_=64000000 MALLOC_TRIM_THRESHOLD_=256000000 MALLOC_TOP_PAD_=64000000)
[ "${HEAP:-kept}" = kept ] || heap=()
declare -A client_options=([psk]=",username=bench" [x509]="")
declare -A server_options=([psk]="" [x509]=",verify-peer=no")
run_peer() { # TRANSPORT
	local tls=() credentials='' server=("${heap[@]}" qemu-nbd -t -b "${host_address[b]}" -p "$port" -x bench -f raw
		--cache=none --aio=native --discard=unmap)
	if [ "$1" = tls ]; then
		tls=(--object "tls-creds-$peer_tls,id=t,endpoint=client,dir=$keys${client_options[$peer_tls]}")
		credentials=',"tls-creds":"t"'
		server+=(--object "tls-creds-$peer_tls,id=t,endpoint=server,dir=$keys${server_options[$peer_tls]}" --tls-creds t)
	fi
	serve_target "${server[@]}" || return
	rm -f "$peers_socket" "$dir/qmp.sock"
	spawn_on a "${heap[@]}" qemu-storage-daemon "${tls[@]}" \
		--blockdev "driver=file,node-name=src-file,filename=$store/peer.img,cache.direct=on,aio=native,discard=unmap" \
		--blockdev driver=raw,node-name=src,file=src-file,discard=unmap \
		--nbd-server "addr.type=unix,addr.path=$peers_socket,max-connections=16" \
		--export type=nbd,id=e,node-name=src,name=bench,writable=on \
		--chardev "socket,path=$dir/qmp.sock,server=on,wait=off,id=m" --monitor chardev=m
	at[a]=$pid
	wait_for 10 test -S "$dir/qmp.sock" && wait_for 10 test -S "$peers_socket" || return
	coproc QMP { exec socat - "UNIX-CONNECT:$dir/qmp.sock" 2>/dev/null; }
	lib_pids+=("$QMP_PID")
	exec {qmp_in}>&"${QMP[1]}" {qmp_out}<&"${QMP[0]}" # a coprocess's own are not for subshells
	qmp return '{"execute":"qmp_capabilities"}' || return
	start_guest "$(nbd_uri "$peers_socket" bench)"
	before[a]=$(ticks "${at[a]}") begin=$(now_ms)
	qmp return '{"execute":"blockdev-add","arguments":{"driver":"nbd","node-name":"target","discard":"unmap","server":{"type":"inet","host":"'"${host_address[b]}"'","port":"'$port'"},"export":"bench"'"$credentials"'}}' &&
		qmp BLOCK_JOB_READY '{"execute":"blockdev-mirror","arguments":{"job-id":"m","device":"src","target":"target","sync":"full","copy-mode":"'"$mode"'"}}' ||
		return
	end=$(now_ms)
	spent
	end_guest
	# A guest's last writes are mirrored behind his back.
	[ "$load" != idle ] || looked_at "$store/peer.img"
	qmp BLOCK_JOB_CANCELLED '{"execute":"block-job-cancel","arguments":{"device":"m","force":true}}'
	exec {qmp_in}>&- {qmp_out}<&-
	stop "$QMP_PID" "${at[a]}" "${at[b]}"
}

spent() { cpu="$(($(ticks "${at[a]}") - before[a])) $(($(ticks "${at[b]}") - before[b]))"; }

# looked_at IMAGE: what does not copy is quick; once each that is looked at.
looked_at() {
	[ "$round" = 1 ] || return 0
	cmp -n "$data" "$(in_store a "${1##*/}")" "$(in_store b "${target##*/}")" >>"$dir/log" 2>&1
	result $? "$link, $transport, $load: $engine has copied it" "$dir/log"
}

# measured: one run; a line in the results: what it was, MB/s, ms of processor for a GiB on a and on b,
# the guest's p99 and requests a second, before and while.
measured() {
	local mb hz
	hz=$(getconf CLK_TCK)
	"run_$engine" "$transport" || { not_ok "$link, $transport, $load: $engine" "$dir/log"; exit 1; }
	# shellcheck disable=SC2086 # two numbers
	mb=$(awk -v d="$data" -v t=$((end - begin)) -v hz="$hz" 'BEGIN {
		f = 1000 / hz / d * 1073741824
		printf "%.1f %d %d", d / t / 1000, ARGV[1] * f, ARGV[2] * f }' $cpu)
	line="$link $transport $load $engine $mb $(felt $((begin - 1500)) "$begin") $(felt "$begin" "$end")"
	echo "$line" >>"$dir/results"
	echo "# round $round: $line"
	on b rm -f "$target"
	on b fstrim "$store"
}

# median ENGINE COLUMN: of this link, transport and load.
median() {
	grep "^$link $transport $load $1 " "$dir/results" | cut -d ' ' -f "$2" | sort -n |
		awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : 0 }'
}

begin() {
	local image
	mkdir "$keys"
	make_keys "$keys/keys.psk" bench
	make_authority "$keys"
	certify "$keys" server "$keys" "cn=host-b" "ip_address=${host_address[b]}" tls_www_server
	hosts_up >>"$dir/log" 2>&1 && bm_on b peer allow host-a --receive "$store" >>"$dir/log" || return
	if [ -n "${CONGESTION:-}" ]; then
		on a sysctl -qw "net.ipv4.tcp_congestion_control=$CONGESTION" &&
			on b sysctl -qw "net.ipv4.tcp_congestion_control=$CONGESTION" || return
	fi
	if [ "${OF:-noise}" = files ]; then { tar -cf - -C / usr/bin usr/lib usr/share 2>/dev/null || true; } | head -c "$data"
	else head -c "$data" /dev/urandom; fi >"$(in_store a ours.img)"
	truncate -s "$size" "$(in_store a ours.img)"
	cp --sparse=always "$(in_store a ours.img)" "$(in_store a peer.img)"
	# A direct write that has to throw a page out of the cache may block: where ours asks not to,
	# it goes by way of a worker. Nobody's image is cached on a host that is up for some time.
	for image in ours peer; do
		dd of="$(in_store a $image.img)" oflag=nocache conv=notrunc,fdatasync count=0 status=none
	done
}

delayed=yes
: >"$dir/results"
begin || { not_ok "two hosts" "$dir/log"; exit; }
for round in $(seq "$rounds"); do
	for link in "${links[@]}"; do
		link_is "$link" || { not_ok "a link of $link" "$dir/log"; exit; }
		for transport in "${transports[@]}"; do
			for load in "${loads[@]}"; do
				for engine in "${engines[@]}"; do measured; done
			done
		done
	done
done
[ $delayed = yes ] || echo "# no netem in this kernel: the link has no delay of its own"
echo "# $(on a sysctl -n net.ipv4.tcp_congestion_control), load average $(cut -d ' ' -f 1-3 /proc/loadavg), $(nproc) processors"
printf '%-9s %-9s %-5s %7s %7s %6s   %-11s %-11s   %-18s %s\n' "median of" transport IOPS ours peer \
	ratio "ours CPU" "peer CPU" "ours p99 us" "peer p99 us" \
	"$rounds rounds" "" "" "" MB/s "" "ms/GiB, a+b" "" "before/while" "@ IOPS while"
for link in "${links[@]}"; do
	for transport in "${transports[@]}"; do
		for load in "${loads[@]}"; do
			a=$(median ours 5) b=$(median peer 5)
			line=$(printf '%-9s %-9s %-5s %7s %7s %6.2f  ' "$link" "$transport" "$load" "$a" "$b" \
				"$(awk -v a="$a" -v b="$b" 'BEGIN { print b ? a / b : 0 }')")
			for engine in ours peer; do
				line+=$(printf ' %-11s' "$(median $engine 6)+$(median $engine 7)")
			done
			for engine in ours peer; do
				[ "$load" = idle ] ||
					line+=$(printf '  %-17s' "$(median $engine 8)/$(median $engine 10) @ $(median $engine 11)")
			done
			echo "$line"
		done
	done
done
[ -z "${CSV:-}" ] || cp "$dir/results" "$CSV"
ok "bench"
