#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# blockmirror-nbd beside nbdkit: throughput under TLS on the same work, and system calls a request.
#
#	nbd.sh              SIZE=512M ROUNDS=5
#
# Throughput: nbdcopy reads an image in memory, and writes it; the servers take turns, medians of
# MB/s. Both servers run as they are by default, under pre-shared keys and under certificates; the
# client is the same. System calls: those of the server, by strace, for 4 KiB requests of fio, one
# in flight and 32, from and to a file.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"
# shellcheck source-path=SCRIPTDIR/../system source=../system/tls.bash
. "$PWD/tests/system/tls.bash"
for program in nbdkit nbdcopy certtool fio strace; do
	have $program || { skip "bench" "$program is missing"; exit; }
done
size=$(numfmt --from=iec "${SIZE:-512M}") rounds=${ROUNDS:-5} requests=4000
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

# timed COMMAND…: prints MB/s.
timed() {
	local begin=${EPOCHREALTIME/./}
	"$@" >>"$dir/log" 2>&1 || return
	echo $((size / (${EPOCHREALTIME/./} - begin)))
}

median() { # FILE FILTER
	grep "^$2 " "$1" | awk '{ print $NF }' | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

: >"$dir/results"
failed=0
for _ in $(seq "$rounds"); do
	for kind in psk x509 plain; do
		for engine in ours nbdkit; do
			start $engine $kind || failed=1
			echo "$engine $kind write $(timed nbdcopy --flush "$dir/source.img" "$address")" >>"$dir/results"
			echo "$engine $kind read $(timed nbdcopy "$address" null:)" >>"$dir/results"
			stop "$pid"
		done
	done
done
result $failed "every server served" "$dir/log"
printf '%-12s %12s %12s %8s   MB/s, medians of %d rounds of %d MiB\n' "" ours nbdkit ratio "$rounds" \
	$((size >> 20))
for kind in psk x509 plain; do
	for way in read write; do
		a=$(median "$dir/results" "ours $kind $way") b=$(median "$dir/results" "nbdkit $kind $way")
		printf '%-12s %12s %12s %8.2f\n' "$kind $way" "$a" "$b" "$(bc -l <<<"$a / $b")"
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
		--number_ios=$requests --output="$dir/fio.out" --aux-path="$dir" >>"$dir/log" 2>&1
	kill -INT "$tracer"
	wait "$tracer"
	lib_forget "$tracer"
	awk -v n=$requests '$NF == "total" { printf "%.2f", $4 / n }' "$dir/trace"
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
