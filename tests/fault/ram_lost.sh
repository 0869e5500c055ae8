#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A guest whose RAM is on its way to another host goes on where it is: when a connection says nothing
# more, when the target's QEMU or the sender dies, when the bytes are changed on their way, and when the
# move is dropped at its last step.
# shellcheck source-path=SCRIPTDIR/../system source=ram.bash
. "$(dirname "$0")/../system/ram.bash"

truncate -s 64M "$image"
check "a guest runs" machine b
check "it writes records" wait_for 120 ticked b 10
[ "$lib_failed" -eq 0 ] || exit

silence=4000
check "a path" path b c
check "it migrates" migrate b 16000000
check "RAM is under way" wait_for 60 under_way b
kill -STOP "${forwarders[2]}"
fails "a connection is silent" b c 'E_UNREACHABLE: \(the other host has given up: \)\?connection [0-9]: the other host has said nothing' # whoever notices first
silence=30000

check "a path" path b d
check "it migrates" migrate b 16000000
check "RAM is under way" wait_for 60 under_way b
kill9 "$target"
fails "the target's QEMU dies" b d "E_UNREACHABLE: the other host has given up: the target's QEMU"

check "a path" path b e
check "it migrates" migrate b 16000000
check "RAM is under way" wait_for 60 under_way b
kill9 "$sender"
check "the sender dies: the guest runs" wait_for 20 status_is b running
check "the sender dies: and goes on" goes_on b
check "the receiver ends, too" ended "$receiver"
clear_path

check "a path" path b f
check "a rehearsal" migrate b 1000000000
check "all is loaded" wait_for 240 says b ^held
check "the guest is stopped" status_is b finish-migrate
printf d >&8
check "dropped: the guest runs" wait_for 20 status_is b running
check "dropped: and goes on" goes_on b
check "dropped: the target's QEMU has no machine that runs" no_machine f
clear_path

monitor b quit >/dev/null
check "no record was lost" "$records" check "$image" "$dir/b.console"
