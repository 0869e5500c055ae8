#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk and its target in two network namespaces: cuts at every kind of place, links that are down,
# packets that vanish, servers that stand still (network.py). Minutes each; SERVER and FAULT choose.
# shellcheck source-path=SCRIPTDIR/../system source=../system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

python=${PYTHON:-/usr/bin/python3}
have "$python" ip tc nft nbdkit tgtd || { skip "the network" "python3, iproute2, nftables, nbdkit, tgt"; exit; }
ip netns add "bm-probe$$" 2>"$dir/out" || { skip "the network" "$(cat "$dir/out")"; exit; }
ip netns del "bm-probe$$"
seed=${SEED:-$RANDOM}
echo "# seed $seed"

# nbdkit 1.32 dies when a client is cut off with requests in flight.
cuts="cut-boundaries cut-random cut-greeting cut-silence"
faults_of() {
	case $1 in
	nbd) echo "$cuts cut-end down-short down-10 down-30 drop-there drop-back stopped slow-link far-away loss" ;;
	tls) echo "$cuts down-10 drop-there stopped loss" ;;
	nbdkit) echo "stopped slow-link far-away down-short" ;;
	iscsi) echo "$cuts down-10 drop-there drop-back stopped slow-link loss" ;;
	esac
}

case_of() { # SERVER FAULT
	local status
	LIMIT=900 lib_run "$python" tests/fault/network.py "$BUILD" "$dir" "$1" "$2" --seed "$seed"
	status=$?
	if [ $status -eq 77 ]; then
		skip "$1 $2" "$(tail -n 1 "$dir/out")"
	else
		result $status "$1 $2" "$dir/out"
		grep '^faults' "$dir/out" | sed 's/^/# /'
		rm -rf "${dir:?}/$1-$2"
	fi
}

for server in ${SERVER:-nbd tls nbdkit iscsi}; do
	for fault in ${FAULT:-$(faults_of "$server")}; do case_of "$server" "$fault"; done
done
