#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What users get wrong: each time one clear line, the exit code that the manual promises, the same
# as JSON, and nothing has changed: no image, no record, no mark, no file left behind, and the disk
# is served as before.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-nbd qemu-io nbdkit nbdinfo jq getfattr setpriv ||
	{ skip "bad input" "qemu-utils, nbdkit, libnbd-bin, jq, attr, setpriv"; exit; }
images=$dir/images
image=$images/disk.img
mkdir -p "$images/full" "$images/other"
head -c 4M /dev/urandom >"$image"
serve disk "$image"

# What must not change: names, contents, marks, records.
snapshot() {
	(cd "$dir" && find images state -printf '%p %y %m %s\n' | sort
		find images state -type f -print0 | sort -z | xargs -0 md5sum
		getfattr -R -d -m user images 2>&1)
}

moving=''
still_served() {
	[ -z "$moving" ] || return 0
	[ "$(nbdinfo --size "$(disk_uri disk)")" = $((4 * M)) ] &&
		[ "$(show disk '"\(.uri) \(.state)"')" = "$image alone" ]
}

# refused NAME STATUS CODE ARGUMENT…: of blockmirror. Without $changes, nothing may change.
changes=''
refused() {
	local name=$1
	lib_run refused_twice "${@:2}"
	result $? "$name" "$dir/out"
}
refused_twice() {
	local expected=$1 code=$2 status
	shift 2
	snapshot >"$dir/before"
	timeout 30 "$bm" "$@" >"$dir/stdout" 2>"$dir/stderr"
	status=$?
	[ $status -eq "$expected" ] || { echo "exit status $status"; cat "$dir/stderr"; return 1; }
	if [ -s "$dir/stdout" ] || [ "$(wc -l <"$dir/stderr")" -ne 1 ] ||
		! grep -q "^blockmirror: $code: ..*" "$dir/stderr"; then
		echo "not one line of $code:"
		cat "$dir/stdout" "$dir/stderr"
		return 1
	fi
	timeout 30 "$bm" --json "$@" >"$dir/stdout" 2>"$dir/stderr"
	status=$?
	if [ $status -ne "$expected" ] || [ -s "$dir/stderr" ] ||
		! jq -e ".error.code == \"$code\" and (.error.message | length > 5)" "$dir/stdout"; then
		echo "JSON, exit status $status:"
		cat "$dir/stdout" "$dir/stderr"
		return 1
	fi
	[ -n "$changes" ] || snapshot | diff "$dir/before" - || return 1
	still_served
}

# With folders of their own: they end when they like.
slow_servers() {
	local -x BLOCKMIRROR_RUN_DIR=$dir/slow/run BLOCKMIRROR_STATE_DIR=$dir/slow/state
	truncate -s 4M "$dir/hung.img" "$dir/hung2.img"
	head -c 1M /dev/urandom >"$dir/second.img"
	head -c 1M /dev/urandom >"$dir/third.img"
	serve second "$dir/second.img"
	serve third "$dir/third.img"
	start_qemu_nbd "$dir/hung.sock" "$dir/hung.img"
	kill -STOP "$pid"
	log=$dir/dead1 spawn "$bm" relocate second "$uri" --overwrite
	dead=("$pid")
	log=$dir/dead2 spawn "$bm" serve fourth "$uri"
	dead+=("$pid")
	have tgtd || return
	start_tgt "$dir/tgt" 4
	fixtures/tgt.sh pause "$dir/tgt"
	log=$dir/dead3 spawn "$bm" relocate third "$uri:disk/1" --overwrite
	dead+=("$pid")
	log=$dir/dead4 spawn "$bm" --json serve fifth "$uri:disk/1"
	dead+=("$pid")
}

# They have been waiting all the time.
slow_servers_end() {
	local names=(x "relocate to a dead NBD server" "serve from a dead NBD server"
		"relocate to a dead iSCSI target" "serve from a dead iSCSI target") i status
	for i in 1 2 3 4; do
		[ $i -le ${#dead[@]} ] || { skip "${names[i]}" "no tgtd"; continue; }
		wait "${dead[i - 1]}"
		status=$?
		[ $status -eq 7 ] && grep -q E_UNREACHABLE "$dir/dead$i" &&
			{ [ $i = 4 ] || [ "$(wc -l <"$dir/dead$i")" -eq 1 ]; }
		result $? "${names[i]}" "$dir/dead$i"
		lib_forget "${dead[i - 1]}"
	done
	local -x BLOCKMIRROR_RUN_DIR=$dir/slow/run BLOCKMIRROR_STATE_DIR=$dir/slow/state
	check "the disks are where they were" cmp <(show second .uri; show third .uri) \
		<(printf '%s\n' "$dir/second.img" "$dir/third.img")
	[ ! -e "$BLOCKMIRROR_STATE_DIR/disks/fourth" ] && [ ! -e "$BLOCKMIRROR_STATE_DIR/disks/fifth" ]
	result $? "and nothing is left of those that never were"
	unserve second
	unserve third
}

images_that_are_none() {
	: >"$images/empty.img"
	truncate -s 1000 "$images/odd.img"
	ln -s nowhere "$images/dangling.img"
	refused "serve: a missing image" 4 E_NOT_FOUND serve new "$images/nothing.img"
	refused "serve: a missing folder" 4 E_NOT_FOUND serve new "$dir/no/such/disk.img"
	refused "serve: a link to nowhere" 4 E_NOT_FOUND serve new "$images/dangling.img"
	refused "serve: a folder" 3 E_NOT_IMAGE serve new "$images"
	refused "serve: a character device" 3 E_NOT_IMAGE serve new /dev/null
	refused "serve: zero bytes" 3 E_SIZE serve new "$images/empty.img"
	refused "serve: not a multiple of 512 bytes" 3 E_SIZE serve new "$images/odd.img"
	refused "serve: no image, and no record" 4 E_NOT_FOUND serve new
	refused "serve: an unknown scheme" 2 E_URI serve new gopher://host/disk
	refused "serve: --create over what exists" 3 E_EXISTS serve new "$image" --create 1M
	refused "serve: --create of an odd size" 3 E_SIZE serve new "$images/new.img" --create 1000
	refused "serve: --create in a missing folder" 4 E_NOT_FOUND \
		serve new "$dir/no/new.img" --create 1M
	refused "serve: another image for a disk that has one" 3 E_BUSY serve disk "$images/odd.img"
	refused "serve: an image that is served" 3 E_OWNED serve new "$image"
	refused "copy: a missing image" 4 E_NOT_FOUND copy "$images/nothing.img" "$images/new.img"
	truncate -s 1M "$images/plain.img"
	refused "copy: onto itself" 3 E_SAME copy "$images/plain.img" "$images/plain.img" --overwrite
	refused "verify: a missing image" 4 E_NOT_FOUND verify "$images/plain.img" "$images/nothing.img"
}

targets_that_are_none() {
	truncate -s 3M "$images/small.img"
	mkdir "$images/other/disk.img"
	refused "relocate: an empty target" 3 E_SIZE relocate disk "$images/empty.img" --overwrite
	refused "relocate: an odd target" 3 E_SIZE relocate disk "$images/odd.img" --overwrite
	refused "relocate: a smaller target" 3 E_TOO_SMALL relocate disk "$images/small.img" --overwrite
	refused "relocate: a target that exists" 3 E_EXISTS relocate disk "$images/small.img"
	refused "relocate: a folder where the image would be" 3 E_NOT_IMAGE \
		relocate disk "$images/other" --overwrite
	refused "relocate: a character device" 3 E_NOT_IMAGE relocate disk /dev/null --overwrite
	refused "relocate: a missing folder" 4 E_NOT_FOUND relocate disk "$dir/no/such/disk.img"
	refused "relocate: a missing folder, by its slash" 4 E_NOT_FOUND relocate disk "$dir/no/"
	refused "relocate: a link to nowhere" 3 E_EXISTS relocate disk "$images/dangling.img"
	refused "relocate: an unknown scheme" 2 E_URI relocate disk gopher://host/disk
	refused "relocate: no scheme at all" 2 E_URI relocate disk nbd:
	refused "relocate: not a number" 2 E_USAGE relocate disk "$images/full" --rate much
}

the_same_image() {
	ln "$image" "$images/hard.img"
	ln -s disk.img "$images/soft.img"
	ln -s "$BLOCKMIRROR_RUN_DIR" "$dir/shortcut"
	local same way
	for same in "itself:$image" "another path:$images/full/../disk.img" "file:file://$image" \
		"a hard link:$images/hard.img" "a link:$images/soft.img" "its folder:$images" \
		"its own export:$(disk_uri disk)" \
		"its own export, by a link:nbd+unix:///disk?socket=$dir/shortcut/disks/disk.nbd"; do
		way=${same%%:*}
		refused "relocate: to itself: $way" 3 E_SAME relocate disk "${same#*:}" --overwrite
	done
	rm "$images/hard.img" "$images/soft.img"
}

locked_images() {
	head -c 4M /dev/zero >"$images/locked.img"
	spawn qemu-io -f raw -c 'sleep 60000' "$images/locked.img"
	sleep 0.5
	refused "serve: locked by another process" 3 E_LOCKED serve new "$images/locked.img"
	refused "relocate: locked by another process" 3 E_LOCKED \
		relocate disk "$images/locked.img" --overwrite
	kill9 "$pid"
}

# Nobody is root here.
unwritable() {
	local bm=$dir/as_nobody
	local BLOCKMIRROR_RUN_DIR=$dir/nobody/run BLOCKMIRROR_STATE_DIR=$dir/nobody/state
	if [ "$(id -u)" -ne 0 ]; then
		skip "an unwritable folder" "must be root to become somebody else"
		return
	fi
	chmod 711 "$dir"
	mkdir "$dir/nobody" "$dir/nobody/closed"
	head -c 4M /dev/urandom >"$dir/nobody/disk.img"
	chown -R 65534 "$dir/nobody"
	chown 0 "$dir/nobody/closed"
	cat >"$bm" <<-END
		#!/bin/sh
		exec setpriv --reuid 65534 --regid 65534 --clear-groups "$BUILD/blockmirror" "\$@"
	END
	chmod 755 "$bm"
	if ! "$bm" --version >/dev/null 2>&1; then
		skip "an unwritable folder" "others may not run $BUILD/blockmirror"
		return
	fi
	serve disk "$dir/nobody/disk.img"
	check_fails "relocate: an unwritable folder" 3 "^blockmirror: E_ACCESS: " \
		"$bm" relocate disk "$dir/nobody/closed"
	check_fails "relocate: an image that may not be written" 3 "^blockmirror: E_ACCESS: " \
		"$bm" relocate disk "$image" --overwrite
	check_fails "serve: an image that may not be read" 3 "^blockmirror: E_ACCESS: " \
		"$bm" serve new "$dir/nobody/closed/../../log"
	check_fails "serve: a state directory that may not be written" 3 "^blockmirror: E_ACCESS: " \
		"$bm" --state-dir "$dir/nobody/closed" serve new "$dir/nobody/disk.img"
	check "the disk is where it was" cmp <(show disk .uri) <(echo "$dir/nobody/disk.img")
	check "no target is left behind" test -z "$(ls "$dir/nobody/closed")"
	unserve disk
}

no_space() {
	start_nbdkit "$dir/huge.sock" memory 1P
	serve huge "$uri"
	refused "relocate: no space" 3 E_ENOSPC relocate huge "$images/full"
	unserve huge
	stop "$pid"
}

servers_that_refuse() {
	start_qemu_nbd "$dir/named.sock" "$images/small.img" -x right
	local wrong
	wrong=$(nbd_uri "$dir/named.sock" wrong)
	refused "serve: a wrong export name" 4 E_NOT_FOUND serve new "$wrong"
	refused "relocate: a wrong export name" 4 E_NOT_FOUND relocate disk "$wrong" --overwrite
	refused "relocate: an export without --overwrite" 3 E_TOO_SMALL \
		relocate disk "$(nbd_uri "$dir/named.sock" right)"
	stop "$pid"
	start_nbdkit "$dir/ro.sock" -r memory 4M
	refused "relocate: a read-only export" 3 E_ACCESS relocate disk "$uri" --overwrite
	stop "$pid"
	start_nbdkit "$dir/rw.sock" memory 4M
	refused "relocate: an export, which exists" 3 E_EXISTS relocate disk "$uri"
	stop "$pid"
	for wrong in nbd://127.0.0.1:1/ "$(nbd_uri "$dir/nobody.sock")" iscsi://127.0.0.1:1/iqn.x:d/1; do
		refused "serve: nobody listens: ${wrong%%:*}" 7 E_UNREACHABLE serve new "$wrong"
		refused "relocate: nobody listens: ${wrong%%:*}" 7 E_UNREACHABLE \
			relocate disk "$wrong" --overwrite
	done
	refused "relocate: not an iSCSI URI" 2 E_URI relocate disk iscsi://127.0.0.1/ --overwrite
}

disks_and_jobs() {
	refused "relocate: an unknown disk" 4 E_NOT_FOUND relocate nobody "$images/full"
	refused "show: an unknown disk" 4 E_NOT_FOUND show nobody
	refused "stop: an unknown disk" 4 E_NOT_FOUND stop nobody
	refused "switch: an unknown disk" 4 E_NOT_FOUND switch nobody
	refused "switch: nothing to switch" 4 E_NOT_FOUND switch disk
	refused "job: of an unknown disk" 4 E_NOT_FOUND job show nobody.1
	refused "job: an unknown number" 4 E_NOT_FOUND job show disk.7
	refused "serve: served already" 3 E_BUSY serve disk
	refused "serve: not a name" 2 E_USAGE serve ..disk "$images/small.img"
	refused "relocate: not a name" 4 E_NOT_FOUND relocate a/b "$images/full"
	start_load disk --range 0:64k --initial any --iops 20 --connections 1 --fill 0
	changes=yes refused "stop: a client is connected" 3 E_BUSY stop disk
	kill9 "$load"
	"$bm" relocate disk "$images/full" --switch manual >>"$dir/log"
	moving=yes
	refused "relocate: a second time" 3 E_BUSY relocate disk "$images/other/new.img"
	refused "copy: during a move" 3 E_BUSY copy disk "$images/other/new.img"
	refused "stop: during a move" 3 E_BUSY stop disk
	"$bm" job cancel disk >>"$dir/log"
	refused "cancel: a job that has ended" 3 E_FINISHED job cancel disk.1
	refused "pause: a job that has ended" 3 E_FINISHED job pause disk
	refused "set: a job that has ended" 3 E_FINISHED job set disk --rate 1M
}

two_states() {
	local mine=("$bm" --state-dir "$dir/state2" --run-dir "$dir/run2")
	mkdir "$dir/state2"
	check_fails "serve: another state directory has it" 3 "E_OWNED: .*$BLOCKMIRROR_STATE_DIR/disks" \
		"${mine[@]}" serve disk "$image"
	unserve disk
	check_fails "serve: also when it is not served now" 3 "E_OWNED" "${mine[@]}" serve disk "$image"
	check "one's own does" "${mine[@]}" serve other "$images/locked.img"
	lib_pids+=("$("${mine[@]}" show other --json | jq .pid)")
	check_fails "relocate: another state directory has the target" 3 "E_OWNED" \
		"${mine[@]}" relocate other "$image" --overwrite
	check_fails "copy: another state directory has the target" 3 "E_OWNED" \
		"$bm" copy "$images/small.img" "$image" --overwrite
	check "nothing of the first is there" test ! -e "$dir/state2/disks/disk"
	check "its owner serves it" serve disk
	rm -r "$dir/state/disks/disk"
	"$bm" stop disk
	check "a record that is gone owns nothing" "${mine[@]}" serve disk "$image"
	"${mine[@]}" stop disk
	"${mine[@]}" stop other
}

slow_servers
images_that_are_none
targets_that_are_none
the_same_image
locked_images
no_space
servers_that_refuse
disks_and_jobs
unwritable
two_states
slow_servers_end
