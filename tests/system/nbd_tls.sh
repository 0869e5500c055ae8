#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# blockmirror-nbd under TLS with the clients that people use, and a disk that moves to it.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"
# shellcheck source-path=SCRIPTDIR source=tls.bash
. "$(dirname "$0")/tls.bash"
have certtool nbdcopy nbdinfo qemu-img jq || { skip "TLS" "gnutls-bin, libnbd-bin, qemu-utils, jq"; exit; }
python=${PYTHON:-/usr/bin/python3} # the one that has libnbd's module
"$python" -c "import nbd" 2>/dev/null || { skip "TLS" "python3-libnbd"; exit; }
server=$BUILD/blockmirror-nbd pki=$dir/pki keys=$dir/keys.psk

make_authority "$pki"
make_authority "$dir/strange"
certify "$pki" server "$pki" "cn=server" "dns_name=localhost" "ip_address=127.0.0.1" tls_www_server
for name in server-cert.pem server-key.pem; do cp "$pki/$name" "$dir"; done
mkdir "$dir/trust"
cp "$pki/ca-cert.pem" "$dir/trust"
certify "$dir/client" client "$pki" "cn=mover" tls_www_client
cp "$pki/ca-cert.pem" "$dir/client"
certify "$dir/false" client "$dir/strange" "cn=mover" tls_www_client
cp "$pki/ca-cert.pem" "$dir/false"
make_keys "$keys" mover reader
image=$dir/disk.img source=$dir/source.img size=$((32 * M))
dd if=/dev/urandom of="$source" bs=1M count=32 status=none
truncate -s $size "$image"

# copies URI [NAME]: nbdcopy to the server and back gives what went there.
copies() {
	nbdcopy "$source" "$1" && nbdcopy "$1" "$dir/back.img" && cmp "$source" "$dir/back.img"
}
refused() { # NAME TEXT COMMAND…
	check_fails "$1" 1 "$2" "${@:3}"
}
# qemu OBJECT SERVER: QEMU's tools copy, too; SERVER is the rest of a block device's description.
qemu() {
	qemu-img convert -n --object "$1" -f raw "$source" \
		--target-image-opts "driver=nbd,tls-creds=t,export=,$2" &&
		qemu-img compare --object "$1" --image-opts "driver=raw,file.filename=$source" \
			"driver=nbd,tls-creds=t,export=,$2"
}
# nbdsh PROGRAM…: for libnbd's handle h.
nbdsh() {
	"$python" -c "import nbd, os, sys
h = nbd.NBD()
$1" "${@:2}"
}
inet() { echo "server.type=inet,server.host=$1,server.port=$(port_of "$uri")"; }
x509="tls-creds-x509,id=t,endpoint=client,verify-peer=yes"

# The server has a certificate

check "a server with a certificate" start_nbds "$server" --listen 127.0.0.1:0 --tls-certificates "$pki" "$image"
[[ $uri == nbds://127.0.0.1:*/ ]]
result $? "its URI says that TLS is required" "$dir/ready"
check "nbdinfo" nbdinfo "$uri?tls-certificates=$dir/trust"
grep -q 'with TLS' "$dir/out"
result $? "and it speaks TLS" "$dir/out"
check "nbdcopy, both ways" copies "$uri?tls-certificates=$dir/trust"
check "QEMU's tools" qemu "$x509,dir=$dir/trust" "$(inet localhost)"
check "libnbd itself" nbdsh 'h.set_tls(nbd.TLS_REQUIRE)
h.set_tls_certificates(sys.argv[1])
h.connect_tcp("localhost", sys.argv[2])
assert h.get_tls_negotiated()
h.pwrite(b"x" * 1000000, 4095, nbd.CMD_FLAG_FUA)
assert h.pread(1000000, 4095) == b"x" * 1000000
h.shutdown()' "$dir/trust" "$(port_of "$uri")"
refused "who does not believe its authority stays away" "certificate verification" \
	nbdinfo "$uri?tls-certificates=$dir/strange"
refused "plain text is refused" "TLS" nbdinfo "${uri/nbds/nbd}"
bm_verify() { "$bm" verify "$source" "$1"; }
nbdcopy "$source" "$uri?tls-certificates=$dir/trust"
check "our own client" bm_verify "$uri?tls-certificates=$dir/trust"
check_fails "our own client does not believe a strange authority" 7 "certificate verification" \
	bm_verify "$uri?tls-certificates=$dir/strange"
check_fails "nor everybody, when there is no authority" 4 "ca-cert.pem" \
	bm_verify "$uri?tls-certificates=$dir"
check_fails "nor everybody, when none is named" 2 "whom to trust" bm_verify "$uri"
check "relative names are the caller's" bash -c "cd '$dir' && '$bm' verify source.img '$uri?tls-certificates=trust'"
stop "$pid"
start_nbds "$server" --listen 127.0.0.2:0 --tls-certificates "$pki" "$image"
check_fails "its name has to be the one in the certificate" 7 "certificate verification" bm_verify "$uri?tls-certificates=$dir/trust"
stop "$pid"

# Clients have certificates, too

echo "dn:CN=mover * read-write" >"$dir/acl"
start_nbds "$server" --listen 127.0.0.1:0 --tls-certificates "$pki" --tls-verify-peer --acl "$dir/acl" "$image"
check "nbdcopy with a certificate" copies "$uri?tls-certificates=$dir/client"
check "QEMU's tools with a certificate" qemu "$x509,dir=$dir/client" "$(inet localhost)"
check "our own client with a certificate" bm_verify "$uri?tls-certificates=$dir/client"
refused "none is not enough" "" nbdinfo "$uri?tls-certificates=$dir/trust"
refused "nor is another authority's" "" nbdinfo "$uri?tls-certificates=$dir/false"
echo "dn:CN=nobody * read-write" >"$dir/acl"
refused "nor is the authority's, when the ACL does not have it" "no export|not found|No such" \
	nbdinfo "$uri?tls-certificates=$dir/client"
grep -q 'dn:CN=mover.*may not open' "$dir/ready"
result $? "and the log says who may not" "$dir/ready"
stop "$pid"

# Keys

printf '%s\n' "psk:mover * read-write" "psk:reader * read-only" >"$dir/acl"
key_uri() { echo "nbds+unix://$1@/?socket=$dir/nbds.sock&tls-psk-file=$keys"; }
start_nbds "$server" --unix "$dir/nbds.sock" --tls-psk "$keys" --acl "$dir/acl" "$image"
server_pid=$pid
check "nbdcopy with a key" copies "$(key_uri mover)"
check "QEMU's tools with a key" qemu "tls-creds-psk,id=t,endpoint=client,username=mover,dir=$dir" \
	"server.type=unix,server.path=$dir/nbds.sock"
check "our own client with a key" bm_verify "$(key_uri reader)"
check "who may only read sees that" nbdsh 'h.set_uri_allow_local_file(True)
h.connect_uri(sys.argv[1])
assert h.is_read_only()
h.set_strict_mode(0)
for call in (lambda: h.pwrite(bytes(70000), 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    try:
        call()
        sys.exit("it was written to")
    except nbd.Error as e:
        assert e.errno == "EPERM", e.errno
assert len(h.pread(70000, 5)) == 70000
h.shutdown()' "$(key_uri reader)"
check_fails "who may only read does not write" 1 "read-only|permit" nbdcopy "$source" "$(key_uri reader)"
refused "a user without a key" "" nbdinfo "${uri/:\/\//:\/\/nobody@}&tls-psk-file=$keys"
cp "$keys" "$dir/old"
make_keys "$keys" mover
refused "a key that was replaced is refused" "" nbdinfo "nbds+unix://mover@/?socket=$dir/nbds.sock&tls-psk-file=$dir/old"
check "and the new one is not, without a restart" nbdinfo "$(key_uri mover)"
echo nonsense >"$keys.new"
mv "$keys.new" "$keys"
kill -HUP "$server_pid"
check "a file that is wrong is told of" wait_for 5 grep -q 'keys.psk, line 1' "$dir/ready"
cp "$dir/old" "$keys"
check "and the right one that comes back is used" nbdinfo "$(key_uri mover)"

# Clients that are up to no good

check "handshakes that stop anywhere leave nothing behind" "$python" tests/system/half_handshakes.py \
	"$dir/nbds.sock" "$server_pid"
check "and the server serves" copies "$(key_uri mover)"
[ "$(awk '/VmHWM/ { print $2 }' "/proc/$server_pid/status")" -lt 150000 ]
result $? "its memory is bounded" "/proc/$server_pid/status"
kill -TERM "$server_pid" && wait "$server_pid"
result $? "it ends with status 0"
lib_forget "$server_pid"

start_nbds "$server" --unix "$dir/nbds.sock" --tls on --tls-psk "$keys" "$image"
check "where TLS is optional, plain text is served" copies "$(nbd_uri "$dir/nbds.sock")"
check "and so is TLS" copies "$(key_uri mover)"
stop "$pid"
start_nbds "$server" --unix "$dir/nbds.sock" --tls-psk "$keys" --handshake-timeout 1 "$image"
check "who is slow in the handshake of TLS is not waited for" "$python" tests/system/half_handshakes.py \
	"$dir/nbds.sock" "$pid" slow
stop "$pid"
if have nbdkit; then
	check "a server that has certificates only cannot take the place of one with keys" \
		start_nbdkit "$dir/kit.sock" --tls=require --tls-certificates="$pki" memory 32M
	check_fails "and our client tells" 7 "" bm_verify "nbds+unix://mover@/?socket=$dir/kit.sock&tls-psk-file=$keys"
	stop "$pid"
else
	skip "a server that has certificates only" "nbdkit is missing"
fi

# Ways to start

stdio="['$server', '--stdio', '--tls-psk', '$keys', '$image']"
check "--stdio" nbdsh "h.set_tls(nbd.TLS_REQUIRE)
h.set_tls_psk_file('$keys')
h.set_tls_username('mover')
h.connect_command($stdio)
assert h.get_tls_negotiated()
assert len(h.pread(1 << 20, 0)) == 1 << 20
h.shutdown()"
# shellcheck disable=SC2016 # $uri is the command's
run=("$server" --run 'nbdcopy "$uri" - | cmp - '"$dir/disk.img")
check "--run with keys" "${run[@]}" --tls-psk "$keys" "$image"
check "--run with certificates" "${run[@]}" --listen 127.0.0.1:0 --tls-certificates "$pki" "$image"
check_fails "a line of the ACL that nobody can fulfil is a mistake" 2 "tls-verify-peer" \
	"$server" --unix "$dir/x.sock" --tls-certificates "$pki" --acl <(echo "dns:x * read-only") "$image"
check_fails "TLS without anything to prove is one, too" 2 "needs" "$server" --unix "$dir/x.sock" --tls on "$image"
check_fails "so is plain text for other hosts" 2 "require TLS" "$server" --listen 0.0.0.0:0 "$image"

# A disk moves there

make_image "$dir/a/disk.img"
cp --sparse=always "$dir/a/disk.img" "$dir/original"
truncate -s $image_size "$dir/remote.img"
check "a disk is served" serve disk "$dir/a/disk.img"
start_nbds "$server" --listen 127.0.0.1:0 --tls-certificates "$pki" --tls-verify-peer "$dir/remote.img"
remote="nbds://localhost:$(port_of "$uri")/?tls-certificates=$dir/client"
move "file to nbds" "$dir/a/disk.img" "$remote" "$dir/remote.img"
check "and from there to a file" "$bm" relocate disk "$dir/b.img" --guest-latency off
check "it is what it was" cmp "$dir/remote.img" "$dir/b.img"
check "it is stopped in the end" unserve disk
