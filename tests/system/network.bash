# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of a machine with a network: machine.bash, its guest with a network card, and a third
# host from which somebody talks with it all the time (network.py), and sees what comes by which cable.
#
#	. "$(dirname "$0")/network.bash"
#	need_machine
#	network_machine_up
#	move a b
#	outside frames from-b "$from" "$to"
#
# Each host has a bridge with the machine's tap and a cable to a switch on the third one.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "${BASH_SOURCE[0]}")/machine.bash"

# shellcheck disable=SC2034 # who sources this uses them
guest_mac=52:54:00:77:00:01 other_mac=52:54:00:77:00:02 guest_address=10.88.0.2
# shellcheck disable=SC2034 # make_guest's
guest_files=(init init.records) guest_init=network_guest.init
# shellcheck disable=SC2034 # machine_command's
machine_more=(-netdev "tap,id=net0,ifname=tap0,script=no,downscript=no"
	-device "virtio-net-pci,id=nic0,netdev=net0,mac=$guest_mac,romfile=")

# in_middle COMMAND…: on the third host.
in_middle() { nsenter --target "$middle" --net -- "$@"; }
outside() { /usr/bin/python3 tests/system/network.py "$1" "$dir/outside" "${@:2}"; }

# It has one more card, so says hook announce, of which its VMM says nothing.
announce_hook() {
	mkdir -p "$dir/hooks"
	cp "$hooks/start-target" "$dir/hooks"
	printf '#!/bin/sh\necho %s\n' "'{\"interfaces\": [{\"interface\": \"bridge0\", \"mac\": \"$other_mac\", \"address\": \"10.88.0.3\"}]}'" \
		>"$dir/hooks/announce"
	chmod +x "$dir/hooks/announce"
	hooks=$dir/hooks
}
network_machine_up() {
	announce_hook
	machine_up network_up
	check "somebody talks with it" talks
}

network_up() {
	local host
	spawn unshare --net sleep infinity
	middle=$pid
	wait_for 5 host_held "$middle" && bridge_up in_middle br0 || return
	in_middle ip addr add 10.88.0.1/24 dev br0 && in_middle ip link set lo up || return
	for host in a b; do
		in_middle ip link add "to-$host" type veth peer name cable netns "${host_holder[$host]}" &&
			in_middle ip link set "to-$host" master br0 up &&
			bridge_up "on $host" bridge0 && on $host ip tuntap add dev tap0 mode tap &&
			on $host ip link set tap0 master bridge0 up &&
			on $host ip link set cable master bridge0 up || return
	done
}
# shellcheck disable=SC2086 # words
bridge_up() { $1 ip link add "$2" type bridge forward_delay 0 stp_state 0 && $1 ip link set "$2" up; }

# talks: from here on what the guest says is written to $dir/outside.
talks() {
	mkdir -p "$dir/outside"
	log=$dir/outside/log spawn nsenter --target "$middle" --net -- /usr/bin/python3 tests/system/network.py \
		watch "$dir/outside" $guest_address $guest_mac,$other_mac to-a to-b
	# shellcheck disable=SC2034 # for who ends it
	talker=$pid
	wait_for 60 answers
}
# answers: ping, TCP and UDP come now.
answers() { local since; since=$(date +%s%N) && wait_for 5 outside alive "$since"; }

# guest_does off|reset
guest_does() { in_middle /usr/bin/python3 tests/system/network.py say $guest_address "$1"; }
