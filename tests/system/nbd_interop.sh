#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Real clients and our server, real servers and our client: that they agree on the contents, on
# where data is, and on errors. dev_nbd.sh has more of what our client makes of odd servers,
# nbd_server.sh more of what our server makes of its clients.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=tls.bash
. "$(dirname "$0")/tls.bash"
have qemu-img qemu-io qemu-storage-daemon qemu-nbd nbdkit nbdcopy nbdinfo fio jq ||
	{ skip "NBD clients and servers" "QEMU's, libnbd's, nbdkit, fio, jq"; exit; }

M=$((1 << 20)) size=$((16 << 20))
devcheck=$BUILD/fixtures/devcheck source=$dir/source.img image=$dir/image.img
# Data, then a hole, then zeros and data in turn.
truncate -s $size "$source"
dd if=/dev/urandom of="$source" bs=1M count=5 conv=notrunc status=none
for at in 9 11 13; do dd if=/dev/urandom of="$source" bs=1M seek=$at count=1 conv=notrunc status=none; done

# fresh: an empty image, $image.
fresh() {
	rm -f "$image"
	truncate -s $size "$image"
}

# serve ARGUMENT…: our server; its URI is $uri.
serve() {
	rm -f "$dir/ready"
	log=$dir/ready spawn "$BUILD/blockmirror-nbd" "$@"
	server=$pid
	wait_for 10 grep -q ^ready "$dir/ready" || { not_ok "blockmirror-nbd $*" "$dir/ready"; return 1; }
	uri=$(sed -n 's/^ready //p' "$dir/ready")
}

nbdsh() { /usr/bin/python3 -c "import nbd, sys; h = nbd.NBD(); $1" "$uri"; }

# Clients of our server

maps_alike() { # that of the image, where zeros that are stored are data, is that of the source
	diff <(qemu-img map -f raw --output=json "$source" | jq -c 'map(select(.data) | [.start, .length])') \
		<("$@" | jq -c '[.[] | select(.data) | [.start, .length]]')
}

nbdinfo_map() { nbdinfo --map --json "$uri" | jq 'map({start: .offset, length, data: (.type == 0)})'; }

fio_verifies() { # CONNECTIONS
	printf '%s\n' "[job]" ioengine=nbd "uri=$uri" rw=randwrite bsrange=512-64k bs_unaligned=1 \
		size=$((8 * M / $1)) offset_increment=$((2 * M)) numjobs="$1" thread=1 iodepth=16 \
		verify=crc32c verify_fatal=1 randseed=1 >"$dir/job.fio"
	timeout 60 fio --aux-path="$dir" "$dir/job.fio"
}

io() { # qemu-io ends with 0 whatever it has read
	qemu-io -f raw "$@" "$uri" >"$dir/io" 2>&1 && ! grep -iE 'fail|error' "$dir/io"
}

libnbd_program="h.connect_uri(sys.argv[1])
assert h.get_size() == $size and h.can_multi_conn() and h.can_fua()
h.pwrite(b'\1' * 1025, 511, nbd.CMD_FLAG_FUA)
assert h.pread(1026, 511) == b'\1' * 1025 + h.pread(1, 1536)
h.zero(512, 1024)
h.trim(4096, 4096)
h.cache(4096, 0)
h.flush()
assert h.pread(512, 1024) == bytes(512)
h.shutdown()"

# clients NAME: of the server at $uri, whose image is $image.
clients() {
	check "$1: nbdinfo" test "$(nbdinfo --size "$uri")" = $size
	check "$1: nbdcopy there" nbdcopy "$source" "$uri"
	check "$1: nbdcopy and back" nbdcopy "$uri" "$dir/copy.img"
	check "$1: nothing has changed" cmp "$source" "$dir/copy.img"
	check "$1: nbdinfo sees where data is" maps_alike nbdinfo_map
	check "$1: qemu-img map, too" maps_alike qemu-img map -f raw --output=json "$uri"
	check "$1: qemu-img compare" qemu-img compare -f raw -F raw "$source" "$uri"
	check "$1: qemu-io" io -c "write -P 7 1M 3M" -c "read -P 7 1M 3M" -c "write -z -u 2M 1M" \
		-c "read -P 0 2M 1M" -c "discard 4M 1M" -c "write -f -P 9 511 1025" -c flush \
		-c "read -P 9 511 1025" -c "aio_write -P 3 8M 4M" -c "aio_read 12M 4M" -c aio_flush \
		-c "read -P 3 8M 4M"
	check "$1: libnbd" nbdsh "$libnbd_program"
	check "$1: fio verifies, one connection" fio_verifies 1
	check "$1: fio verifies, 8 connections" fio_verifies 8
	check "$1: qemu-img convert there" qemu-img convert -n -f raw -O raw "$source" "$uri"
	check "$1: qemu-img convert and back" qemu-img convert -f raw -O raw "$uri" "$dir/copy.img"
	check "$1: nothing has changed" cmp "$source" "$dir/copy.img"
	check "$1: our own client" "$devcheck" "$uri" 1
}

# QEMU's blockdev-mirror, whose target our server is, while the disk is written to.

qmp() { echo "$1" >&8; }
told() { wait_for 30 grep -q "$1" "$dir/qmp"; }
mirrors() { # ADDRESS: of our server, as QAPI has it
	qmp '{"execute": "qmp_capabilities"}'
	qmp '{"execute": "blockdev-add", "arguments": {"driver": "nbd", "node-name": "target",
		"server": '"$1"', "discard": "unmap"}}'
	qmp '{"execute": "blockdev-mirror", "arguments": {"job-id": "job", "device": "source",
		"target": "target", "sync": "full", "copy-mode": "write-blocking"}}'
	told BLOCK_JOB_READY || return
	sleep 0.5
	qmp '{"execute": "job-complete", "arguments": {"id": "job"}}'
	told BLOCK_JOB_COMPLETED || return
	sleep 0.3 # now it is on our server
	! grep '"error"' "$dir/qmp"
}

# mirror NAME ADDRESS [OBJECT]: of QEMU's, for TLS
mirror() {
	local load disk=$dir/qsd.sock qsd
	cp "$source" "$dir/disk.img"
	rm -f "$dir/qmp" "$dir/commands" "$disk" "$dir/state"
	mkfifo "$dir/commands"
	exec 8<>"$dir/commands"
	# shellcheck disable=SC2016
	log=$dir/qmp spawn bash -c 'exec "$@" <"$0"' "$dir/commands" qemu-storage-daemon \
		--chardev stdio,id=qmp --monitor chardev=qmp ${3:+--object "$3"} \
		--blockdev "driver=file,node-name=file,filename=$dir/disk.img" \
		--blockdev driver=raw,node-name=source,file=file \
		--nbd-server "addr.type=unix,addr.path=$disk" \
		--export type=nbd,id=disk,node-name=source,name=disk,writable=on
	qsd=$pid
	check "$1: qemu-storage-daemon begins" wait_for 10 lib_listens "$disk" "$qsd"
	log=$dir/load spawn "$hammer" --time 0 --depth 4 --sizes 512:64K --range 5M:11M --initial any \
		--state "$dir/state" "$(nbd_uri "$disk" disk)"
	load=$pid
	check "$1: its blockdev-mirror, under load" mirrors "$2"
	kill -TERM "$load"
	wait "$load"
	result $? "$1: who writes notices nothing" "$dir/load"
	lib_forget "$load"
	stop "$qsd"
	exec 8>&-
	check "$1: all that was written is here" "$hammer" --check "$dir/state" "$uri"
	check "$1: and what was not" cmp -n $((5 * M)) "$source" "$image"
}

# fio's own client has no TLS: nbdkit's has. ARGUMENT…: where to, and whom to trust.
fio_verifies_by_nbdkit() {
	local uri status
	start_nbdkit "$dir/kit.sock" nbd "$@" || return
	fio_verifies 1
	status=$?
	stop "$pid"
	return $status
}

# secure NAME OBJECT SERVER ADDRESS ARGUMENT…: the clients of the server at $uri, which says whom to
# trust; for QEMU's the credentials, and the address as an option and as QAPI has it; for nbdkit's the
# arguments.
secure() {
	check "$1: nbdcopy there" nbdcopy "$source" "$uri"
	check "$1: nbdinfo sees where data is" maps_alike nbdinfo_map
	check "$1: qemu-img compare" qemu-img compare --object "$2" --image-opts \
		"driver=raw,file.filename=$source" "driver=nbd,tls-creds=t,$3"
	qemu-io --object "$2" --image-opts "driver=nbd,tls-creds=t,$3" -c "write -P 7 1M 3M" \
		-c "read -P 7 1M 3M" -c "write -z 2M 1M" -c "read -P 0 2M 1M" -c "write -f -P 9 512 1024" \
		-c "read -P 9 512 1024" -c flush >"$dir/io" 2>&1 && ! grep -iE 'fail|error' "$dir/io"
	result $? "$1: qemu-io" "$dir/io"
	check "$1: libnbd" nbdsh "${libnbd_program/h.connect_uri/h.set_uri_allow_local_file(True); h.connect_uri}"
	check "$1: fio verifies" fio_verifies_by_nbdkit tls=require "${@:5}"
	check "$1: our own client" "$devcheck" "$uri" 1
	check "$1: nbdcopy there, again" nbdcopy "$source" "$uri"
	mirror "$1" "$4, \"tls-creds\": \"t\"" "$2"
}

tls_rows() {
	have certtool psktool || { skip "TLS" "gnutls-bin"; return; }
	make_authority "$dir/pki"
	certify "$dir/pki" server "$dir/pki" cn=server dns_name=localhost ip_address=127.0.0.1 tls_www_server
	mkdir "$dir/trust" "$dir/psk"
	cp "$dir/pki/ca-cert.pem" "$dir/trust"
	make_keys "$dir/psk/keys.psk" friend
	fresh
	serve --listen 127.0.0.1:0 --tls-certificates "$dir/pki" "$image"
	port=${uri#nbds://127.0.0.1:} port=${port%%/*}
	uri="$uri?tls-certificates=$dir/trust"
	secure X.509 "tls-creds-x509,id=t,endpoint=client,verify-peer=yes,dir=$dir/trust" \
		"server.type=inet,server.host=127.0.0.1,server.port=$port" \
		'{"type": "inet", "host": "127.0.0.1", "port": "'"$port"'"}' \
		hostname=127.0.0.1 "port=$port" "tls-certificates=$dir/trust"
	stop "$server"
	fresh
	serve --unix "$dir/unix.sock" --tls-psk "$dir/psk/keys.psk" "$image"
	uri="$uri&tls-psk-file=$dir/psk/keys.psk"
	uri=${uri/:\/\/\//:\/\/friend@\/}
	secure PSK "tls-creds-psk,id=t,endpoint=client,dir=$dir/psk,username=friend" \
		"server.type=unix,server.path=$dir/unix.sock" \
		'{"type": "unix", "path": "'"$dir/unix.sock"'"}' \
		"socket=$dir/unix.sock" tls-username=friend "tls-psk=$dir/psk/keys.psk"
	stop "$server"
}

# A guest's disk. It boots in its own time, while the rest goes on.

boot_guest() {
	local cache=${GUEST:-$BUILD/guest}
	guest=''
	if ! have qemu-system-x86_64 busybox || ! fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1; then
		skip "a guest's disk" "no QEMU, busybox, or kernel"
		return
	fi
	truncate -s 64M "$dir/guest.img"
	start_blockmirror_nbd "$dir/guest.sock" "$dir/guest.img"
	mkfifo "$dir/keyboard"
	exec 7<>"$dir/keyboard"
	# shellcheck disable=SC2016
	spawn bash -c 'exec "$@" <"$0"' "$dir/keyboard" \
		fixtures/guest/run.sh "$cache" "$dir/guest.sock" "" "$dir/console"
	guest=$pid
}

ticked() { [ "$(grep -c ^TICK "$dir/console")" -ge 200 ]; }
end_guest() {
	[ -n "$guest" ] || return
	check "a guest writes to its disk" wait_for 120 ticked
	echo stop >&7
	check "and ends" wait_for 60 lib_gone "$guest"
	check "all it wrote is there" "$BUILD/fixtures/records" check "$dir/guest.img" "$dir/console"
}

boot_guest

fresh
serve --unix "$dir/unix.sock" "$image"
clients unix
mirror unix '{"type": "unix", "path": "'"$dir/unix.sock"'"}'
stop "$server"

fresh
serve --listen 127.0.0.1:0 "$image"
port=${uri#nbd://127.0.0.1:} port=${port%%/*}
clients TCP
mirror TCP '{"type": "inet", "host": "127.0.0.1", "port": "'"$port"'"}'
stop "$server"
if have nbd-client; then
	serve --listen 127.0.0.1:0 --export-name "a disk" mem:1M
	port=${uri#nbd://127.0.0.1:} port=${port%%/*}
	nbd-client -l 127.0.0.1 "$port" >"$dir/out" 2>&1 && grep -qx "a disk" "$dir/out"
	result $? "TCP: nbd-client lists the exports" "$dir/out"
	stop "$server"
else
	skip "TCP: nbd-client lists the exports" "no nbd-client"
fi

tls_rows

# Servers of our client: a second of everything that it can ask for, compared with a model.

listens_on() { lib_gone "$pid" || grep -qi ":$(printf %04x "$1") 00000000:0000 0a" /proc/net/tcp; }

# client_of NAME: of the server at $uri, which ends then.
client_of() {
	check "our client and $1" "$devcheck" "$uri" 1
	stop "$pid"
}

# kit NAME ARGUMENT…: nbdkit. dev_nbd.sh has more of them, over unix.
kit() {
	local name=$1 port
	shift
	port=$(free_port)
	spawn nbdkit -f -i 127.0.0.1 -p "$port" "$@"
	wait_for 10 listens_on "$port"
	uri=nbd://127.0.0.1:$port
	client_of "nbdkit, $name, TCP"
}

start_nbdkit "$dir/kit.sock" memory 64M
client_of "nbdkit, unix"
kit "which delays" --filter=delay memory 64M rdelay=10ms wdelay=10ms
kit "blocks of 4096 bytes" --filter=blocksize-policy memory 64M blocksize-error-policy=error \
	blocksize-minimum=4K blocksize-preferred=64K blocksize-maximum=1M
kit "no extents" --filter=noextents memory 64M

fresh
start_qemu_nbd "$dir/qemu.sock" "$image"
client_of "qemu-nbd, unix"
port=$(free_port)
spawn qemu-nbd -t -e 8 -f raw -b 127.0.0.1 -p "$port" "$image"
wait_for 10 listens_on "$port"
uri=nbd://127.0.0.1:$port
client_of "qemu-nbd, TCP"

# nbd_server TRANSPORT LINE: nbd-server, which goes into the background, and says who it is in a file.
nbd_server() {
	rm -f "$dir/nbd.pid"
	printf '%s\n' "[generic]" "$2" "[disk]" "exportname = $image" "flush = true" "fua = true" \
		"trim = true" >"$dir/nbd.conf"
	nbd-server -C "$dir/nbd.conf" -p "$dir/nbd.pid"
	wait_for 10 test -s "$dir/nbd.pid" || { not_ok "nbd-server, $1"; return; }
	pid=$(cat "$dir/nbd.pid")
	on_exit "kill $pid 2>/dev/null"
	check "our client and nbd-server, $1" "$devcheck" "$uri" 1
	kill "$pid"
	wait_for 10 lib_gone "$pid"
}
if have nbd-server; then
	uri="nbd+unix:///disk?socket=$dir/nbd.sock" nbd_server unix "unixsock = $dir/nbd.sock"
	port=$(free_port)
	uri=nbd://127.0.0.1:$port/disk nbd_server TCP "listenaddr = 127.0.0.1
port = $port"
else
	skip "our client and nbd-server" "no nbd-server"
fi

# Errors that a server answers with arrive, through our client and our server, and pass.
start_nbdkit "$dir/errors.sock" --filter=error memory 16M error-pread=EIO error-pwrite=ENOSPC \
	error-zero=EIO error-trim=EIO error-rate=100% error-file="$dir/fail"
serve --unix "$dir/unix.sock" "$uri"
check "errors arrive as what they are, and pass" nbdsh "
import os
h.connect_uri(sys.argv[1])
def error(call, *arguments):
    try:
        call(*arguments)
        return None
    except nbd.Error as e:
        return e.errno
h.pwrite(b'\7' * 65536, 4096)
open('$dir/fail', 'w').close()
for _ in range(3):
    assert error(h.pread, 4096, 4096) == 'EIO'
    assert error(h.pwrite, bytes(4096), 4096) == 'ENOSPC'
    assert error(h.zero, 4096, 4096) == 'EIO'
    assert error(h.trim, 4096, 4096) == 'EIO'
os.unlink('$dir/fail')
assert h.pread(65536, 4096) == b'\7' * 65536
h.pwrite(b'\6' * 1000, 5000)
h.flush()
assert h.pread(1002, 4999) == b'\7' + b'\6' * 1000 + b'\7'
h.shutdown()"
stop "$server"

end_guest
