#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The RAM of a running Linux guest goes from one QEMU to another one through sender, connections and
# receiver: byte for byte, in fewer bytes; and when a connection dies, or says nothing more, or the move is
# dropped at its last step, the guest goes on where it was. $GUEST is where the kernel is kept
# (BUILD/guest).
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

relay=$BUILD/fixtures/ramrelay records=$BUILD/fixtures/records cache=${GUEST:-$BUILD/guest}
links=3 image=$dir/disk.img
have qemu-system-x86_64 busybox jq socat || { skip "RAM through the relay" "QEMU, busybox, jq, socat"; exit; }
if ! fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1; then
	skip "RAM through the relay" "no kernel: $(tail -n 1 "$dir/out")"
	exit
fi

# machine NAME ARGUMENT…: a QEMU; its console is $dir/NAME.console, its process $pid.
machine() {
	local name=$1
	shift
	mkfifo "$dir/$name.keyboard"
	exec {keys}<>"$dir/$name.keyboard"
	: >"$dir/$name.console"
	# shellcheck disable=SC2016
	spawn bash -c 'exec "$@" <"$0"' "$dir/$name.keyboard" \
		qemu-system-x86_64 -machine pc,accel=tcg -cpu max -smp 1 -m 160 -nodefaults -no-reboot \
		-display none -kernel "$cache/vmlinuz" -initrd "$cache/initrd.gz" \
		-append "console=ttyS0 quiet panic=-1 load=4096" \
		-chardev "stdio,id=console,signal=off,logfile=$dir/$name.console,logappend=on" \
		-serial chardev:console -qmp "unix:$dir/$name.qmp,server=on,wait=off" \
		-blockdev "driver=file,node-name=f0,filename=$image" \
		-blockdev driver=raw,node-name=disk0,file=f0 -device virtio-blk-pci,drive=disk0 "$@"
	wait_for 20 test -S "$dir/$name.qmp"
}
monitor() { # NAME COMMAND [ARGUMENTS]
	local name=$1
	shift
	tests/system/qmp.py "$dir/$name.qmp" "$@"
}
return_path='{"capabilities":[{"capability":"return-path","state":true}]}'
status_is() { [ "$(monitor "$1" query-status | jq -r .status)" = "$2" ]; }
migration_is() { [ "$(monitor "$1" query-migrate | jq -r .status)" = "$2" ]; }
ticks() { grep -c ^TICK "$dir/$1.console"; }
ticked() { [ "$(ticks "$1")" -ge "$2" ]; }
goes_on() { wait_for 30 ticked "$1" $(($(ticks "$1") + 20)); }
says() { grep -q "$2" "$dir/$1.log"; }

# ways: as many ports that lead to the receiver's, in $ports; their processes in $forwarders.
ways() {
	local i p
	ports='' forwarders=()
	for ((i = 0; i < links; i++)); do
		p=$(free_port)
		spawn socat "TCP-LISTEN:$p,bind=127.0.0.1,reuseaddr" "TCP:127.0.0.1:$door"
		forwarders+=("$pid")
		ports=$ports${ports:+,}$p
	done
	for p in ${ports//,/ }; do wait_for 10 listens "$p" || return; done
}
listens() { grep -q " 0100007F:$(printf %04X "$1") 00000000:0000 0A " /proc/net/tcp; }

# path FROM TO [OPTION…]: machine TO is started and waits; everything between both, too. The sender's
# keyboard is descriptor 8.
path() {
	local from=$1 to=$2
	shift 2
	rm -f "$dir"/*.sock "$dir/gate"
	machine "$to" -S -incoming defer
	target=$pid
	monitor "$to" migrate-set-capabilities "$return_path" >/dev/null &&
		monitor "$to" migrate-incoming "{\"uri\":\"unix:$dir/in.sock\"}" >/dev/null || return
	door=$(free_port)
	log=$dir/in.tee spawn tests/ram/tee.py "$dir/in.tee.sock" "$dir/in.sock"
	wait_for 10 test -S "$dir/in.tee.sock" || return
	: >"$dir/$to.log"
	log=$dir/$to.log spawn "$relay" receive --listen "$door" --links $links --qemu "$dir/in.tee.sock"
	receiver=$pid
	wait_for 10 says "$to" listening && ways || return
	mkfifo "$dir/gate"
	exec 8<>"$dir/gate"
	: >"$dir/$from.log"
	# shellcheck disable=SC2016
	log=$dir/$from.log spawn bash -c 'exec "$@" <"$0"' "$dir/gate" \
		"$relay" send --listen "$dir/out.sock" --links $links --to "$ports" --hold "$@"
	sender=$pid
	wait_for 10 says "$from" listening || return
	log=$dir/out.tee spawn tests/ram/tee.py "$dir/out.tee.sock" "$dir/out.sock"
	wait_for 10 test -S "$dir/out.tee.sock"
}
migrate() { # NAME BANDWIDTH
	monitor "$1" migrate-set-capabilities "$return_path" &&
		monitor "$1" migrate-set-parameters "{\"max-bandwidth\":$2,\"downtime-limit\":300}" &&
		monitor "$1" migrate "{\"uri\":\"unix:$dir/out.tee.sock\"}"
}
ended() { wait_for 20 lib_gone "$1" && lib_forget "$1"; }
halves() { ended "$sender" && ended "$receiver"; }
# The other two ends of what is left.
clear_path() {
	kill9 "$target"
	stop "${forwarders[@]}"
}

truncate -s 64M "$image"
check "a guest runs" machine a
check "it writes records" wait_for 60 ticked a 50

# A move
check "there is a path to another QEMU" path a b
check "it migrates" migrate a 1000000000
check "the target has all, the source waits" wait_for 120 says a ^held
check "the target's QEMU says so, too" wait_for 5 migration_is b completed
status_is a postmigrate
[ $? -ne 0 ]
result $? "the source's has not ended its migration"
printf o >&8
check "with the gate open it ends" wait_for 10 status_is a postmigrate
check "both relays end" halves
check "and are content" grep -c ^done "$dir/a.log" "$dir/b.log"
check "the guest goes on at the target" monitor b cont
check "it writes records there" goes_on b
same_stream() {
	wait_for 5 grep -q ^out "$dir/in.tee" && grep -h ^out "$dir/out.tee" "$dir/in.tee"
	[ "$(grep -h ^out "$dir/out.tee" "$dir/in.tee" | sort -u | wc -l)" -eq 1 ]
}
check "what came out is what went in, byte for byte" same_stream
sed 's/^/# /' "$dir/out"
tail -n 1 "$dir/a.log" | jq -r '"# \(.stream) bytes of stream, \(.wire) on the wire (\(.wire * 100 / .stream | floor) %); \(.batches) batches, \(.compressed) compressed; pages: \(.fills) fills, \(.copies) copies, \(.deltas) deltas, \(.raw) raw"'
check "the stream was looked at to its device state" json_is "$dir/a.log" '.why == "device state" and .sections > 2'
check "with fewer bytes" json_is "$dir/a.log" '.wire < .stream * 0.95 and .copies > 100'
cat "$dir/a.console" "$dir/b.console" >"$dir/console"
clear_source() { monitor a quit; ended "$1"; }
monitor a quit >/dev/null

# What fails. The guest is in b.
fails() { # NAME TARGET PATTERN
	check "$1: the sender says why" wait_for 10 says b "^failed.*$3"
	check "$1: the guest runs" wait_for 2 status_is b running
	check "$1: and goes on" goes_on b
	check "$1: both relays have ended" halves
	check "$1: the target's QEMU has no machine" no_machine "$2"
	clear_path
}
no_machine() { ! grep ^TICK "$dir/$1.console" && { lib_gone "$target" || ! status_is "$1" running; }; }
under_way() { [ "$(monitor b query-migrate | jq .ram.transferred)" -gt 8000000 ]; }

path b c
migrate b 16000000 >/dev/null
wait_for 20 under_way
kill9 "${forwarders[1]}"
fails "a connection is lost" c 'E_UNREACHABLE.*connection'

path b d
migrate b 16000000 >/dev/null
wait_for 20 under_way
kill -STOP "${forwarders[2]}"
fails "a connection is silent" d 'E_UNREACHABLE: connection [0-9]: the other host has said nothing'

path b e
migrate b 1000000000 >/dev/null
check "a rehearsal: all is loaded" wait_for 120 says b ^held
printf d >&8
check "dropped: the guest runs" wait_for 2 status_is b running
check "dropped: and goes on" goes_on b
clear_path

echo stop >&"$keys" # the last machine's, which is gone
monitor b quit >/dev/null
cat "$dir/b.console" >>"$dir/console"
check "no record was lost" "$records" check "$image" "$dir/console"
