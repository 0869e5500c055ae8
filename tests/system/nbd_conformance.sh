#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Our NBD server against proto.md, in raw bytes (fixtures/conformance): plain, and with sanitizers
# when LONG is set.
# Each check is one that some of these servers have to pass.
#
#	nbd_conformance.sh [SERVER…]	only these of: unix tcp stdio read_only faults large moving tls
#
# AREAS=A,B… are the only ones that are run then; FIRST=yes ends at the first check that fails.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

suite=${SUITE:-$BUILD/fixtures/conformance} prefix=''
asan_areas=greeting,options,info,context,refusals,chunks,status,flow,load,extended,filter
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1

# conform NAME AREAS [ARGUMENT…]: of the suite. What it said is in $dir/NAME.tap. No AREAS: all.
conform() {
	local name=$prefix$1 areas=${AREAS:-$2} start=${EPOCHREALTIME/./} status
	shift 2
	timeout -k 5 400 "$suite" ${FIRST:+--stop} ${areas:+--areas "$areas"} "$@" >"$dir/$name.tap" 2>&1
	status=$?
	echo "$(tail -n 1 "$dir/$name.tap"), $(((${EPOCHREALTIME/./} - start) / 100000))e-1 s"
	grep -E -A 2 '^(not ok|Bail out)' "$dir/$name.tap" >"$dir/out"
	result $status "$name" "$dir/out"
	[ $status -eq 0 ] || [ -z "${FIRST:-}" ] || exit
}

# ends NAME: the server in $pid, in good order; with what a sanitizer has found it does not.
ends() {
	local status
	kill -TERM "$pid"
	wait_for 20 lib_gone "$pid"
	wait "$pid"
	status=$?
	lib_forget "$pid"
	result $status "$prefix$1: the server ends well" "$dir/log"
}

# serve_unix IMAGE [OPTION…]: at $socket.
socket=$dir/nbd.sock
serve_unix() { start_blockmirror_nbd "$socket" "$@"; }

# serve_tcp IMAGE [OPTION…]: at $address.
serve_tcp() {
	local image=$1 port
	shift
	port=$(free_port)
	address=127.0.0.1:$port
	spawn "$BUILD/blockmirror-nbd" --listen "$address" "$@" "$image"
	wait_for 10 eval "(exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null"
}

# image SIZE: an empty one; its path.
image() {
	rm -f "$dir/disk.img"
	truncate -s "$1" "$dir/disk.img"
	echo "$dir/disk.img"
}

unix() {
	serve_unix "$(image 96M)"
	conform unix '' "$@" "unix:$socket"
	ends unix
}

# What depends on how bytes come.
tcp() {
	serve_tcp mem:32M
	conform tcp greeting,chunks,flow,load "$@" --pid "$pid" "tcp:$address"
	ends tcp
}

# Each connection has a process of its own.
stdio() { conform stdio flow "$@" "$BUILD/blockmirror-nbd" --stdio "$(image 8M)"; }

read_only() {
	serve_unix "$(image 64M)" --read-only
	conform read_only info,refusals,chunks,flow "unix:$socket"
	ends read_only
}

faults() {
	local fails="while=$dir/failing,error=EIO"
	serve_unix "fault:$fails,range=1M-2M|$fails,range=24M-25M|$fails,op=flush|\
range=3M-4M,delay=20ms;$(image 32M)"
	conform faults faults --faults "$dir/failing" "unix:$socket"
	ends faults
}

large() {
	serve_unix "$(image 8G)"
	conform large extended "unix:$socket"
	ends large
}

# Beside base:allocation there is the map of what is dirty while a disk moves.
moving() {
	local mover
	make_image "$dir/a/disk.img"
	mkdir "$dir/b"
	serve disk "$dir/a/disk.img"
	log=$dir/said spawn "$bm" relocate disk "$dir/b" --rate 1M --switch manual
	mover=$pid
	check "a move begins" wait_for 10 phase_is disk copying
	conform moving context,status,filter,bitmap --export disk "unix:$(disk_socket disk)"
	check "it is cancelled" "$bm" job cancel disk
	wait "$mover"
	lib_forget "$mover"
	check "the disk is stopped" unserve disk
}

# TLS that is forced, with a key; offered to who may only read; offered, with a certificate.
tls() {
	local key pki=$dir/pki
	key=suite:$(od -An -N 32 -tx1 /dev/urandom | tr -d ' \n')
	(umask 077 && echo "$key" >"$dir/keys.psk")
	serve_unix mem:64M --tls require --tls-psk "$dir/keys.psk"
	conform tls_forced starttls,tls,greeting --psk "$key" "unix:$socket"
	ends tls_forced
	serve_unix mem:64M --tls on --tls-psk "$dir/keys.psk" --read-only
	conform tls_read_only tls --psk "$key" "unix:$socket"
	ends tls_read_only
	mkdir -p "$pki"
	printf '%s\n' cn=suite ca cert_signing_key tls_www_server ip_address=127.0.0.1 >"$pki/template"
	certtool --generate-privkey --key-type ecdsa --outfile "$pki/server-key.pem" 2>>"$dir/log"
	certtool --generate-self-signed --template "$pki/template" --load-privkey \
		"$pki/server-key.pem" --outfile "$pki/server-cert.pem" 2>>"$dir/log"
	cp "$pki/server-cert.pem" "$pki/ca-cert.pem"
	serve_tcp mem:64M --tls on --tls-certificates "$pki"
	conform tls_offered starttls,tls "tcp:$address"
	ends tls_offered
}
does_tls() { "$BUILD/blockmirror-nbd" --help | grep -q -- ' --tls '; }

# What no server had to pass, though there could be one, is of no use.
all_run() {
	sed -n 's/^\(not \)\?ok [0-9]* - //p' "$dir"/*.tap | grep -v ' # SKIP ' | sort -u >"$dir/run"
	: >"$dir/tls"
	does_tls || "$suite" --list --areas starttls,tls | sort -u >"$dir/tls"
	"$suite" --list | sort -u | comm -23 - "$dir/run" | comm -23 - "$dir/tls" >"$dir/unused"
	cat "$dir/unused"
	[ ! -s "$dir/unused" ]
}

if [ $# -gt 0 ]; then
	for server; do "$server" --slow; done
	exit
fi
unix --slow
for server in tcp stdio read_only faults large moving; do "$server"; done
if does_tls; then tls; else skip "TLS" "blockmirror-nbd has none"; fi
check "each check was run for one server at least" all_run
if [ -n "${LONG:-}" ]; then # make check-long, which builds them
	BUILD=$BUILD/asan prefix=asan_
	unix --areas "$asan_areas"
	faults
	tcp --match '[[]extended'
	stdio --match '[[]extended'
	! does_tls || tls
fi
