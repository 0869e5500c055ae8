#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# blockmirror-nbd beside nbdkit: throughput under TLS on the same work, and system calls a request.
#
#	nbd.sh              SIZE=512M ROUNDS=5 KINDS="psk x509 plain"
#
# Throughput: nbdcopy reads an image in memory, and writes it; the servers take turns, medians of
# MB/s, and of the processor's time that server and client took for a GiB, which is of use when the
# machine has other things to do. Both servers run as they are by default, under pre-shared keys and
# under certificates; the client is the same. System calls: those of the server, by strace, for 4 KiB requests of fio, one
# in flight and 32, from and to a file.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"
# shellcheck source-path=SCRIPTDIR/../system source=../system/tls.bash
. "$PWD/tests/system/tls.bash"
for program in nbdkit nbdcopy certtool fio strace; do
	have $program || { skip "bench" "$program is missing"; exit; }
done
size=$(numfmt --from=iec "${SIZE:-512M}") rounds=${ROUNDS:-5} requests=${REQUESTS:-4000}
read -ra kinds <<<"${KINDS:-psk x509 plain}"
keys=$dir/keys pki=$dir/pki

make_keys "$keys" bench
make_authority "$pki"
certify "$pki" server "$pki" "cn=server" "dns_name=localhost" "ip_address=127.0.0.1" tls_www_server
head -c "$size" /dev/urandom >"$dir/source.img"
cat "$dir/source.img" >/dev/null # in the page cache

# start ENGINE KIND: a server with $size bytes of memory; $address is what a client is told.
start() {
	local tls=()
	case $2 in
	psk) tls=(--tls=require --tls-psk="$keys") ;;
	x509) tls=(--tls=require --tls-certificates="$pki") ;;
	esac
	if [ "$1" = ours ]; then
		start_blockmirror_nbd "$dir/$1.sock" "mem:$size" "${tls[@]}"
	else
		start_nbdkit "$dir/$1.sock" "${tls[@]}" memory "$size"
	fi
	case $2 in
	psk) address="nbds+unix://bench@/?socket=$dir/$1.sock&tls-psk-file=$keys" ;;
	x509) address="nbds+unix:///?socket=$dir/$1.sock&tls-certificates=$pki" ;;
	*) address=$uri ;;
	esac
}

# spent: the ticks that the server has used, threads that ended included.
spent() { sed 's/.*) //' "/proc/$pid/stat" | awk '{ print $12 + $13 }'; }

# timed LABEL COMMAND…: adds "LABEL MB/s ms-a-GiB" to the results.
timed() {
	local label=$1 begin before user system
	shift
	before=$(spent)
	begin=${EPOCHREALTIME/./}
	TIMEFORMAT='%U %S'
	{ time "$@" >>"$dir/log" 2>&1 || failed=1; } 2>"$dir/times"
	local wall=$((${EPOCHREALTIME/./} - begin))
	read -r user system <"$dir/times"
	awk -v l="$label" -v s="$size" -v w=$wall -v t=$(($(spent) - before)) -v c="$user" -v k="$system" \
		-v hz="$(getconf CLK_TCK)" 'BEGIN {
		printf "%s %d %d\n", l, s / w, (t / hz + c + k) * 1000 / s * 1073741824 }' >>"$dir/results"
}

# median LABEL COLUMN
median() {
	grep "^$1 " "$dir/results" | awk -v c="$2" '{ print $c }' | sort -n |
		awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

: >"$dir/results"
failed=0
for _ in $(seq "$rounds"); do
	for kind in "${kinds[@]}"; do
		for engine in ours nbdkit; do
			start $engine "$kind" || failed=1
			timed "$engine $kind write" nbdcopy --flush "$dir/source.img" "$address"
			timed "$engine $kind read" nbdcopy "$address" null:
			stop "$pid"
		done
	done
done
result $failed "every server served" "$dir/log"
printf '%d rounds of %d MiB   %8s %8s %6s   MB/s %8s %8s %6s   processor ms/GiB\n' "$rounds" \
	$((size >> 20)) ours nbdkit ratio ours nbdkit ratio
for kind in "${kinds[@]}"; do
	for way in read write; do
		line=$(printf '%-20s' "$kind $way")
		for column in 4 5; do
			a=$(median "ours $kind $way" $column) b=$(median "nbdkit $kind $way" $column)
			line+=$(printf ' %8s %8s %6.2f       ' "$a" "$b" "$(bc -l <<<"$a / $b")")
		done
		echo "$line"
	done
done

# calls ENGINE RW DEPTH: system calls of the server per request.
calls() {
	local tracer
	strace -f -c -qq -o "$dir/trace" -p "$pid" 2>>"$dir/log" &
	tracer=$!
	lib_pids+=("$tracer")
	sleep 0.5
	fio --name=calls --ioengine=nbd --uri="$uri" --rw="$2" --bs=4k --iodepth="$3" --size=64M \
		--number_ios="$requests" --output="$dir/fio.out" --aux-path="$dir" >>"$dir/log" 2>&1
	kill -INT "$tracer"
	wait "$tracer"
	lib_forget "$tracer"
	awk -v n="$requests" '$NF == "total" { printf "%.2f", $4 / n }' "$dir/trace"
}

truncate -s 64M "$dir/file.img"
dd if=/dev/urandom of="$dir/file.img" bs=1M count=64 conv=notrunc status=none
printf '\n%-20s %10s %10s   system calls a request\n' "" ours nbdkit
for way in randread randwrite; do
	for depth in 1 32; do
		line=$(printf '%-20s' "$way, depth $depth")
		for engine in ours nbdkit; do
			if [ $engine = ours ]; then
				start_blockmirror_nbd "$dir/calls.sock" "$dir/file.img"
			else
				start_nbdkit "$dir/calls.sock" file "$dir/file.img"
			fi
			line+=$(printf ' %10s' "$(calls $engine $way $depth)")
			[ $engine = nbdkit ] || [ -z "${TRACE:-}" ] || sed 's/^/# /' "$dir/trace"
			stop "$pid"
		done
		echo "$line"
	done
done
ok "bench"
