#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The NBD device against foreign servers, with all they have and with what they lack; servers that
# die, hang, refuse, and lie.
# shellcheck source-path=SCRIPTDIR source=dev.bash
. "$(dirname "$0")/dev.bash"
for program in qemu-nbd nbdkit; do
	command -v $program >/dev/null || { skip "NBD servers" "no $program"; exit; }
done
image=$dir/disk.img
truncate -s 64M "$image"

# serve NAME COMMAND…: a server on a Unix socket of that name (@ in the command), for $uri.
serve() {
	local socket=$dir/$1
	shift
	begin "${@//@/$socket}"
	server=$!
	wait_for "$socket"
	uri="nbd+unix:///?socket=$socket"
}
kit() { serve "$1" nbdkit -f --exit-with-parent -U @ "${@:2}"; }

# With all they have
serve qemu qemu-nbd -t -f raw -k @ -e 8 "$image"
check "qemu-nbd" "$devcheck" "$uri" 1
check "qemu-nbd, without order device, more requests than slots" "$devcheck" -n -d 400 "$uri" 0.8
check "qemu-nbd, one connection" "$devcheck" -c 1 "$uri" 0.8
check "qemu-nbd, cancelled with requests in flight" "$devcheck" -x "$uri" 0.4
check "qemu-nbd, cancelled with requests waiting" "$devcheck" -x -n -d 400 "$uri" 0.4
check "qemu-nbd, read-only client" "$devcheck" -r "$uri" 0.4
kit memory memory 64M
check "nbdkit memory" "$devcheck" "$uri" 0.8
kit file file "$image"
check "nbdkit file" "$devcheck" "$uri" 0.8

# With what they lack
kit noextents --filter=noextents memory 64M
check "no extents" "$devcheck" "$uri" 0.4
kit nozero --filter=nozero memory 64M
check "no zero" "$devcheck" "$uri" 0.4
check "no zero, without order device" "$devcheck" -n "$uri" 0.4
kit single --filter=multi-conn memory 64M multi-conn-mode=disable
check "no multi-conn" "$devcheck" "$uri" 0.4
kit none --no-sr memory 64M
check "no structured replies" "$devcheck" "$uri" 0.4
truncate -s 4M "$dir/plain.img"
plain=(eval get_size="stat -Lc %s $dir/plain.img" can_write="exit 0"
	pread="dd if=$dir/plain.img iflag=skip_bytes,count_bytes skip=\$4 count=\$3"
	pwrite="dd of=$dir/plain.img oflag=seek_bytes conv=notrunc seek=\$4")
kit plain "${plain[@]}"
check "nothing but reads and writes" "$devcheck" -d 8 "$uri" 0.4
kit nofua "${plain[@]}" can_flush="exit 0" can_fua="echo none" flush="touch $dir/flushed"
check "flushes and no FUA" "$devcheck" -d 8 "$uri" 0.4
kit block4k --filter=blocksize-policy memory 64M blocksize-error-policy=error \
	blocksize-minimum=4K blocksize-preferred=4K blocksize-maximum=1M
check "blocks of 4096 bytes" "$devcheck" "$uri" 0.4
kit max64k --filter=blocksize-policy --filter=nozero memory 64M blocksize-error-policy=error \
	blocksize-minimum=1 blocksize-preferred=4K blocksize-maximum=64K
check "at most 64 KiB at once" "$devcheck" "$uri" 0.4
check "at most 64 KiB at once, without order device" "$devcheck" -n "$uri" 0.4
kit badextents --filter=error memory 64M error-extents=EIO error-extents-rate=50%
check "extents that fail are data" "$devcheck" "$uri" 0.4
serve two qemu-nbd -t -f raw -k @ -e 2 "$image"
check "fewer connections than asked for" "$devcheck" "$uri" 0.4

# Deaths
serve victim qemu-nbd -t -f raw -k @ -e 8 "$image"
dies_with $server "qemu-nbd is killed" "$uri"
serve victim1 qemu-nbd -t -f raw -k @ -e 8 "$image"
dies_with $server "qemu-nbd is killed, one connection, more requests than slots" "$uri" -c 1 -n -d 400
kit victim2 --filter=delay memory 4M rdelay=50ms wdelay=50ms
dies_with $server "a slow server is killed" "$uri" -d 400 -n

port=$((20000 + RANDOM % 12000))
begin qemu-nbd -t -f raw -b 127.0.0.1 -p $port -e 8 "$image"
server=$!
sleep 0.5
check "TCP, by name" "$devcheck" nbd://localhost:$port/ 0.4
dies_with $server "a TCP server is killed" nbd://localhost:$port/

# Refusals
serve named qemu-nbd -t -f raw -k @ -x disk "$image"
refused "wrong export" 4 E_NOT_FOUND "$devcheck" -i "nbd+unix:///other?socket=$dir/named"
refused "no such socket" 7 E_UNREACHABLE "$devcheck" -i "nbd+unix:///?socket=$dir/nowhere"
refused "nobody listens" 7 E_UNREACHABLE "$devcheck" -i nbd://127.0.0.1:1/
refused "not a URI" 2 E_URI "$devcheck" -i nbd:127.0.0.1:1
refused "no such host" 7 E_UNREACHABLE "$devcheck" -i nbd://nowhere.invalid/
kit readonly -r memory 64M
refused "read-only export" 3 E_ACCESS "$devcheck" -i "$uri"
check "read-only export, read-only" "$devcheck" -r "$uri" 0.4
kit odd memory 1000
refused "not whole sectors" 3 E_SIZE "$devcheck" -i "$uri"
kit empty null 0
refused "empty" 3 E_SIZE "$devcheck" -i "$uri"

# A server that accepts and never answers: one that is stopped.
serve dead qemu-nbd -t -f raw -k @ "$image"
kill -STOP $server
start=$SECONDS
refused "a dead server" 7 E_UNREACHABLE "$devcheck" -i "$uri"
[ $((SECONDS - start)) -le 12 ]
result $? "a dead server is given up after ten seconds"
start=$SECONDS
refused "a dead server, interrupted" 1 E_CANCELLED "$devcheck" -w 1 -i "$uri"
[ $((SECONDS - start)) -le 3 ]
result $? "an interruption is noticed at once"
serve fenced qemu-nbd -t -f raw -k @ "$image"
start=$SECONDS
check "with a fence" "$devcheck" -f -i "$uri"
[ $((SECONDS - start)) -ge 2 ]
result $? "the fence waits"

# TLS
echo "mirror:$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')" >"$dir/keys"
echo "mirror:$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')" >"$dir/other-keys"
kit tls --tls=require --tls-psk="$dir/keys" memory 64M
tls=${uri/nbd+/nbds+}
tls=${tls/:\/\//:\/\/mirror@}
check "TLS" "$devcheck" "$tls&tls-psk-file=$dir/keys" 0.4
dies_with $server "a TLS server is killed" "$tls&tls-psk-file=$dir/keys"
kit tls2 --tls=require --tls-psk="$dir/keys" memory 64M
tls=${uri/nbd+/nbds+}
tls=${tls/:\/\//:\/\/mirror@}
refused "TLS with the wrong key" 7 E_UNREACHABLE "$devcheck" -i "$tls&tls-psk-file=$dir/other-keys"
refused "TLS with no key file" 4 E_NOT_FOUND "$devcheck" -i "$tls&tls-psk-file=$dir/no-keys"
refused "TLS with nobody to trust" 2 E_URI "$devcheck" -i "$tls"
refused "TLS that the server insists on" 7 E_UNREACHABLE "$devcheck" -i "$uri"
