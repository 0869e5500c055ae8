#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Two hosts that are known by their certificates: a disk passes from one to the other and back; and who
# shows a wrong one is refused, told why, and let in again when it is right, without a restart: another
# authority's, revoked, too old or too new, for another host or purpose. With LONG=1: clocks that differ
# cost nothing but what the certificates themselves say.
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "$0")/hosts.bash"

have nbdinfo gnutls-cli || { skip "hosts with certificates" "libnbd-bin, gnutls-bin"; exit; }
need_hosts
BY=x509 BEFORE=0.3 AFTER=0.3
x509=tls-certificates=$dir/a/state/peers/x509

begin() {
	make_image "$dir/disk.img"
	check "two hosts know each other by certificates" hosts_up
	cp --sparse=always "$dir/disk.img" "$(in_store a disk.img)"
	check "a reaches b" bm_on a peer check host-b
	check "b reaches a" bm_on b peer check host-a
	check "it is told by what name" grep_of "has a certificate for dns:host-b" bm_on a peer list
	check "there are no keys" no_keys
	check "a serves a disk" on a serve disk "$store/disk.img"
}
grep_of() { "${@:2}" >"$dir/out" && grep -q -- "$1" "$dir/out"; }
no_keys() { [ -z "$(find "$dir"/[ab]/state/peers -name '*.psk')" ] && [ ! -s "$dir/a/state/peers/keys" ]; }
refused_by() { check_fails "$1" 3 "E_ACCESS: .*$4" bm_on "$2" peer check "host-$3"; }

role_is() { [ "$(on "$1" show disk .role 2>/dev/null)" = "$2" ]; }
gate_is() { [ "$(on "$1" show disk .gate 2>/dev/null)" = "$2" ]; }
has_none() { [ -z "$(bm_on "$1" list --json | jq -r '.disks[].name')" ]; }
all_on() { state_fits "$(nbd_uri "$dir/$1/run/disks/disk.nbd" disk)"; }
writes() {
	on "$1" /usr/bin/python3 -c "
import nbd
h = nbd.NBD()
h.connect_uri('$(nbd_uri "$dir/$1/run/disks/disk.nbd" disk)')
h.pwrite(h.pread(4096, 0), 0)"
}

moving() {
	check_fails "what is not allowed is refused" 3 "E_ACCESS: .*does not let host host-a put disks" \
		bm_on a relocate disk "bm://host-b$store/"
	check "each may put disks on the other" allow
	check "a guest" on a start_load disk
	check "its storage moves" bm_on a relocate disk "bm://host-b$store/" --guest-latency off --target-deadline 20s
	check "the guest has noticed nothing" on a end_load
	data_port
	check "b's process dies" kill -KILL "$(on b show disk .pid)"
	check "the next one knows a by its certificate, too" writes a
	check "the disk is handed over" bm_on a hand-over disk
	check "b has it" role_is b active
	check "all is there" all_on b
	check "a has none" wait_for 10 has_none a
	check "and back" bm_on b relocate disk "bm://host-a$store/disk.img" --overwrite --serve-there
	check "a has it" role_is a active
	check "all is there, still" all_on a
	check "b has none" wait_for 10 has_none b
}
allow() { bm_on a peer allow host-b --receive "$store" && bm_on b peer allow host-a --receive "$store"; }

# Certificates of the same authority: only the one host's opens the port of its disk.
data_port() {
	local uri
	uri=$(jq -R -r 'fromjson? | .uri' "$dir/a/state/disks/disk/record")
	check "the record says where the certificates are" grep -q "$x509&" <<<"$uri"
	uri=${uri%%\?*}
	certify "$dir/x" client "$dir/authority" cn=x dns_name=host-x tls_www_client signing_key
	cp "$dir/authority/ca-cert.pem" "$dir/x/"
	check "a may" on a nbdinfo --size "$uri?$x509"
	check_fails "another host may not" 1 . on a nbdinfo --size "$uri?tls-certificates=$dir/x"
	check "that is told" grep -q 'dn:CN=x) may not open export "disk"' "$dir/b/run/disks/disk.log"
	rm "$dir/x"/client-*
	check_fails "nor who has no certificate" 1 . on a nbdinfo --size "$uri?tls-certificates=$dir/x"
	check "a is revoked on b" revoke "$dir/authority" "$dir/b/tls/ca-crl.pem" "$dir/a/tls/server-cert.pem"
	check_fails "and may not any more" 1 . on a nbdinfo --size "$uri?$x509"
	check "that is told, too" grep -q "its certificate was revoked" "$dir/b/run/disks/disk.log"
	rm "$dir/b/tls/ca-crl.pem"
	check "b is revoked on a" revoke "$dir/authority" "$dir/a/tls/ca-crl.pem" "$dir/b/tls/server-cert.pem"
	check_fails "which opens it no more" 1 . on a nbdinfo --size "$uri?$x509"
	rm "$dir/a/tls/ca-crl.pem"
	check "without these lists a may again" on a nbdinfo --size "$uri?$x509"
}

# wrong WHAT HERE THERE: b has that certificate; what a has to say about it, and what a says to b.
wrong() {
	refused_by "b's certificate $1: a does not trust it" a b "$2"
	refused_by "and says so to b" b a "$3"
}

refusals() {
	local as_b=(cn=b dns_name=host-b ip_address=10.77.0.2)
	make_authority "$dir/other"
	AUTHORITY=$dir/other host_certify b
	wrong "is another authority's" "10.77.0.2:7700 is not to be trusted: .*not signed by the authority in ca-cert.pem here" \
		"10.77.0.1:7700 does not trust our certificate: the authority in its ca-cert.pem has not signed it"
	host_certify b "${as_b[@]}" "activation_date=$(date_in -2days)" "expiration_date=$(date_in -1day)"
	wrong "has expired" "has expired at 20[0-9-]* [0-9:]* UTC, and the clock here says 20[0-9-]* [0-9:]* UTC: a clock is wrong" \
		"says that our certificate is not valid now: it is from 20.* until 20.*, and the clock here says 20"
	host_certify b "${as_b[@]}" "activation_date=$(date_in +1day)"
	wrong "is not valid yet" "is not valid before 20[0-9-]* [0-9:]* UTC, and the clock here says 20" \
		"says that our certificate is not valid now: it is from 20"
	host_certify b cn=b dns_name=host-y ip_address=10.77.0.2
	wrong "is for host-y" "10.77.0.2:7700 is somebody else: its certificate is not for dns:host-b, but for dn:CN=b, dns:host-y" \
		"host-a does not know the host that calls: its certificate is for dn:CN=b, dns:host-y"
	host_certify b cn=b 'dns_name=*' ip_address=10.77.0.2
	wrong "is for everybody" "is not for dns:host-b, but for dn:CN=b, dns:\*" "does not know the host that calls"
	certify "$dir/b/tls" server "$dir/authority" "${as_b[@]}" signing_key tls_www_server
	check "b's certificate is for servers only: a trusts it" bm_on a peer check host-b
	refused_by "as such" b a "does not trust our certificate: it is not for clients"
	host_certify b "${as_b[@]}"
	check "with the right one a reaches b" bm_on a peer check host-b
	check "and b reaches a" bm_on b peer check host-a
	revocation
	strangers
}

revocation() {
	check "it is revoked" revoke "$dir/authority" "$dir/a/tls/ca-crl.pem" "$dir/b/tls/server-cert.pem"
	wrong "was revoked" "its certificate was revoked, says ca-crl.pem here" "it was revoked, says its ca-crl.pem"
	host_certify b
	check "b gets another one" bm_on a peer check host-b
	check "which a lets in" bm_on b peer check host-a
	DAYS=0 revoke "$dir/authority" "$dir/a/tls/ca-crl.pem" "$dir/b/tls/server-cert.pem"
	sleep 1.1
	refused_by "a list that is out of its time counts still" a b "its certificate was revoked"
	echo rubbish >"$dir/a/tls/ca-crl.pem"
	check_fails "nor does one that cannot be read" 2 "cannot use .*ca-crl.pem" bm_on a peer check host-b
	rm "$dir/a/tls/ca-crl.pem"
	check "without one a reaches b" bm_on a peer check host-b
}

strangers() {
	check "b removes a" bm_on b peer remove host-a
	refused_by "which is unknown then" a b "(refuses us|closes the connection)"
	bm_on b peer pair host-z 10.77.0.9:1 >"$dir/pairing"
	refused_by "also where others are known by a key" a b "refuses us.*knows no host by a certificate"
	check "it is added by another name of its certificate" \
		bm_on b peer add host-a 10.77.0.1:7700 --x509 --identity ip:10.77.0.1 --receive "$store"
	check "a is let in beside one who has a key" bm_on a peer check host-b
	check "who has" with_key host-z "$(sed -n 's/.*<<<//p' "$dir/pairing")"
	check_fails "nobody has a's name and no certificate" 1 "Received alert" with_key host-a "$(sed -n 's/.*<<<//p' "$dir/pairing")"
	check_fails "two hosts of one name" 3 "E_EXISTS: host host-a is known by ip:10.77.0.1" \
		bm_on b peer add host-c 10.77.0.3:1 --x509 --identity 10.77.0.1
	check_fails "a name of a key" 2 "E_USAGE: .*is no name that a certificate is for" \
		bm_on b peer add host-c 10.77.0.3:1 --x509 --identity psk:c
	check_fails "a certificate and a key" 2 "instead of a key" \
		bm_on b peer add host-c 10.77.0.3:1 --x509 --key-file "$dir/pairing"
	host_certify b cn=b dns_name=host-b
	check "b's certificate is not for its address" grep_of "is not for 10.77.0.2, where data comes to" \
		bm_on a peer check host-b
	check_fails "no disk goes there" 3 "E_ACCESS: the certificate of host host-b is not for 10.77.0.2" \
		bm_on a relocate disk "bm://host-b$store/two.img"
	check "and none is left" has_none b
	host_certify b
	check "b starts without its certificates" restart b ''
	refused_by "nobody is let in by one" a b "refuses us"
	check_fails "nor does b go anywhere" 2 "E_USAGE: host host-a is known by its certificate: start blockmirrord with --tls-dir" \
		bm_on b peer check host-a
	check_fails "nor adds anybody" 2 "start it with --tls-dir" bm_on b peer add host-c 10.77.0.3:1 --x509
	check "b starts with them" restart b "--tls-dir $dir/b/tls"
	check "and is as before" bm_on a peer check host-b
}
with_key() { # USER KEY: to b
	{ echo '{"jsonrpc":"2.0","id":1,"method":"hello","params":{"versions":[1,1]}}'; sleep 0.5; } |
		on a gnutls-cli --pskusername "$1" --pskkey "$2" --priority \
			'NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK' -p 7700 10.77.0.2 >"$dir/said" 2>&1
	cat "$dir/said"
	grep -q '"name":"host-b"' "$dir/said"
}
restart() { # HOST OPTIONS
	host_stop "$1"
	host_options[$1]=$2
	host_start "$1"
}

# b's clock is another one: all of its programs see it.
clocks() {
	local library
	library=$(echo /usr/lib/*/faketime/libfaketimeMT.so.1)
	[ -e "$library" ] || { skip "clocks that differ" faketime; return; }
	fake=(env "LD_PRELOAD=$library" NO_FAKE_STAT=1 DONT_FAKE_MONOTONIC=1 FAKETIME_DONT_FAKE_MONOTONIC=1)
	check "b is two days ahead" other_clock +2d
	check "a tells" grep_of "its clock is 4[78] h .* ahead of ours" bm_on a peer check host-b
	check "b is offered a disk for three seconds" arm_b 3s
	check "it is armed" gate_is b armed
	check "and then no more" wait_for 6 gate_is b standby
	check "for an hour" arm_b 1h
	check "b's guest writes, and b has it" writes b
	check "b has it" role_is b active
	check "a has none" wait_for 10 has_none a
	check "b offers it to a for an hour" on b "${fake[@]}" FAKETIME=+2d "$BUILD/blockmirror" migrate arm disk \
		--to host-a --overwrite
	check "a's guest writes" writes a
	check "a has it, and all of it" all_on a
	check "b has none" wait_for 10 has_none b
	check "b is two days behind" other_clock -2d
	check "for an hour, again" arm_b 1h
	check "b's guest writes, and b has it, too" writes b
	check "all is there" all_on b
	check "b is twenty days ahead" other_clock +20d
	refused_by "a certificate has expired, for b" b a \
		"has expired at 20[0-9-]* [0-9:]* UTC, and the clock here says 20[0-9-]* [0-9:]* UTC: a clock is wrong"
	refused_by "a is told both sides" a b \
		"10.77.0.2:7700 says that our certificate is not valid now: it is from 20.* until 20.*, and the clock here says"
	check "b serves its disk all the same" writes b
}
arm_b() { bm_on a migrate arm disk --to host-b --overwrite --expires "$1"; }
# The disk's processes, too.
other_clock() {
	local process
	host_stop b
	process=$(bm_on b list --json 2>/dev/null | jq '.disks[].pid')
	host_before[b]="${fake[*]} FAKETIME=$1"
	host_start b || return
	[ -z "$process" ] || { kill -KILL "$process" && wait_for 10 other_process "$process"; }
}
other_process() { local now; now=$(on b show disk .pid 2>/dev/null) && [ -n "$now" ] && [ "$now" != "$1" ]; }

begin
moving
refusals
[ -z "${LONG:-}" ] || clocks
