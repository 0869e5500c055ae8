#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# --bind: the data of a machine's move goes by the network of that address, and by no other one; there and
# back by another network each. An address that is none of ours, or by which nothing gets there, is refused,
# and nothing was changed. With BY=x509 so is an address that the other host's certificate is not for.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "$0")/machine.bash"

need_machine
budget=30s
declare -A second=([a]=10.78.0.1 [b]=10.78.0.2)

second_network() {
	local host
	on a ip link add eth1 type veth peer name eth1 netns "${host_holder[b]}" || return
	for host in a b; do
		on $host ip addr add "${second[$host]}/24" dev eth1 && on $host ip link set eth1 up || return
	done
}
restart_b() { host_stop b && host_start b "$@"; }
sent() { on "$1" ip -j -s link show dev "$2" | jq '.[0].stats64.tx.bytes'; }

untouched() {
	check "$1: it runs here, with its disks" only_on a b
	check "$1: b has got nothing" nothing_there
}
nothing_there() { [ ! -e "$(in_store b disk0.img)" ] && [ ! -e "$(in_store b disk1.img)" ]; }

# goes_by FROM TO NETWORK OTHER [OPTION…]. What has gone when it is about to be decided is the move's; then TO
# mirrors back, and looks by the network of the daemons at what FROM has.
goes_by() {
	local network other report
	network=$(sent "$1" "$3") other=$(sent "$1" "$4")
	check "$1 to $2 by $3: all of it is there" begins "$1" "$2" source-fenced "${@:5}"
	network=$(($(sent "$1" "$3") - network)) other=$(($(sent "$1" "$4") - other))
	kill -CONT "$mover"
	check "it moves" ends 0 "runs on host host-$2"
	check "it runs there" wait_for 10 machine_is "$2" running
	check "its disks are there, and nowhere else" wait_for 20 only_on "$2" "$1"
	check "its guest goes on" goes_on
	check "nothing is lost" sound_machine "$2"
	report=$(bm_on "$1" machine show vm --json | jq '.last | [.memory.wire_bytes, .disks[].copied // 0] | add')
	echo "# by $3: $network bytes; by $4: $other; of memory and disks: $report"
	check "the data has gone by $3" [ "$network" -gt "$report" ]
	check "and none of it by $4" [ "$other" -lt $((report / 10)) ]
}

steps_known
# shellcheck disable=SC2119 # not these
machine_up second_network
check_fails "no address" 2 "bind network: the number of an address is wanted" move a b --bind network
check_fails "an address of nobody" 3 "E_HOST: --bind 10.78.0.9: that is no address of this host" move a b --bind 10.78.0.9
check_fails "all addresses" 3 "E_HOST: --bind 0.0.0.0: that is no address of this host" move a b --bind 0.0.0.0
check_fails "one that b does not listen at" 3 \
	"E_HOST: host host-b takes data at 10.77.0.2, and what goes there leaves by 10.77.0.1, not by 10.78.0.1" \
	move a b --bind 10.78.0.1
untouched "refused"
check "b listens on all of its addresses" restart_b --listen 0.0.0.0:7700
check_fails "one by which nothing gets to b" 3 "E_HOST: host host-b takes data at .* not by 127.0.0.1" move a b --bind 127.0.0.1
untouched "refused again"
if [ "${BY:-}" = x509 ]; then
	check_fails "b's certificate is not for that network" 3 "E_ACCESS: the certificate of host host-b is not for 10.78.0.2" \
		move a b --bind 10.78.0.1
	untouched "refused for its certificate"
	check "it is" host_certify b "cn=b" "dns_name=host-b" "ip_address=10.77.0.2" "ip_address=10.78.0.2"
	check "b has it" restart_b --listen 0.0.0.0:7700
fi
goes_by a b eth1 eth0 --bind 10.78.0.1
goes_by b a eth0 eth1 --bind 10.77.0.2
