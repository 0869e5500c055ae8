# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of the relay: a guest that writes records, in a QEMU, and the way of its RAM to
# another one. $GUEST is where the kernel is kept (BUILD/guest).
# shellcheck disable=SC2034
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

relay=$BUILD/fixtures/ramrelay records=$BUILD/fixtures/records cache=${GUEST:-$BUILD/guest}
links=3 silence=30000 image=$dir/disk.img
have qemu-system-x86_64 busybox jq socat || { skip "RAM through the relay" "QEMU, busybox, jq, socat"; exit; }
if ! fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1; then
	skip "RAM through the relay" "no kernel: $(tail -n 1 "$dir/out")"
	exit
fi

# machine NAME ARGUMENT…: a QEMU; its console is $dir/NAME.console, its process $pid. On a host that is
# busy its timer looks broken to Linux, which then stops (no_timer_check).
machine() {
	local name=$1
	shift
	mkfifo "$dir/$name.keyboard"
	exec {keys}<>"$dir/$name.keyboard"
	: >"$dir/$name.console"
	# shellcheck disable=SC2016
	spawn bash -c 'exec "$@" <"$0"' "$dir/$name.keyboard" \
		qemu-system-x86_64 -machine pc,accel=tcg -cpu max -smp 1 -m 131080k -nodefaults -no-reboot \
		-display none -kernel "$cache/vmlinuz" -initrd "$cache/initrd.gz" \
		-append "console=ttyS0 quiet panic=-1 no_timer_check load=4096" \
		-chardev "stdio,id=console,signal=off,logfile=$dir/$name.console,logappend=on" \
		-serial chardev:console -qmp "unix:$dir/$name.qmp,server=on,wait=off" \
		-blockdev "driver=file,node-name=f0,filename=$image" \
		-blockdev driver=raw,node-name=disk0,file=f0 -device virtio-blk-pci,drive=disk0 "$@"
	wait_for 60 test -S "$dir/$name.qmp"
}
monitor() { # NAME COMMAND [ARGUMENTS]
	local name=$1
	shift
	tests/system/qmp.py "$dir/$name.qmp" "$@"
}
return_path='{"capability":"return-path","state":true}'
# A target that is not told to go on must not take the image: the source may have to go on.
late="{\"capabilities\":[$return_path,{\"capability\":\"late-block-activate\",\"state\":true}]}"
status_is() { [ "$(monitor "$1" query-status | jq -r .status)" = "$2" ]; }
migration_is() { [ "$(monitor "$1" query-migrate | jq -r .status)" = "$2" ]; }
ticks() { grep -c ^TICK "$dir/$1.console"; }
ticked() { [ "$(ticks "$1")" -ge "$2" ]; }
goes_on() { wait_for 60 ticked "$1" $(($(ticks "$1") + 10)); }
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
	for p in ${ports//,/ }; do wait_for 60 listens "$p" || return; done
}
listens() { grep -q " 0100007F:$(printf %04X "$1") 00000000:0000 0A " /proc/net/tcp; }

# path FROM TO: machine TO is started and waits; everything between both, too. The sender's keyboard is descriptor 8.
path() {
	local from=$1 to=$2
	rm -f "$dir"/*.sock "$dir/gate"
	machine "$to" -S -incoming defer
	target=$pid
	monitor "$to" migrate-set-capabilities "$late" >/dev/null &&
		monitor "$to" migrate-incoming "{\"uri\":\"unix:$dir/in.sock\"}" >/dev/null || return
	door=$(free_port)
	log=$dir/in.tee spawn tests/ram/tee.py "$dir/in.tee.sock" "$dir/in.sock"
	wait_for 60 test -S "$dir/in.tee.sock" || return
	: >"$dir/$to.log"
	log=$dir/$to.log spawn "$relay" receive --listen "$door" --links $links --qemu "$dir/in.tee.sock" \
		--silence "$silence"
	receiver=$pid
	wait_for 60 says "$to" listening && ways || return
	mkfifo "$dir/gate"
	exec 8<>"$dir/gate"
	: >"$dir/$from.log"
	# shellcheck disable=SC2016
	log=$dir/$from.log spawn bash -c 'exec "$@" <"$0"' "$dir/gate" \
		"$relay" send --listen "$dir/out.sock" --links $links --to "$ports" --hold \
		--silence "$silence"
	sender=$pid
	wait_for 60 says "$from" listening || return
	log=$dir/out.tee spawn tests/ram/tee.py "$dir/out.tee.sock" "$dir/out.sock"
	wait_for 60 test -S "$dir/out.tee.sock"
}
migrate() { # NAME BANDWIDTH
	monitor "$1" migrate-set-capabilities "{\"capabilities\":[$return_path]}" &&
		monitor "$1" migrate-set-parameters "{\"max-bandwidth\":$2,\"downtime-limit\":300}" &&
		monitor "$1" migrate "{\"uri\":\"unix:$dir/out.tee.sock\"}"
}
ended() { wait_for 60 lib_gone "$1" && lib_forget "$1"; }
halves() { ended "$sender" && ended "$receiver"; }
# The other two ends of what is left.
clear_path() {
	kill9 "$target"
	stop "${forwarders[@]}"
}

# fails NAME FROM TO PATTERN: what has to be seen when the way from FROM to TO ends early.
fails() {
	check "$1: the sender says why" wait_for 60 says "$2" "^failed.*$4"
	check "$1: the guest runs" wait_for 20 status_is "$2" running
	check "$1: and goes on" goes_on "$2"
	check "$1: both relays have ended" halves
	check "$1: the target's QEMU has no machine" no_machine "$3"
	clear_path
}
no_machine() { ! grep ^TICK "$dir/$1.console" && { lib_gone "$target" || ! status_is "$1" running; }; }
under_way() { [ "$(monitor "$1" query-migrate | jq '.ram.transferred // 0')" -gt 8000000 ]; }

