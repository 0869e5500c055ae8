#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Breaks the NBD server in small ways (mutants.txt) and demands that the conformance suite notices:
# mutants.sh [NAME…]. TAP.
set -u
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source-path=SCRIPTDIR source=../mutants.bash
. tests/mutants.bash
built=$(realpath "${BUILD:-build}") list=tests/conformance/mutants.txt
work=$(mktemp -d "${TMPDIR:-/var/tmp}/mutants.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
mkdir "$work/build" "$work/src"
cp -a Makefile blockmirror include nbd-server tests fixtures "$work/src"
cp -a "$built/obj" "$built"/*.a "$built/blockmirror" "$work/build"
build() {
	make -s -C "$work/src" CFLAGS=-O1 WARN=-w BUILD="$work/build" "$work/build/blockmirror-nbd" \
		"$work/build/blockmirror-disk" >"$work/why" 2>&1
}
# suite SERVER AREAS: until something is wrong.
suite() {
	FIRST=yes SUITE=$built/fixtures/conformance BUILD=$work/build AREAS=$2 \
		tests/system/nbd_conformance.sh "$1" >"$work/said" 2>&1
}

count=0 failed=0
# verdict WORD HEAD [COMMENT]
verdict() {
	count=$((count + 1))
	echo "$1 $count - $2"
	[ "$1" = ok ] || failed=1
	[ -z "${3:-}" ] || echo "# ${3//$'\n'/$'\n'# }"
}

one() {
	local head=$1 name=${1%%:*} files file server areas
	read -r server areas < <(grep -A 1 "^=== $name:" $list | tail -n 1)
	if ! files=$(mutants $list "$name" "$work/src" 2>"$work/why"); then
		verdict "not ok" "$head" "$(cat "$work/why")"
	elif ! build; then
		verdict "not ok" "$head (does not compile)" "$(tail -n 5 "$work/why")"
	elif suite "$server" "$areas"; then
		verdict "not ok" "$head: NOT noticed"
	else
		verdict ok "$head" "caught: $(grep -m 1 -A 1 -E '^# (not ok|Bail)' "$work/said" ||
			grep -m 1 '^not ok' "$work/said")"
	fi
	for file in $files; do # the object is newer than its source again
		cp -p "$file" "$work/src/$file"
		cp "$built/obj/${file%.c}.o" "$work/build/obj/${file%.c}.o"
	done
}

# Without names, the server itself has to pass first: all that mutants are given to.
good() {
	build || { cat "$work/why"; return 1; }
	BUILD=$work/build SUITE=$built/fixtures/conformance tests/system/nbd_conformance.sh \
		>"$work/said" 2>&1 || { grep -A 5 '^not ok' "$work/said"; return 1; }
}
if [ $# -eq 0 ] && ! why=$(good); then
	verdict "not ok" "the server itself passes" "$why"
	exit 1
fi
while IFS= read -r head; do
	[ $# -eq 0 ] || [[ " $* " == *" ${head%%:*} "* ]] || continue
	one "$head"
done < <(mutants $list)
echo "1..$count"
exit $failed
