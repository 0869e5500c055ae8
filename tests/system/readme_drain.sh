#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The README's drain of a folder of three images, as a new user has it: its commands are run as they stand
# there, in one shell, and print what stands there, but for numbers and the folder's name.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

have qemu-img mkfs.ext4 || PATH=$PATH:/usr/sbin
have qemu-img mkfs.ext4 || { skip "the README's drain" "qemu-utils, e2fsprogs"; exit; }
title='## A folder of three images, drained'
unset BLOCKMIRROR_RUN_DIR BLOCKMIRROR_STATE_DIR

# Lines of its code, as they are: commands begin with "$ ".
code() { awk -v title="$title" '$0 == title { on = 1; next } /^## / { on = 0 } /^```/ { inside = !inside; next } on && inside' README.md; }
# A line as a pattern: numbers and units may be others, the folder has another name.
pattern() {
	# shellcheck disable=SC2016
	sed -E 's/[][\\.*^$(){}?+|]/\\&/g; s/drain\\\.[A-Za-z0-9]{4}/drain\\.[A-Za-z0-9]{4}/g; s/ +/ +/g
		s/[0-9]+(\\\.[0-9]+)? \+([KMG]iB|B|ms|s)/[0-9.]+ (B|KiB|MiB|GiB|TiB|ms|s)/g' <<<"$1"
}
ask() { # COMMAND: in the user's shell; what it says is in $dir/said
	printf '%s\necho "=== $?"\n' "$1" >&"${shell[1]}"
	: >"$dir/said"
	while IFS= read -r -t 60 line <&"${shell[0]}"; do
		[ "${line#=== }" = "$line" ] || { [ "$line" = "=== 0" ]; return; }
		echo "$line" >>"$dir/said"
	done
	return 1
}
says() { grep -E "^ *$(pattern "$1")$" "$dir/said" || { pattern "$1"; cat "$dir/said"; return 1; }; }
folder() { ask 'pwd' && cat "$dir/said"; }
no_scratch() { case ${scratch:-} in /var/tmp/drain.????) rm -rf "$scratch" ;; esac; }
on_exit no_scratch

mapfile -t lines < <(code)
check "the README has it" test "${#lines[@]}" -gt 15
# shellcheck disable=SC2016
[ "$BUILD" = "$PWD/build" ] || lines=("${lines[@]//'$PWD/build'/$BUILD}")
# A shell without settings of ours.
coproc shell { exec env -i PATH=/usr/bin:/bin HOME="$dir" bash --norc 2>&1; }
start=${EPOCHREALTIME/./} command=''
for line in "${lines[@]}"; do
	if [ "${line#\$ }" != "$line" ]; then
		command=${line#\$ }
		check "$command" ask "$command"
		[ -n "${scratch:-}" ] || [ "${command#cd}" = "$command" ] || scratch=$(folder)
	else
		check "  it says: $line" says "$line"
	fi
done
check "all of it in five minutes" test $(((${EPOCHREALTIME/./} - start) / 1000000)) -lt 300
check "three images are there" test "$(find "$scratch/new" -type f -size +0 | wc -l)" -eq 3
check "and none here" test -z "$(find "$scratch/old" -type f)"
eval "exec ${shell[1]}>&-"
