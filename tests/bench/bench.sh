#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What a guest feels of a move, ours beside qemu-storage-daemon's blockdev-mirror: the same image,
# the same fio load (4 KiB random writes, 8 in flight, O_DIRECT underneath), the engines taking
# turns, several rounds, medians.
#
#	bench.sh            SIZE=1G ROUNDS=3 ENGINES="ours ours-off peer-sync peer-background" IOPS=
#
# IOPS=1000 is a guest that leaves the storage some time. Without it the guest takes what it gets, and
# whoever copies takes it from the guest: there the requests of the copy's phase are to be compared, too.
#
# Phases of a run: before (3 s alone), copy (until in sync), sync (2 s), switch (the switchover and
# 200 ms), after. Latencies are fio's own, one line per request, in us.
# shellcheck disable=SC2016 source-path=SCRIPTDIR
. "$(dirname "$0")/../system/lib.sh"
for program in fio socat jq qemu-storage-daemon qemu-img; do
	have $program || { skip "bench" "$program is missing"; exit; }
done
size=${SIZE:-1G} rounds=${ROUNDS:-3} depth=${DEPTH:-8} block=${BLOCK:-4k}
read -ra engines <<<"${ENGINES:-ours ours-off peer-sync peer-background}"
bm=$BUILD/blockmirror
export BLOCKMIRROR_RUN_DIR=$dir/run BLOCKMIRROR_STATE_DIR=$dir/state
bytes=$(numfmt --from=iec "$size")

now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }
master=$dir/master.img
fio --name=fill --filename="$master" --rw=write --bs=1M --size="$bytes" --direct=1 --ioengine=libaio \
	--iodepth=4 --refill_buffers --output=/dev/null

start_load() { # URI
	rm -f "$dir"/load_*.log
	fio --name=load --ioengine=nbd --uri="$1" --rw=randwrite --bs="$block" --iodepth="$depth" \
		--size="$bytes" --time_based --runtime=600 --randrepeat=0 --log_unix_epoch=1 \
		${IOPS:+--rate_iops="$IOPS"} \
		--write_lat_log="$dir/load" --log_avg_msec=0 --output="$dir/fio.out" \
		--disable_clat=1 --disable_slat=1 >/dev/null 2>&1 </dev/null &
	load=$!
	lib_pids+=("$load")
}

end_load() {
	kill -INT "$load"
	wait "$load" 2>/dev/null
	lib_forget "$load"
}

# QMP over one connection: one command, its answer.
qmp_open() {
	coproc QMP { exec socat - "UNIX-CONNECT:$dir/qmp.sock" 2>/dev/null; }
	lib_pids+=("$QMP_PID")
	exec {qmp_in}>&"${QMP[1]}" {qmp_out}<&"${QMP[0]}" # a coprocess's own are not for subshells
	qmp '{"execute":"qmp_capabilities"}' >/dev/null
}

qmp() {
	local line=
	echo "$1" >&"$qmp_in"
	while read -r -t 30 line <&"$qmp_out"; do
		case $line in *'"return"'* | *'"error"'*) break ;; esac
	done
	echo "$line"
}

run_ours() { # LATENCY
	cp "$master" "$dir/a/disk.img"
	sync "$dir/a/disk.img"
	"$bm" serve bench "$dir/a/disk.img" >/dev/null || return 1
	start_load "nbd+unix:///bench?socket=$BLOCKMIRROR_RUN_DIR/disks/bench.nbd"
	sleep 3
	t_copy=$(now_ms)
	"$bm" relocate bench "$dir/b" --guest-latency "$1" --switch manual --json --progress none >/dev/null || return 1
	t_sync=$(now_ms)
	sleep 2
	t_switch=$(now_ms)
	"$bm" switch bench --json >"$dir/switch.json" || return 1
	t_after=$(($(now_ms) + 200))
	sleep 1.5
	end_load
	for _ in $(seq 50); do "$bm" stop bench 2>/dev/null && break; sleep 0.1; done
	rm -rf "$dir/a" "$dir/b" "$dir/state"; mkdir "$dir/a" "$dir/b"
}

run_peer() { # COPY-MODE
	cp "$master" "$dir/a/disk.img"
	truncate -s "$bytes" "$dir/b/disk.img"
	sync "$dir/a/disk.img"
	rm -f "$dir/peer.sock" "$dir/qmp.sock"
	spawn qemu-storage-daemon \
		--blockdev "driver=file,node-name=src-file,filename=$dir/a/disk.img,cache.direct=on,aio=native,discard=unmap" \
		--blockdev driver=raw,node-name=src,file=src-file,discard=unmap \
		--nbd-server "addr.type=unix,addr.path=$dir/peer.sock,max-connections=16" \
		--export type=nbd,id=e,node-name=src,name=bench,writable=on \
		--chardev "socket,path=$dir/qmp.sock,server=on,wait=off,id=m" --monitor chardev=m
	wait_for 10 test -S "$dir/qmp.sock" || return 1
	wait_for 10 test -S "$dir/peer.sock" || return 1
	qmp_open
	start_load "nbd+unix:///bench?socket=$dir/peer.sock"
	sleep 3
	qmp '{"execute":"blockdev-add","arguments":{"driver":"raw","node-name":"tgt","discard":"unmap","file":{"driver":"file","discard":"unmap","cache":{"direct":true},"aio":"native","filename":"'"$dir"'/b/disk.img"}}}' >/dev/null
	t_copy=$(now_ms)
	qmp '{"execute":"blockdev-mirror","arguments":{"job-id":"m","device":"src","target":"tgt","sync":"full","copy-mode":"'"$1"'","auto-dismiss":false}}' >/dev/null
	until [ "$(qmp '{"execute":"query-block-jobs"}' | jq -r '.return[0].ready')" = true ]; do
		[ $(($(now_ms) - t_copy)) -lt 120000 ] || return 1
		sleep 0.02
	done
	t_sync=$(now_ms)
	sleep 2
	t_switch=$(now_ms)
	qmp '{"execute":"job-complete","arguments":{"id":"m"}}' >/dev/null
	until [ "$(qmp '{"execute":"query-jobs"}' | jq -r '.return[0].status')" = concluded ]; do
		[ $(($(now_ms) - t_switch)) -lt 120000 ] || return 1
		sleep 0.02
	done
	t_after=$(($(now_ms) + 200))
	sleep 1.5
	end_load
	exec {qmp_in}>&- {qmp_out}<&-
	stop "$QMP_PID" "$pid"
	rm -f "$dir"/[ab]/disk.img
}

# p50 p99 max of the requests that ended in [$1, $2), us
percentiles() {
	awk -F', *' -v a="$1" -v b="$2" '$1 >= a && $1 < b { print int($2 / 1000) }' "$dir"/load_lat.1.log |
		sort -n >"$dir/sorted"
	local n
	n=$(wc -l <"$dir/sorted")
	[ "$n" -gt 0 ] || { echo "0 0 0 0"; return; }
	echo "$n $(sed -n "$((n / 2 + 1))p" "$dir/sorted") $(sed -n "$((n * 99 / 100 + 1))p" "$dir/sorted") $(tail -n 1 "$dir/sorted")"
}

mkdir -p "$dir/a" "$dir/b"
: >"$dir/results"
for round in $(seq "$rounds"); do
	for engine in "${engines[@]}"; do
		case $engine in
		ours) run_ours auto ;;
		ours-off) run_ours off ;;
		peer-sync) run_peer write-blocking ;;
		peer-background) run_peer background ;;
		esac || { not_ok "round $round: $engine" "$dir/log"; continue; }
		line="$engine $((t_sync - t_copy)) $((t_after - 200 - t_switch))"
		for phase in "$((t_copy - 2500)) $t_copy" "$t_copy $t_sync" "$t_sync $t_switch" \
			"$t_switch $t_after" "$t_after $((t_after + 1000))"; do
			# shellcheck disable=SC2086
			line+=" $(percentiles $phase)"
		done
		echo "$line" >>"$dir/results"
		echo "# round $round $line"
	done
done

# Medians over the rounds, column by column, then ratios to each engine's own "before".
median() { # ENGINE COLUMN
	awk -v e="$1" -v c="$2" '$1 == e { print $c }' "$dir/results" | sort -n |
		awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : 0 }'
}
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2g", b ? a / b : 0 }'; }
printf '%-16s %9s %9s | %-22s %-26s %-26s %-26s\n' "median of $rounds" "sync ms" "switch ms" \
	"before p50/p99/max us" "copy p50/p99 (x before)" "in sync" "switch p50/p99/max"
for engine in "${engines[@]}"; do
	grep -q "^$engine " "$dir/results" || continue
	p50=$(median "$engine" 5) p99=$(median "$engine" 6)
	pair() { # first column
		local a b
		a=$(median "$engine" "$1") b=$(median "$engine" $(($1 + 1)))
		echo "$a/$b (x$(ratio "$a" "$p50")/x$(ratio "$b" "$p99"))"
	}
	printf '%-16s %9s %9s | %-22s %-26s %-26s %-26s\n' "$engine" "$(median "$engine" 2)" \
		"$(median "$engine" 3)" "$p50/$p99/$(median "$engine" 7)" "$(pair 9)" "$(pair 13)" \
		"$(pair 17) max $(median "$engine" 19)"
done
# Ours against the peer's: time to in sync, and what the copy makes of the guest's latency.
versus() { # OURS PEER
	grep -q "^$1 " "$dir/results" && grep -q "^$2 " "$dir/results" || return 0
	printf '%s / %s: in sync after x%s of its time; p50 and p99 during the copy x%s and x%s of its\n' \
		"$1" "$2" "$(ratio "$(median "$1" 2)" "$(median "$2" 2)")" \
		"$(ratio "$(median "$1" 9)" "$(median "$2" 9)")" \
		"$(ratio "$(median "$1" 10)" "$(median "$2" 10)")"
}
versus ours peer-background
versus ours-off peer-sync
[ -z "${CSV:-}" ] || cp "$dir/results" "$CSV"
ok "bench"
