#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# An iSCSI password in a URI is used, kept in the record (mode 0600), and shown to nobody: not in
# what commands print, errors and JSON included, nor in logs, marks and programs' arguments.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have tgtd tgtadm nbdcopy jq getfattr || { skip "passwords" "tgt, libnbd-bin, jq, attr"; exit; }
unset LIBISCSI_CHAP_USERNAME LIBISCSI_CHAP_PASSWORD
image=$dir/disk.img size=$((8 * M)) secret=secretsecret12
record=$BLOCKMIRROR_STATE_DIR/disks/disk/record
head -c $size /dev/urandom >"$image"
start_tgt "$dir/tgt" 8 || { not_ok "the target starts" "$dir/log"; exit; }
portal=${uri#iscsi://}
target=iscsi://mirror%$secret@$portal:chap/1 shown='mirror%***'

# keeps NAME FILE: a URI is there as people may see it, and no password is.
keeps() {
	grep -qF "$shown" "$2" && ! grep -qF secret "$2"
	result $? "$1" "$2"
}

# tells NAME COMMAND…: of blockmirror, which succeeds.
tells() {
	if "$bm" "${@:2}" >"$dir/said" 2>&1; then
		keeps "$1" "$dir/said"
	else
		not_ok "$1" "$dir/said"
	fi
}

# refuses NAME STATUS CODE COMMAND…
refuses() {
	check_fails "$1" "$2" "$3" "$bm" "${@:4}"
	keeps "$1: the password is not told" "$dir/out"
	"$bm" --json "${@:4}" >"$dir/said" 2>&1
	keeps "$1: nor with --json" "$dir/said"
}

# arguments NAME PID
arguments() {
	tr '\0' '\n' <"/proc/$2/cmdline" >"$dir/said"
	keeps "$1" "$dir/said"
}

# mark_keeps NAME FILE: JSON may have its slashes escaped.
mark_keeps() {
	getfattr --only-values -n user.blockmirror "$2" 2>/dev/null | jq . >"$dir/said"
	keeps "$1" "$dir/said"
}

# What can be asked about a disk.
asked() {
	tells "$1: show" show disk
	tells "$1: show --json" show disk --json
	tells "$1: list --json" list --json
	tells "$1: job list" job list
	tells "$1: job list --json" job list --json
	tells "$1: job show" job show disk.1
	tells "$1: job show --json" job show disk --json
	tells "$1: job wait --json" job wait disk --for in-sync --json
}

moving() {
	serve disk "$image"
	log=$dir/events spawn "$bm" events disk
	local events=$pid
	sleep 0.2
	tells "relocate, as it goes" --progress json relocate disk "$target" --overwrite --switch manual
	asked "in sync"
	tells "switch" switch disk
	check "the password was used: the disk is there" serves disk "$image" $size
	check "and written down: the record has it" grep -qF "$secret" "$record"
	check "for nobody else to read" test "$(stat -c %a "$record")" = 600
	asked "moved"
	tells "moved: list" list
	keeps "the events" "$dir/events"
	stop "$events"
	mark_keeps "the mark on the old image" "$image"
	refuses "serve: the old image" 3 E_RETIRED serve old "$image"
}

restarting() {
	check "it is stopped" unserve disk
	refuses "serve: another image than the record's" 3 E_EXISTS serve disk "$image"
	tells "served again, by its URI" serve disk "$target" --json
	disk_pid=$(show disk .pid)
	lib_pids+=("$disk_pid")
	asked "served again"
	arguments "the arguments of the disk's process" "$disk_pid"
	check "it is killed" kill_disk disk
	check "and served again, by its name" serve disk
	asked "after a crash"
	check "it is there" serves disk "$image" $size
	refuses "relocate: to itself" 3 E_SAME relocate disk "$target" --overwrite
}

# second has another image; dead is a target that nobody listens at.
refusals() {
	local dead=iscsi://mirror%$secret@127.0.0.1:1/iqn.x:d/1 shown=$shown
	head -c 1M /dev/urandom >"$dir/second.img"
	serve second "$dir/second.img"
	refuses "relocate: without --overwrite" 3 E_EXISTS relocate second "$target"
	refuses "relocate: no such unit" 4 E_NOT_FOUND relocate second "${target%1}7" --overwrite
	refuses "relocate: nobody listens" 7 E_UNREACHABLE relocate second "$dead" --overwrite
	refuses "relocate: a wrong password" 3 E_ACCESS \
		relocate second "${target/$secret/secretsecret13}" --overwrite
	refuses "copy a disk: without --overwrite" 3 E_EXISTS copy second "$target"
	unserve second
	refuses "copy an image: without --overwrite" 3 E_EXISTS copy "$dir/second.img" "$target"
	refuses "copy: nobody listens" 7 E_UNREACHABLE copy "$dead" "$dir/no.img"
	refuses "verify: nobody listens" 7 E_UNREACHABLE verify "$image" "$dead"
	refuses "serve: nobody listens" 7 E_UNREACHABLE serve new "$dead"
	refuses "serve: --create" 2 E_USAGE serve new "$dead" --create 8M
	refuses "serve: an unknown scheme" 2 E_URI serve new "gopher${dead#iscsi}"
	refuses "serve: large letters" 2 E_URI serve new "ISCSI${dead#iscsi}"
	refuses "serve: a slash too few" 2 E_URI serve new "${dead/\/\///}"
	refuses "serve: no unit" 2 E_URI serve new "${dead%/*/*}/"
	refuses "serve: a path" 4 E_NOT_FOUND serve new "./$dead"
	shown='mirror:***@'
	refuses "serve: USER:PASSWORD" 7 E_UNREACHABLE serve new "${dead/\%/:}"
	shown='target_password=***'
	refuses "serve: target_password" 7 E_UNREACHABLE \
		serve new "iscsi://127.0.0.1:1/iqn.x:d/1?target_user=t&target_password=$secret"
}

nbd_server() {
	unserve disk
	start_blockmirror_nbd "$dir/out.sock" "$target"
	arguments "the arguments of blockmirror-nbd" "$pid"
	check "which serves it" cmp <(nbdcopy "$uri" -) "$image"
	stop "$pid"
	check_fails "blockmirror-nbd: nobody listens" 7 E_UNREACHABLE "$BUILD/blockmirror-nbd" \
		--unix "$dir/out.sock" "iscsi://mirror%$secret@127.0.0.1:1/iqn.x:d/1"
	keeps "blockmirror-nbd: the password is not told" "$dir/out"
}

# The logs of processes that ended were read with their errors.
logs() {
	local said
	said=$(cat "$BLOCKMIRROR_RUN_DIR"/disks/*.log "$dir/log")
	check "there are logs" test -n "$said"
	check "none has a password" test "${said/secret/}" = "$said"
}

moving
restarting
refusals
nbd_server
logs
