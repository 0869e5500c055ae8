#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Runs fuzz targets, one after another, and adds up: fuzz.sh TARGET... ("make fuzz" calls it). Each
# gets $FUZZ_SECONDS. New inputs gather in $FUZZ/inputs/TARGET and are where the next run begins;
# what is wrong goes to $FUZZ/found/TARGET. One line each:
#
#   nbd_client: 412345 executions, 312 new paths; crashes, leaks: 0, slow: 0
#
# "slow" is more than a second of the processor's time, as replay.c measures it: that the machine
# was busy is nobody's fault. "nbd_stdio" is the program itself, under AFL++.
set -u
cd "$(dirname "$0")/../.." || exit 1
FUZZ=$(realpath "${FUZZ:-build/fuzz}") seconds=${FUZZ_SECONDS:-60}
corpus=tests/fuzz/corpus status=0

count() { find "$@" -type f | wc -l; }

# slow TARGET FILE…: how many of them take more than a second.
slow() {
	local target=$1 folder
	shift
	[ $# -gt 0 ] || { echo 0; return; }
	folder=$(mktemp -d)
	cp "$@" "$folder"
	"$FUZZ/tests/fuzz/${target}_fuzz" "$folder" | grep -c '^# .* s$'
	rm -r "$folder"
}

# report TARGET EXECUTIONS NEW CRASHES SLOW
report() {
	echo "$1: $2 executions, $3 new paths; crashes, leaks: $4, slow: $5"
	[ "$4$5" = 00 ] || { status=1; echo "    see $FUZZ/found/$1"; }
}

# libFuzzer ends with the first crash; a slow input is noted, and it goes on.
run_target() {
	local target=$1 inputs=$FUZZ/inputs/$1 found=$FUZZ/found/$1 log=$FUZZ/$1.log dict='' bad=0 new units
	mkdir -p "$inputs" "$found"
	new=$(count "$inputs")
	[[ $target == nbd_* ]] && dict=-dict=tests/fuzz/nbd.dict
	ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 "$FUZZ/fuzzers/$target" \
		-max_total_time="$seconds" -timeout=20 -report_slow_units=1 -max_len=16384 \
		-print_final_stats=1 -rss_limit_mb=2048 $dict -artifact_prefix="$found/" \
		"$inputs" "$corpus/$target" >"$log" 2>&1 || bad=1
	[ "$bad" -eq 0 ] || grep -hE 'not so:|ERROR: |SUMMARY: |runtime error' "$log"
	mapfile -t units < <(find "$found" -name 'slow-unit-*')
	report "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
		$(($(count "$inputs") - new)) $bad "$(slow "$target" "${units[@]}")"
}

# hangs INPUT…: how many take the program more than a second of the processor's time, or a minute.
stdio=("$FUZZ/afl/fuzzers/nbd_stdio" --stdio mem:1049088)
hangs() {
	local input bad=0
	export ASAN_OPTIONS=detect_leaks=0
	for input; do
		(ulimit -t 1 && exec timeout 60 "${stdio[@]}" <"$input" >/dev/null 2>&1) 2>/dev/null
		[ $? -lt 124 ] || bad=$((bad + 1)) # timeout(1), or a signal
	done
	echo $bad
}

# What a client says to the program; seeds are those of nbd_handshake that need no special host.
run_stdio() {
	local seeds=$FUZZ/inputs/nbd_stdio out=$FUZZ/found/nbd_stdio log=$FUZZ/nbd_stdio.log seed stats units
	rm -rf "$seeds" "$out"
	mkdir -p "$seeds" "$out"
	for seed in "$corpus"/nbd_handshake/*; do
		[ "$(od -An -N1 -tu1 "$seed")" -ne 0 ] || tail -c +2 "$seed" >"$seeds/${seed##*/}"
	done
	AFL_NO_UI=1 AFL_SKIP_CPUFREQ=1 AFL_NO_AFFINITY=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 \
		ASAN_OPTIONS=abort_on_error=1:symbolize=0:detect_leaks=0 \
		UBSAN_OPTIONS=abort_on_error=1:symbolize=0 \
		afl-fuzz -V "$seconds" -t 1000+ -m none -G 16384 -x tests/fuzz/nbd.dict -i "$seeds" \
		-o "$out" -- "${stdio[@]}" >"$log" 2>&1
	stats=$out/default/fuzzer_stats
	[ -s "$stats" ] || { tail -n 20 "$log"; report nbd_stdio 0 0 1 0; return; }
	mapfile -t units < <(find "$out/default/hangs" -name 'id:*')
	value() { sed -n "s/^$1 *: //p" "$stats"; }
	report nbd_stdio "$(value execs_done)" "$(value corpus_found)" "$(value saved_crashes)" \
		"$(hangs "${units[@]}")"
}

for target; do
	if [ "$target" = nbd_stdio ]; then run_stdio; else run_target "$target"; fi
done
exit $status
