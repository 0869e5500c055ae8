#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What "hook relocate" refuses, and what becomes of the id then; hooks that say no, or take their time.
# shellcheck source-path=SCRIPTDIR source=hook.bash
. "$(dirname "$0")/hook.bash"

have jq qemu-img || { skip "hook relocate's refusals" "jq, qemu-utils"; exit; }
install_hook 10-manager
start_daemon --hook-timeout 30s
make_image "$dir/disk.img"
serve disk "$dir/disk.img"

refusing() {
	truncate -s 1M "$dir/there.img"
	check_fails "a target that is there" 3 '"refused".*E_EXISTS' ask "$(request bad-1 "$dir/there.img")"
	check "then the id is free: for another target" is_done "$(request bad-1 "$dir/d.img" '{}' ',"wait":true')"
	order before-switch 'echo "not at noon" >&2; exit 1'
	check_fails "a hook says no: it is held" 3 '"held".*not at noon' \
		ask "$(request held-1 "$dir/e.img" '{}' ',"wait":true')"
	check_fails "that is said again" 3 '"held"' ask '{"id":"held-1"}'
	free
	check "told to, it switches over" is_done '{"id":"held-1","switch":true,"wait":true}'
	check "and is there" disk_is_on "$dir/e.img"
	hold before-relocate
	check "a hook takes its time: who does not wait is told so" asks accepted "$(request slow-1 "$dir/f.img")"
	check "he did not wait for it" test "$(times before-relocate)" -gt "$(times after-relocate)"
	go
	check "who waits is told the end" is_done "$(request slow-1 "$dir/f.img" '{}' ',"wait":true')"
	check_fails "a target that cannot be reached" 7 '"refused".*E_UNREACHABLE' ask "$(request bad-2 "nbd+unix:///?socket=$dir/none")"
	check "that id is free, too" is_done "$(request bad-2 "$dir/g.img" '{}' ',"wait":true')"
	check_fails "a disk that is not served" 4 'E_NOT_FOUND' ask '{"id":"x","disk":"other","target":"/x"}'
	check_fails "a machine that nobody knows" 4 'E_NOT_FOUND.*machine m ' ask '{"id":"x","machine":"m","target":"host"}'
	check_fails "an unknown member" 2 'E_USAGE.*\\"what\\" is not known' ask '{"id":"x","disk":"disk","target":"/x","what":1}'
	check_fails "an unknown option" 2 'E_USAGE.*\\"fast\\" is not known' ask "$(request x /x '{"fast":true}')"
	check_fails "an option that makes no sense" 2 'rate: bytes a second' ask "$(request x /x '{"rate":"much"}')"
	check_fails "no id" 2 'id: a text is wanted' ask '{"disk":"disk","target":"/x"}'
	check_fails "an id that is a path" 2 'letters, digits' ask '{"id":"../x"}'
	check_fails "a target that depends on where one is" 2 'begins with /' ask "$(request x d.img)"
	check_fails "disk and qmp" 2 'E_USAGE' ask '{"id":"x","disk":"disk","qmp":"/q","drive":"d","target":"/x"}'
	check_fails "a member twice" 2 'duplicate' ask '{"id":"x","id":"y"}'
	check_fails "what is no JSON" 2 'a JSON object is wanted' ask 'move it'
	check_fails "more than 64 KiB" 2 'more than 65536 bytes' ask "{\"id\":\"$(head -c 70000 /dev/zero | tr '\0' x)\"}"
	check "none of them is remembered" test "$(find "$BLOCKMIRROR_STATE_DIR/requests" -name x | wc -l)" = 0
	check_fails "arguments" 2 'no arguments' "$bm" hook relocate disk
}

refusing
check "the disk is stopped in the end" wait_for 5 "$bm" stop disk
