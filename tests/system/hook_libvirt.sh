#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What libvirt's hook does, called as libvirt calls it, with a domain's XML: disks of ours are started
# before the domain, found under this host's RUN when it comes from another one, and stopped after it.
# libvirt_guest.sh has the same with a real libvirtd.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

have xmllint jq || { skip "libvirt's hook" "libxml2-utils, jq"; exit; }
export BLOCKMIRROR_RUN_DIR=$dir/run BLOCKMIRROR_STATE_DIR=$dir/state
bm=$BUILD/blockmirror
sockets=$dir/run/disks

# domain SOCKET=EXPORT…: its XML.
domain() {
	local d i=0
	echo "<domain type='qemu'><name>guest</name><devices>"
	echo "<disk type='file' device='disk'><source file='/srv/x.img'/><target dev='hda'/></disk>"
	for d; do
		i=$((i + 1))
		echo "<disk type='network' device='disk'><driver name='qemu' type='raw'/>" \
			"<source protocol='nbd' name='${d#*=}'><host transport='unix' socket='${d%=*}'/></source>" \
			"<target dev='vd$i'/></disk>"
	done
	echo "</devices></domain>"
}
# hook OPERATION DISK…: output in $dir/xml.
hook() {
	domain "${@:2}" | "$bm" hook libvirt guest "$1" begin - >"$dir/xml"
}
served() { "$bm" show "$1" --json >"$dir/out" && [ "$(jq -r .role "$dir/out")" = active ]; }
not() { ! "$@"; }
both_stop() { "$bm" stop one && "$bm" stop two; }
socket_is() { [ "$(xmllint --xpath "string(//disk[$1]//host/@socket)" "$dir/xml")" = "$2" ]; } # DISK PATH
no_xml() { echo no | "$bm" hook libvirt guest prepare begin -; }
silent() { [ ! -s "$dir/xml" ]; }

spawn "$BUILD/blockmirrord" --run-dir "$dir/run" --state-dir "$dir/state"
check "the daemon runs" wait_for 10 test -S "$dir/run/blockmirrord.sock"
check "a disk is known" "$bm" serve one "$dir/one.img" --create 4M
check "another one, too" "$bm" serve two "$dir/two.img" --create 4M
check "both are stopped" both_stop
check "before the domain starts they are started" hook prepare "$sockets/one.nbd=one" "$sockets/two.nbd=two"
check "one is served" served one
check "two, too" served two
check "libvirt is told nothing" silent
check "once more is the same" hook prepare "$sockets/one.nbd=one" "$sockets/two.nbd=two"
check "what is not ours is left alone" hook prepare "$dir/other/disks/three.nbd=three" /run/x.sock=one
check_fails "a disk that nobody knows: the domain does not start" 4 "E_NOT_FOUND: domain guest has disk three.*migrate arm" \
	hook prepare "$sockets/three.nbd=three"
check "other operations are of no interest" hook started "$sockets/three.nbd=three"
check "it comes from a host where they are elsewhere" hook migrate /srv/bm/disks/one.nbd=one /srv/bm/disks/two.nbd=two /a/b.sock=c
check "our socket is in it" socket_is 2 "$sockets/one.nbd"
check "both are" socket_is 3 "$sockets/two.nbd"
check "others are as they were" socket_is 4 /a/b.sock
check "it comes from a host where they are at the same place" hook migrate "$sockets/one.nbd=one"
check "then nothing is changed" silent
check_fails "it comes, and its disk does not: that is refused" 4 "E_NOT_FOUND" hook migrate /srv/bm/disks/three.nbd=three
check "one is being moved" "$bm" relocate one "$dir/new.img" --switch manual
check "the domain has ended" hook release "$sockets/one.nbd=one" "$sockets/two.nbd=two"
check "two is stopped" wait_for 5 not served two
check "one goes on" served one
check "once more is the same" hook release "$sockets/two.nbd=two"
check_fails "what is no XML" 2 "E_USAGE: the XML of domain guest is wanted" no_xml
check_fails "what is missing" 2 "as libvirt calls it" "$bm" hook libvirt guest
check "the move is cancelled" "$bm" job cancel one
check "and the disk stopped" wait_for 10 "$bm" stop one
