#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The path to an NBD target drops everything for some seconds, under load. The session is given up,
# and a new one resyncs; what the old one had not sent yet must never arrive. (A socket that is only
# closed goes on sending for minutes: its retransmissions would land on top of the resync.)
# Two network namespaces with a router between them: neither host sees the link go down.
# shellcheck source-path=SCRIPTDIR/../system source=disk.bash
. "$(dirname "$0")/../system/disk.bash"

have ip nbdcopy qemu-img jq || { skip "a cut path" "iproute2, libnbd-bin, qemu-utils, jq"; exit; }
ip netns add "bm-$$-r" 2>"$dir/out" || { skip "a cut path" "$(head -n 1 "$dir/out")"; exit; }
for host in r a b; do
	[ $host = r ] || ip netns add "bm-$$-$host"
	on_exit "ip netns del bm-$$-$host"
	ip -n "bm-$$-$host" link set lo up
done
net() { nsenter --net="/run/netns/bm-$$-$1" "${@:2}"; }
for host in a b; do
	ip link add "bm-$$-$host" netns "bm-$$-$host" type veth peer name "to-$host" netns "bm-$$-r"
	subnet=$([ $host = a ] && echo 10.77.1 || echo 10.77.2)
	ip -n "bm-$$-$host" addr add "$subnet.1/24" dev "bm-$$-$host"
	ip -n "bm-$$-r" addr add "$subnet.254/24" dev "to-$host"
	ip -n "bm-$$-$host" link set "bm-$$-$host" up
	ip -n "bm-$$-r" link set "to-$host" up
	ip -n "bm-$$-$host" route add default via "$subnet.254"
done
net r sysctl -qw net.ipv4.ip_forward=1
# The way there is a black hole, or not. Replies come back: what the target's host still had to send
# would meet a closed socket, and end the old connection by itself.
path_is() { ip -n "bm-$$-r" route "$([ "$1" = cut ] && echo add || echo del)" blackhole 10.77.2.1/32; }

image_size=$((64 * M)) half=$((32 * M))
truncate -s $image_size "$dir/a.img" "$dir/remote.img"
spawn nsenter --net="/run/netns/bm-$$-b" "$BUILD/blockmirror-nbd" --listen 10.77.2.1:10809 --insecure \
	"$dir/remote.img"
spawn nsenter --net="/run/netns/bm-$$-a" "$BUILD/blockmirror-disk" --name disk "$dir/a.img"
served() { [ "$(show disk .name)" = disk ]; }
check "a disk is served" wait_for 10 served
start_load disk --iops 0 --fill 100 --sizes 64k:256k
check "it mirrors to the other host" "$bm" relocate disk nbd://10.77.2.1/ --overwrite \
	--switch manual --guest-latency off
path_is cut
sleep 7
path_is open
check "the target was lost, and came back" "$bm" job wait disk --for in-sync
check "it was lost" job_is disk '.progress.target_losses > 0' true
check "the guest noticed nothing" end_load
# By now every retransmission of the old session would have come.
sleep 9
check "it switches" "$bm" switch disk
check "the disk is what was written" state_fits "$(disk_uri disk)"
check "byte for byte" serves disk "$dir/remote.img"
check "and its source is the same" cmp "$dir/a.img" "$dir/remote.img"
check "it is stopped" unserve disk
