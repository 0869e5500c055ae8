#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine moves that has a disk of its own, which is copied, and one on storage that both hosts reach, which is
# handed over: a path, an NBD server. Never have both hosts it open for writing, nothing of it is copied, and
# whoever dies on the way, the machine runs once, with the disk as it knows it.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "$0")/machine.bash"
# shellcheck source=pool.bash
. "$(dirname "$0")/pool.bash"

need_machine
have qemu-nbd nbdinfo || { skip "a server that both reach" "qemu-utils, libnbd-bin"; exit; }
budget=30s now=a

# untouched NAME: it runs on a with both disks, b has nothing of it, disk1's image is the same file.
untouched() {
	check "$1: it is here, with its disks" only_on a b
	check "$1: b has no disk, and no copy" nothing_there
	check "$1: its storage is the same" same_storage
	check "$1: its guest goes on" goes_on
}
nothing_there() { [ -z "$(bm_on b list --json | jq -r '.disks[].name')" ] && [ ! -e "$(in_store b disk0.img)" ]; }
storage_of() { stat -c '%d %i %s' "$(in_pool disk1.img)"; }
same_storage() { [ "$(storage_of)" = "$storage" ] && [ "$(ls "$(in_pool .)")" = "$pool_had" ]; }

# On a, with the disk's size.
start_server() {
	truncate -s 32M "$dir/served.img"
	uri=nbd://10.77.0.1:10809/
	spawn_on a qemu-nbd -b 10.77.0.1 -p 10809 -t -e 32 -f raw --cache=none --discard=unmap "$dir/served.img"
	wait_for 10 on a nbdinfo "$uri" >>"$dir/log" 2>&1
}

other() { [ "$1" = a ] && echo b || echo a; }
watch_writers() {
	while :; do writers; done >"$dir/writers"
}
never_two() {
	stop "$writer_watch"
	sort "$dir/writers" | uniq -c
	grep -q 1 "$dir/writers" && ! grep -q '[2-9]' "$dir/writers"
}
# passes [OPTION…]: from where it is to the other host.
passes() {
	local from=$now to
	to=$(other "$now")
	log=$dir/log spawn watch_writers
	writer_watch=$pid
	check "$from to $to: its guest is watched" watch "$from"
	check "$from to $to: it moves" move "$from" "$to" --overwrite "$@"
	now=$to
	check "$from to $to: it is there, with its disks" wait_for 10 only_on "$to" "$from"
	check "$from to $to: its guest was stopped once" stopped_once
	check "$from to $to: one host at a time has had the image" never_two
	check "$from to $to: nothing was copied of it" job_none "$to"
	check "$from to $to: its guest goes on" goes_on
	check "$from to $to: nothing is lost" sound_both "$to"
}
job_none() { [ "$(on "$1" show disk1 .job)" = null ]; }
refusals() {
	check_fails "by its path it is there already" 3 "E_EXISTS: $pool/disk1.img exists on the other host" move a b
	untouched "a path"
	check_fails "and is not written over itself" 3 "E_OWNED" move a b --overwrite
	check_fails "a disk that it does not have" 4 "E_NOT_FOUND: --shared=disk7: machine vm has no disk" move a b --shared=disk7
	check_fails "no path alone" 2 "DISK or DISK=WHERE is wanted" move a b "--shared=$pool"
	check_fails "all, and a folder for copies" 2 "no --into" move a b --shared --into "$store"
	check_fails "of several machines" 2 "is of several machines" bm_on a migrate --all --to host-b --shared=disk1
	check_fails "what b does not let it have" 3 "E_ACCESS: $store/x.img is not there on host host-b" move a b "--shared=disk1=$store/x.img"
	untouched "refused"
	cp --sparse=always --preserve=all "$(in_pool disk1.img)" "$(in_pool copy.img)"
	check_fails "a copy of it" 1 "E_FOREIGN: .*copy.img on this host is not the file" move a b "--shared=disk1=$pool/copy.img"
	rm "$(in_pool copy.img)"
	untouched "a copy"
	check "disk1 is armed for b by itself" bm_on a migrate arm disk1 --to host-b --shared
	check_fails "its machine does not move then" 3 "E_BUSY: disk disk1 was offered to host host-b by itself: .*disarm" move a b --shared=disk1
	check "it is armed no more" bm_on a migrate disarm disk1
	untouched "armed"
	check "looked at only" move a b --shared=disk1 --dry-run
	untouched "looked at"
	check "rehearsed" move a b --shared=disk1 --rehearse
	check "rehearsed: it is here" only_on a b
	check "rehearsed: its storage is the same" same_storage
	check "rehearsed: its guest goes on" goes_on
}

# ended: the move that was begun is over, however.
ended() { wait_for 90 lib_gone "$client" && { wait "$client"; lib_forget "$client"; rm -f "$dir/move"; }; }
settled() { wait_for 90 settles a b; }
step() { # NAME STEP: the process dies at that step.
	local from=$now
	check "$1: a move comes there" dies_at "$2" "$from" "$(other "$from")"
	check "$1: it is over" ended
	check "$1: it runs on one host" settled
	check "$1: its guest goes on" goes_on
	check "$1: nothing is lost" sound_both "$now"
}
dies_at() { at "$1" die && { log=$dir/move spawn move "$2" "$3" --overwrite --shared=disk1; client=$pid; } && wait_for 60 came_there; }

deaths() {
	local p from
	for p in "$@"; do step "$p" "$p"; done

	# Decided, and not told yet: the disk's process at the source dies, and the next one only reads.
	from=$now
	check "it has decided" begins "$from" "$(other "$from")" source-passed --overwrite --shared=disk1
	check "its disk's process dies" kill_on "$from" disk1
	check "another one is there, fenced" wait_for 10 gate_is "$from" disk1 fenced
	check "which has it open for reading alone" test "$(writers)" = 0
	kill -CONT "$mover"
	check "it ends well" ended
	check "it is there" wait_for 60 only_on "$(other "$from")" "$from"
	now=$(other "$from")
	check "its guest goes on" goes_on
	check "nothing is lost" sound_both "$now"

	# Decided, let go of, and then the target has lost the machine: the source takes it back.
	from=$now
	check "it has decided" begins "$from" "$(other "$from")" source-passed --overwrite --shared=disk1
	check "the target's VMM dies" vm_dies "$(other "$from")"
	kill -CONT "$mover"
	check "it is over" ended
	check "it is where it was" wait_for 60 only_on "$from" "$(other "$from")"
	check "its guest goes on" goes_on
	check "its disk is open for writing again" test "$(writers)" = 1
	check "nothing is lost" sound_both "$now"
}
kill_on() { kill -KILL "$(on "$1" show "$2" .pid)"; }
gate_is() { [ "$(on "$1" show "$2" .gate 2>/dev/null)" = "$3" ]; }
vm_dies() {
	local p
	for p in $(host_processes "$1"); do
		[[ $(cat "/proc/$p/comm" 2>/dev/null) != qemu-system* ]] || kill -KILL "$p"
	done
}

servers() {
	check "a server that both reach" start_server
	check "disk1 is there" moves_to "$uri"
	check_fails "b may not have it opened" 3 "E_ACCESS: $uri is not there on host host-b" move a b --overwrite
	check "both let it" allow_uri
	check "by its name it is shared: it moves" move a b --overwrite
	check "it is there" wait_for 10 only_on b a
	check "nothing was copied of it" job_none b
	check "its guest goes on" goes_on
	check "nothing is lost" sound_shared b "$dir/served.img"
	check "and back" move b a --overwrite
	check "it is there" wait_for 10 only_on a b
	check "its guest goes on" goes_on
	check "nothing is lost" sound_shared a "$dir/served.img"
}
allow_uri() {
	bm_on b peer allow host-a --receive "$store" --shared "$uri" && bm_on a peer allow host-b --receive "$store" --shared "$uri"
}

# What a helper of one host opens is no storage of both.
formats() {
	check "disk1 is a qcow2 image there" moves_to "qcow2:$pool/disk1.qcow2"
	check_fails "which is not shared" 3 "E_UNSUPPORTED: disk disk1 is on qcow2:$pool/disk1.qcow2, which a helper of this host opens: only raw storage is shared" \
		move a b --overwrite --shared=disk1
	check "it is here" only_on a b
	check "its guest goes on" goes_on
}

units() {
	have tgtd tgtadm || { skip "an iSCSI unit of both hosts" "tgt"; return; }
	check "an iSCSI target that both reach" start_unit
	check "disk1 is on a unit of it, by a password" moves_to "$unit"
	check_fails "which does not go to b by itself" 2 "E_USAGE: .*has a password, which stays on this host: say --shared=disk1=URI" \
		move a b --overwrite
	check "it is here" only_on a b
	check "both let it" allow_unit
	check "b is told how it reaches it" move a b --overwrite "--shared=disk1=$unit"
	check "it is there" wait_for 10 only_on b a
	check "nothing was copied of it" job_none b
	check "its guest goes on" goes_on
	check "nothing is lost" sound_shared b "$dir/tgt/$unit_image"
	check "no password is shown" no_password
	check "and back" move b a --overwrite "--shared=disk1=$unit"
	check "it is here" wait_for 10 only_on a b
	check "its guest goes on" goes_on
	check "nothing is lost" sound_shared a "$dir/tgt/$unit_image"
}
unit_image=lun2.1.img
start_unit() {
	portal=$(TGT_ADDRESS=10.77.0.1 on a fixtures/tgt.sh start "$dir/tgt" 32 2>>"$dir/log") || return
	on_exit "on a fixtures/tgt.sh stop '$dir/tgt' >>'$dir/log' 2>&1"
	unit=iscsi://mirror%secretsecret12@${portal#iscsi://}:chap/1
}
allow_unit() {
	local server=${portal%%/iqn*}
	bm_on b peer allow host-a --receive "$store" --shared "$server" && bm_on a peer allow host-b --receive "$store" --shared "$server"
}
no_password() {
	{ bm_on b show disk1 --json; bm_on b list --json; bm_on a list --json; } >"$dir/shown" && grep -q 'mirror%\*\*\*' "$dir/shown" &&
		! grep -q secretsecret "$dir/shown" "$dir"/*/log
}

steps_known
machine_up pool_up
check "disk1 is on storage of both hosts" moves_to "$pool/disk1.img"
storage=$(storage_of)
pool_had=$(ls "$(in_pool .)")
refusals
passes --shared=disk1
passes --shared=disk1
if [ -n "${LONG:-}" ]; then
	deaths source-joined source-fenced source-passed target-started source-done
	[ "$now" = a ] || passes --shared=disk1
	formats
	servers
	units
else
	deaths
fi
