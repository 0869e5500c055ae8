#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Breaks each rule of the engine in turn (tests/model/mutants.txt) and demands that the model test
# notices: mutants.sh [NAME]. TAP. SEEDS is how many each one gets at most.
set -u
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source-path=SCRIPTDIR source=../mutants.bash
. tests/mutants.bash
BUILD=${BUILD:-build} SEEDS=${SEEDS:-200000}
make -s BUILD="$BUILD" "$BUILD/tests/model/mirror_test" || exit 1
work=$(mktemp -d "${TMPDIR:-/var/tmp}/mutants.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
"$BUILD/tests/model/mirror_test" -q -n "$((SEEDS / 10))" >/dev/null || {
	echo "not ok 1 - the engine itself passes"; exit 1; }
objects=("$BUILD"/obj/tests/model/{mirror_test,world,invariants,guest,checkpoint,cut,fake_disk,oracle}.o)

count=0 failed=0
one() {
	local head=$1 name=${1%%:*} files file result seed status
	count=$((count + 1))
	rm -rf "$work/src" && mkdir "$work/src" && cp -r blockmirror include tests "$work/src/"
	if ! files=$(mutants tests/model/mutants.txt "$name" "$work/src" 2>"$work/why"); then
		echo "not ok $count - $head"; sed 's/^/# /' "$work/why"; failed=1; return
	fi
	cp "$BUILD/libblockmirror.a" "$work/lib.a"
	for file in $files; do
		# shellcheck disable=SC2086
		if ! (cd "$work/src" && ${CC:-cc} -std=gnu17 -D_GNU_SOURCE -I. -Iinclude -O2 -w -c -o \
			"$work/$(basename "$file" .c).o" "$file") 2>"$work/why"; then
			echo "not ok $count - $head (does not compile)"; sed 's/^/# /' "$work/why"; failed=1
			return
		fi
		ar r "$work/lib.a" "$work/$(basename "$file" .c).o" 2>/dev/null
	done
	${CC:-cc} -pthread -o "$work/test" "${objects[@]}" "$work/lib.a" -laio -lm 2>"$work/why" || {
		echo "not ok $count - $head (does not link)"; sed 's/^/# /' "$work/why"; failed=1; return; }
	result=$(timeout 600 "$work/test" -q -n "$SEEDS" 2>&1)
	status=$?
	if [ $status -eq 0 ] || [ $status -eq 124 ]; then
		echo "not ok $count - $head: NOT noticed in $SEEDS seeds, or ten minutes"; failed=1
	else
		seed=$(grep -m1 -oE 'seed [0-9]+ .*|Assertion .*' <<<"$result") || seed="it ended with status $status"
		echo "ok $count - $head"
		echo "# caught: ${seed:-$(tail -n 1 <<<"$result")}"
	fi
}

while IFS= read -r head; do
	[ $# -eq 0 ] || [ "${head%%:*}" = "$1" ] || continue
	one "$head"
done < <(mutants tests/model/mutants.txt)
echo "1..$count"
exit $failed
