#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What a user names is what is meant: paths and sockets begin in the caller's folder, whatever
# letters they have; what is printed can be used as it is; the disk's own image is known in all its
# guises; a disk's process keeps nothing of its caller's.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have qemu-nbd qemu-io qemu-storage-daemon nbdinfo nbdcopy jq xmllint flock ||
	{ skip "whereabouts" "qemu-utils, qemu-system, libnbd-bin, jq, libxml2-utils, util-linux"; exit; }
size=$((4 * M))
home=$dir/home away=$dir/away
mkdir "$home" "$away"

# new_image PATH [MIB]: noise.
new_image() { head -c "${2:-4}M" /dev/urandom >"$1"; }

# from FOLDER COMMAND…: there. Functions, too.
from() {
	local back=$PWD status
	cd "$1" || return
	"${@:2}"
	status=$?
	cd "$back" || return
	return $status
}

disk_is_on() { [ "$(show "$1" .uri)" = "$2" ] || { show "$1" .uri; return 1; }; }

# moves_to NAME FOLDER TARGET FILE [OPTION…]: from there; the disk is on FILE then, and is $noise.
moves_to() {
	lib_run moved "${@:2}"
	result $? "$1" "$dir/out"
}
moved() {
	local folder=$1 target=$2 file=$3
	env -C "$folder" "$bm" relocate disk "$target" "${@:4}" && disk_is_on disk "$file" &&
		serves disk "$noise" $size
}

relative_targets() {
	local name
	noise=$dir/noise
	new_image "$home/disk.img"
	cp "$home/disk.img" "$noise"
	mkdir "$home/there" "$away/there" "$away/x:y"
	check "a relative image is served" from "$home" serve disk disk.img
	check "it is the caller's" disk_is_on disk "$home/disk.img"
	moves_to "to a folder, without a slash" "$away" there "$away/there/disk.img"
	check "the folder of that name where serve was run stays empty" test -z "$(ls "$home/there")"
	moves_to "to a folder, with a slash" "$home" there/ "$home/there/disk.img"
	moves_to "to a new file" "$away" there/new.img "$away/there/new.img"
	moves_to "to the folder where one is" "$home" . "$home/new.img"
	moves_to "to the one above" "$away/there" .. "$away/new.img"
	moves_to "to a folder with a colon" "$away" ./x:y "$away/x:y/new.img"
	moves_to "to file: and a relative path" "$home" file:over.img "$home/over.img"
	find "$dir" -name '*.img' | sort >"$dir/before"
	for name in no/ no/such.img ./no/such/; do
		check_fails "to $name in a folder that is not there: refused" 4 "E_NOT_FOUND: .*$away/" \
			env -C "$away" "$bm" relocate disk "$name"
	done
	check_fails "the image of serve in a folder that is not there: refused" 4 \
		"E_NOT_FOUND: .*$away/no/x.img" env -C "$away" "$bm" serve new no/x.img
	check "nothing was made" cmp <(find "$dir" -name '*.img' | sort) "$dir/before"
	check "the disk is where it was" disk_is_on disk "$home/over.img"
	check "it is stopped" unserve disk
	check "and served by the same image, named from elsewhere" \
		from "$away" serve disk ../home/./over.img
	check "it is stopped again" unserve disk
}

relative_sockets() {
	local odd="$dir/o d,%41&" name
	mkdir "$odd"
	new_image "$dir/far.img"
	noise=$dir/far.img
	truncate -s $size "$dir/far2.img" "$dir/far3.img"
	start_qemu_nbd "$home/far.sock" "$dir/far.img"
	start_qemu_nbd "$odd/far.sock" "$dir/far2.img"
	start_qemu_nbd "$away/far.sock" "$dir/far3.img"
	check "serve: a relative socket" from "$home" serve disk2 'nbd+unix:///?socket=far.sock'
	check "it is the caller's" disk_is_on disk2 "nbd+unix:///?socket=$home/far.sock"
	check "it is stopped" unserve disk2
	check "and served from another folder" from "$away" serve disk2
	check "with what is there" serves disk2 "$noise" $size
	check "relocate: a relative socket, in a folder of odd letters" \
		env -C "$odd" "$bm" relocate disk2 'nbd+unix:///?socket=./far.sock' --overwrite
	check "the data is there" serves disk2 "$dir/far2.img" $size
	check "which is the same as before" cmp "$noise" "$dir/far2.img"
	check "it is stopped there" unserve disk2
	check "and served from another folder, with the socket named again" \
		from "$odd" serve disk2 'nbd+unix:///?socket=./far.sock'
	check "relocate: a relative socket that begins with an escape" \
		env -C "$away" "$bm" relocate disk2 'nbd+unix:///?socket=%66ar.sock' --overwrite
	check "the data is there, too" cmp "$noise" "$dir/far3.img"
	check "it is stopped in the end" unserve disk2
}

# Served, moved into a folder of such a name, copied, compared, and served again.
lives_with() {
	local name=$1
	rm -rf "$dir/odd" "$BLOCKMIRROR_STATE_DIR/disks/odd"
	mkdir -p "$dir/odd/to/$name"
	new_image "$dir/odd/$name" 1
	cp "$dir/odd/$name" "$noise"
	from "$dir/odd" serve odd "./$name" &&
		env -C "$dir/odd" "$bm" relocate odd "to/$name" &&
		disk_is_on odd "$dir/odd/to/$name/$name" &&
		unserve odd && marked "$dir/odd/$name" retired &&
		env -C "$dir/odd" "$bm" copy "./$name" "to/$name/2 $name" &&
		env -C "$dir/odd/to" "$bm" verify "./$name/2 $name" "./$name/$name" &&
		from "$dir/odd/to/$name" serve odd "./$name" &&
		serves odd "$noise" "$M" && unserve odd
}

odd_names() {
	local name
	for name in "a b,c" "100%41%2Fb" "a:b" "a'b\"c" $'\xc3\xa9\xe2\x82\xac' "a?b=c&d;e#f" "-a" \
		"\$a*\\b"; do
		check "the name $name" lives_with "$name"
	done
	check_fails "a colon without ./ is a scheme" 2 E_URI env -C "$dir" "$bm" serve new a:b.img
}

# one_line COMMAND…: fails, with one line of error.
one_line() {
	"$@" >"$dir/stdout" 2>"$dir/stderr" && return 1
	cat "$dir/stdout" "$dir/stderr"
	[ ! -s "$dir/stdout" ] && [ "$(wc -l <"$dir/stderr")" -eq 1 ]
}

names_that_are_none() {
	local bad=$dir/$'b\xff.img' line=$dir/$'a\nb.img' name
	new_image "$dir/plain.img"
	serve disk
	for name in "$bad" $'file:b\xff.img' $'nbd+unix:///?socket=/b\xff'; do
		new_image "$bad"
		check_fails "not UTF-8: serve" 2 E_USAGE "$bm" serve new "$name"
		check "no record is left" test ! -e "$BLOCKMIRROR_STATE_DIR/disks/new"
		check_fails "not UTF-8: relocate" 2 E_USAGE "$bm" relocate disk "$name" --overwrite
		rm "$bad"
		check_fails "not UTF-8: serve --create" 2 . "$bm" serve new "$name" --create 4M
		check_fails "not UTF-8: copy to it" 2 E_USAGE "$bm" copy "$dir/plain.img" "$name"
		check "nothing is made" test ! -e "$bad"
		check_fails "not UTF-8: copy a disk to it" 2 E_USAGE "$bm" copy disk "$name"
		check_fails "not UTF-8: copy it" 2 E_USAGE "$bm" copy "$name" "$dir/no.img"
		check_fails "not UTF-8: verify" 2 E_USAGE "$bm" verify "$dir/plain.img" "$name"
	done
	for name in "serve new" "relocate disk" "copy disk" "copy $dir/plain.img" "verify $dir/plain.img"; do
		# shellcheck disable=SC2086 # words
		check "a newline gives one line of error: ${name%% *}" \
			one_line "$bm" $name "$dir/no"$'\n'"such/$(basename "$line")"
	done
	new_image "$line"
	check "the same of one that exists" one_line "$bm" relocate disk "$line"
	check_fails "memory is no image of a disk" 3 E_UNSUPPORTED "$bm" serve new mem:4M
	check "no record of it is left" test ! -e "$BLOCKMIRROR_STATE_DIR/disks/new"
	check_fails "memory is no target" 3 E_UNSUPPORTED "$bm" relocate disk mem:4M --overwrite
	check "the disk is where it was" disk_is_on disk "$home/over.img"
}

printed_lines() {
	local -x BLOCKMIRROR_RUN_DIR="$dir/r n,%41&<'"
	local line socket
	new_image "$dir/print.img"
	"$bm" serve print "$dir/print.img" >"$dir/said" 2>&1
	lib_pids+=("$(show print .pid)")
	line=$(sed -n 's/^QEMU: *-blockdev //p' "$dir/said")
	spawn qemu-storage-daemon --blockdev "$line" --nbd-server "addr.type=unix,addr.path=$dir/qsd.sock" \
		--export nbd,id=e,name=e,node-name=print
	wait_for 10 lib_listens "$dir/qsd.sock" "$pid"
	check "QEMU takes the printed line" \
		cmp <(nbdcopy "$(nbd_uri "$dir/qsd.sock" e)" -) "$dir/print.img"
	stop "$pid"
	line=$(sed -n 's/^disk print is served at //p' "$dir/said")
	check "the printed URI works" cmp <(nbdcopy "$line" -) "$dir/print.img"
	socket=$(sed -n 's/^libvirt: *//p' "$dir/said" | xmllint --xpath 'string(//host/@socket)' -)
	check "libvirt's line is XML and names the socket: $socket" test -S "$socket"
	check "the printed hint works" hinted
	unserve print
}

# What relocate says about how to go on, given to a shell.
hinted() {
	local run=$BLOCKMIRROR_RUN_DIR hint
	hint=$(env -u BLOCKMIRROR_RUN_DIR "$bm" --run-dir "$run" relocate print "$dir/print2.img" \
		--switch manual | sed -n "s/.*in sync; '\(.*\)' switches over/\1/p")
	echo "$hint"
	(unset BLOCKMIRROR_RUN_DIR && PATH=$BUILD:$PATH && eval "$hint") || return
	disk_is_on print "$dir/print2.img"
}

# loop FILE: a loop device over it, $loop.
loop() {
	loop=$(losetup -f --show "$1" 2>"$dir/out") && on_exit "losetup -d $loop"
}

own_image() {
	local own same
	own=$(disk_socket disk)
	ln -s "$own" "$dir/shortcut.sock"
	for same in "?socket=$dir/shortcut.sock" "?a=b;socket=$own" "?a=b&socket=$own" \
		"?socket=${own//\//%2F}" "?socket=./${own##*/}" "?socket=${own##*/}"; do
		check_fails "the disk's own export: $same" 3 E_SAME \
			env -C "${own%/*}" "$bm" relocate disk "nbd+unix:///disk$same" --overwrite
	done
	loop "$home/over.img" || { skip "loop devices" "$(head -n 1 "$dir/out")"; return; }
	same=$loop
	check_fails "a loop device over the disk's image" 3 E_SAME \
		"$bm" relocate disk "$loop" --overwrite
	check "the disk is where it was" disk_is_on disk "$home/over.img"
	unserve disk
	new_image "$dir/under.img"
	loop "$dir/under.img"
	same=$loop
	loop "$dir/under.img"
	serve looped "$same"
	check_fails "the file under the disk's loop device" 3 E_SAME \
		"$bm" relocate looped "$dir/under.img" --overwrite
	check_fails "another loop device over that file" 3 E_SAME \
		"$bm" relocate looped "$loop" --overwrite
	check "the disk is on its device" disk_is_on looped "$same"
	unserve looped
}

inheritance() {
	new_image "$dir/alone.img"
	exec 9>"$dir/lock"
	flock 9
	mkdir "$dir/going"
	check "serve, with a lock held" from "$dir/going" serve alone "$dir/alone.img"
	exec 9>&-
	check "the lock is free when its holder has let go" flock -n "$dir/lock" true
	check "the disk's process is in /" test "$(readlink "/proc/$disk_pid/cwd")" = /
	check "and in a session of its own" test "$(ps -o sid= -p "$disk_pid" | tr -d ' ')" = "$disk_pid"
	unserve alone
}

relative_targets
relative_sockets
odd_names
names_that_are_none
own_image
printed_lines
inheritance
