#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What can be seen without running anything: layout, static analysis, manual pages, licences, sizes.
. "$(dirname "$0")/system/lib.sh"
mapfile -t sources < <(git ls-files '*.c' '*.h')
mapfile -t scripts < <(git ls-files '*.sh' .ci/run tests/run etc/hooks)

check "clang-format has nothing to change" clang-format-14 --dry-run -Werror "${sources[@]}"
shells() { printf '%s\0' "${scripts[@]}" | xargs -0 -P 2 -n 12 shellcheck -x -P SCRIPTDIR; }
LIMIT=300 check "shellcheck is content" shells
check "mandoc is content" mandoc -Tlint -Wwarning man/*.[1358]
# The options that a program's help names and those that its manual page names are the same.
options_of() { grep -oE -- '--[a-z][a-z-]+' | sort -u; }
man_options() { grep -oE 'Fl -[a-z][a-z-]+' "$1" | sed 's/Fl /-/' | sort -u; }
helps() {
	local command
	"$BUILD/blockmirror" --help
	for command in $("$BUILD/blockmirror" --help | sed -n 's/^  \([a-z]\{3,\}\) .*/\1/p'); do
		"$BUILD/blockmirror" "$command" --help
	done
}
agree() { # PAGE COMMAND…
	local page=$1
	shift
	diff <(man_options "$page") <("$@" | options_of)
}
check "blockmirror: help and manual agree" agree man/blockmirror.1 helps
check "blockmirror-disk: help and manual agree" agree man/blockmirror-disk.8 "$BUILD/blockmirror-disk" --help
check "blockmirror-move: help and manual agree" agree man/blockmirror-move.8 "$BUILD/blockmirror-move" --help
check "blockmirrord: help and manual agree" agree man/blockmirrord.8 "$BUILD/blockmirrord" --help
check "blockmirror-nbd: help and manual agree" agree man/blockmirror-nbd.8 "$BUILD/blockmirror-nbd" --help
commands() { # each command stands in the manual's synopsis and has a section
	local command
	for command in $("$BUILD/blockmirror" --help | sed -n 's/^  \([a-z]\{3,\}\) .*/\1/p'); do
		grep -q "^.Cm $command" man/blockmirror.1 || { echo "$command"; return 1; }
	done
}
check "every command is in the manual" commands
licences() {
	local file missing=0
	for file in "${sources[@]}" "${scripts[@]}"; do
		head -n 3 "$file" | grep -q 'SPDX-License-Identifier: BSD-3-Clause' || { echo "$file"; missing=1; }
	done
	return $missing
}
check "every file names its licence" licences
headers() { # each public header stands alone, in C and C++
	local header
	for header in include/blockmirror/*.h; do
		cc -std=gnu17 -Wall -Wextra -Werror -fsyntax-only -Iinclude -x c "$header" &&
			c++ -fsyntax-only -Iinclude -x c++ "$header" || return 1
	done
}
check "public headers stand alone, in C and C++" headers
sizes() { # of what ships; a file that has outgrown its room is a file to split
	wc -l blockmirror/*/*.c nbd-server/*.c | awk '$2 != "total" && $1 > 600 { print; bad = 1 } END { exit bad }'
}
check "no source file has outgrown its room" sizes
layers() { # arrows go down only (CONTRIBUTING.md)
	! grep -nE '#include "(blockmirror/(dev|mirror|disk|daemon|cli)|nbd-server)/' blockmirror/base/*.[ch] &&
		! grep -nE '#include "(blockmirror/(mirror|disk|daemon|cli)|nbd-server)/' blockmirror/dev/*.[ch] &&
		! grep -nE '#include "(blockmirror/(dev|mirror|disk|machine|daemon|cli)|nbd-server)/' blockmirror/ram/*.[ch] &&
		! grep -nE '#include "(blockmirror/(disk|daemon|cli)|nbd-server)/' blockmirror/mirror/*.[ch] &&
		! grep -nE '#include "(blockmirror/(dev|mirror|disk|daemon)|nbd-server)/' blockmirror/cli/*.[ch] &&
		! grep -nE '#include "(blockmirror/(dev|mirror|disk|cli)|nbd-server)/' blockmirror/daemon/*.[ch] &&
		! grep -nE '#include "blockmirror/(daemon|cli)/' blockmirror/disk/*.[ch] &&
		! grep -nE '#include "blockmirror/(mirror|disk|daemon|cli)/' nbd-server/*.[ch]
}
check "includes go down only" layers
tidy() {
	local flags
	flags="-std=gnu17 -D_GNU_SOURCE -I. -Iinclude $(pkg-config --cflags libnbd libiscsi jansson libxxhash libzstd gnutls libxml-2.0)"
	# shellcheck disable=SC2016 # for the shell that xargs starts
	git ls-files 'blockmirror/*.c' 'nbd-server/*.c' | CHECKS=$1 FLAGS=$flags xargs -P 2 -n 8 sh -c \
		'clang-tidy-14 --quiet "--checks=$CHECKS" "$@" -- $FLAGS "-DBM_VERSION=\"\"" 2>&1' sh
}
# The analyzer takes fifty times as long as all the rest; check-long has it.
LIMIT=300 check "clang-tidy is content" tidy '-clang-analyzer-*'
[ -z "${ANALYZE:-}" ] || LIMIT=3000 check "so is its analyzer" tidy ''
