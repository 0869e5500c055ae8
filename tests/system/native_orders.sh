#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Orders to native machines (docs/precopy.md): what each state lets go by, what makes a guest that is
# stopped run on and what does not, the policies, machines that do not fit. Each case is a function of
# native_orders.py. And the manual's example: it compiles as it is printed, and moves.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

truncate -s 8M "$dir/disk.img"
serve disk "$dir/disk.img"
uri=$(disk_uri disk)
log=$dir/serve.log

case_is_good() { # CASE
	timeout 60 /usr/bin/python3 tests/system/native_orders.py "$dir" "$uri" "$BUILD/fixtures/tinyvm" "$1"
}

# The lines between "begin" and "end" in the manual page.
example() {
	sed -n '/^\.\\" begin$/,/^\.\\" end$/p' man/libblockmirror-precopy.3 | sed '/^\.[B\\E]/d; s/\\e/\\/g'
}

compiles() {
	local sanitizers=()
	grep -q __asan_init "$BUILD/libblockmirror.so" && sanitizers=(-fsanitize=address -fsanitize=undefined)
	grep -q __tsan_init "$BUILD/libblockmirror.so" && sanitizers=(-fsanitize=thread)
	example >"$dir/example.c"
	ln -sf "$BUILD/libblockmirror.so" "$dir/libblockmirror.so.0"
	cc -std=gnu17 -Wall -Wextra -Werror "${sanitizers[@]}" -Iinclude -pthread -o "$dir/example" \
		"$dir/example.c" -L"$BUILD" -lblockmirror -Wl,-rpath,"$dir"
}

listens() { grep -q " $1\$" /proc/net/unix; }

example_moves() {
	spawn "$dir/example" "$dir/a.sock"
	local source=$pid
	spawn "$dir/example" "$dir/b.sock" incoming
	wait_for 10 listens "$dir/a.sock" && wait_for 10 listens "$dir/b.sock" || return
	timeout 60 /usr/bin/python3 tests/system/native_move.py --source "$dir/a.sock" \
		--target "$dir/b.sock" --log "$dir/moves" --move example --dir "$dir" || return
	wait "$source" || return
	lib_forget "$source"
	cat "$dir/example.log"
	[ "$(grep -c '^running whole$' "$dir/example.log")" -eq 2 ]
}

for name in $(/usr/bin/python3 tests/system/native_orders.py "$dir" "$uri" "$BUILD/fixtures/tinyvm"); do
	[ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
	check "${name//_/ }" case_is_good "$name"
done
check "the manual's example compiles" compiles
log=$dir/example.log check "and moves" example_moves
