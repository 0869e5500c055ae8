# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of several hosts: disk.bash, and two hosts, a and b, that share no storage.
#
#	. "$(dirname "$0")/hosts.bash"
#	need_hosts
#	check "two hosts are paired" hosts_up
#	on a serve disk "$store/disk.img" --create 128M
#	on a start_load disk
#	check "the guest has noticed nothing" end_load
#
# Each host is a network namespace and a mount namespace, where $store is a file system of its own.
# Nothing has a name outside: all is gone with the last process inside. Of the daemon there is
# $dir/HOST/run, $dir/HOST/state and, what it says, $dir/HOST/log.
#
# They trust each other by a key, or, with BY=x509 in the environment, by certificates of one authority:
# $dir/authority, $dir/HOST/tls.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "${BASH_SOURCE[0]}")/disk.bash"
# shellcheck source=tls.bash
. "$(dirname "${BASH_SOURCE[0]}")/tls.bash"

store=$dir/store store_size=1G # sparse
declare -A host_address=([a]=10.77.0.1 [b]=10.77.0.2) host_holder=() host_daemon=() host_options=()
declare -A host_before=() # words before its daemon's program: env NAME=VALUE

# need_hosts: skips the test where there can be none.
need_hosts() {
	have ip nft unshare nsenter losetup mkfs.ext4 jq certtool ||
		{ skip "two hosts" "iproute2, nftables, util-linux, e2fsprogs, jq, gnutls-bin"; exit; }
	{ unshare --net --mount nft 'table inet cut' && losetup -f; } >"$dir/out" 2>&1 ||
		{ skip "two hosts" "$(head -n 1 "$dir/out")"; exit; }
}

# hosts_up: both are there, can reach each other, and are paired.
hosts_up() {
	local host
	on_exit hosts_down
	for host in a b; do host_make $host || return; done
	on a ip link add eth0 type veth peer name eth0 netns "${host_holder[b]}" || return
	[ "${BY:-}" != x509 ] || make_authority "$dir/authority" || return
	for host in a b; do
		[ "${BY:-}" != x509 ] || host_certify $host || return
		on $host ip addr add "${host_address[$host]}/24" dev eth0 &&
			on $host ip link set eth0 up && host_start $host || return
	done
	if [ "${BY:-}" = x509 ]; then
		bm_on a peer add host-b "${host_address[b]}:7700" --x509 &&
			bm_on b peer add host-a "${host_address[a]}:7700" --x509
	else
		bm_on a peer pair host-b "${host_address[b]}:7700" >"$dir/pairing" &&
			eval "$(sed -n 's/^  blockmirror /bm_on b /p' "$dir/pairing")"
	fi
}

# host_certify HOST [LINE…]: a new certificate, for both sides of TLS, of $dir/authority or of another
# one in $AUTHORITY; with these lines of certtool's template instead of those that make it the host's.
host_certify() {
	local host=$1 folder=$dir/$1/tls
	shift
	[ $# -gt 0 ] || set -- "cn=$host" "dns_name=host-$host" "ip_address=${host_address[$host]}"
	rm -f "$folder/server-key.pem"
	certify "$folder" server "${AUTHORITY:-$dir/authority}" "$@" tls_www_client tls_www_server signing_key &&
		chmod 600 "$folder/server-key.pem" && cp "$dir/authority/ca-cert.pem" "$folder/" || return
	[[ ${host_options[$host]:-} == *"--tls-dir $folder"* ]] || host_options[$host]+=" --tls-dir $folder"
}

# host_make HOST: its namespaces, which a process holds, and its store, mounted in there only. That
# is ext4, since not every kernel's tmpfs has O_DIRECT and user attributes.
host_make() {
	local folder=$dir/$1
	spawn unshare --net --mount sleep infinity
	host_holder[$1]=$pid
	mkdir -p "$folder/as" "$store"
	host_program "$folder/as/root" nsenter --target "$pid" --net --mount -- env -C "$PWD" \
		BLOCKMIRROR_RUN_DIR="$folder/run" BLOCKMIRROR_STATE_DIR="$folder/state"
	host_program "$folder/as/blockmirror" "$folder/as/root" "$BUILD/blockmirror"
	host_program "$folder/as/hammer" "$folder/as/root" "$hammer"
	truncate -s "$store_size" "$folder/store.img" && mkfs.ext4 -q "$folder/store.img" &&
		wait_for 5 host_held "$pid" && on "$1" mount -o loop "$folder/store.img" "$store" &&
		on "$1" ip link set lo up
}
# It has its namespaces once it is no shell and no unshare any more.
host_held() { [ "$(cat "/proc/$1/comm")" = sleep ]; }
# host_program FILE WORD…: a program that becomes the command WORD… ARGUMENT…, in the same process.
host_program() {
	{ printf '#!/bin/bash\nexec' && printf ' %q' "${@:2}" && echo ' "$@"'; } >"$1"
	chmod +x "$1"
}

# on HOST COMMAND…: there, within ${LIMIT:-120} s. A function runs here, without a limit; its $bm,
# its $hammer and its folders are that host's: "on a start_load disk", "on a show disk .uri". Files
# that it opens itself are not: see in_store.
on() {
	if [ "$(type -t "$2")" = function ]; then
		# shellcheck disable=SC2034 # the function sees them
		local bm=$dir/$1/as/blockmirror hammer=$dir/$1/as/hammer
		local -x BLOCKMIRROR_RUN_DIR=$dir/$1/run BLOCKMIRROR_STATE_DIR=$dir/$1/state
		"${@:2}"
	else
		timeout -k 5 "${LIMIT:-120}" "$dir/$1/as/root" "${@:2}"
	fi
}
# bm_on HOST ARGUMENT…: blockmirror there.
bm_on() { on "$1" "$BUILD/blockmirror" "${@:2}"; }
# spawn_on HOST COMMAND…: as spawn; $pid is COMMAND's own process.
spawn_on() { spawn "$dir/$1/as/root" "${@:2}"; }

# in_store HOST FILE: prints the path by which everybody outside sees what is $store/FILE there; not
# for programs that resolve links by themselves, as nbdkit and realpath(1) do.
in_store() { echo "/proc/${host_holder[$1]}/root$store/$2"; }
# store_fits HOST FILE: image_fits for what is in a store.
store_fits() {
	# shellcheck disable=SC2016 # nbdkit says what $uri is
	on "$1" nbdkit -r -U - file "$store/$2" --run "'$hammer' --check '$state' \"\$uri\""
}

# host_start HOST [OPTION…]: its daemon; returns when it is ready.
host_start() {
	local log=$dir/$1/log times
	times=$(grep -c ^ready "$log" 2>/dev/null)
	# shellcheck disable=SC2086 # words
	spawn_on "$1" ${host_before[$1]:-} "$BUILD/blockmirrord" --run-dir "$dir/$1/run" --state-dir "$dir/$1/state" \
		--name "host-$1" --listen "${host_address[$1]}:7700" ${host_options[$1]:-} "${@:2}"
	host_daemon[$1]=$pid
	wait_for 10 host_ready "$log" "${times:-0}" && ! lib_gone "$pid" && return
	tail -n 5 "$log"
	return 1
}
# One that was started before has said so in the same log.
host_ready() { lib_gone "$pid" || [ "$(grep -c ^ready "$1")" -gt "$2" ]; }
# host_stop HOST, host_kill HOST: SIGTERM, SIGKILL; its disks go on.
host_stop() { host_runs "$1" && stop "${host_daemon[$1]}" && unset "host_daemon[$1]"; }
host_kill() { host_runs "$1" && kill9 "${host_daemon[$1]}" && unset "host_daemon[$1]"; }
host_runs() { [ -n "${host_daemon[$1]:-}" ]; }

# cut_network [HOST…]: nothing arrives there any more, by default at both; no link goes down, and
# nobody is told. join_network ends it.
cut_network() {
	local host
	[ $# -gt 0 ] || set -- a b
	for host; do
		on "$host" nft 'table inet cut {
			chain in { type filter hook input priority 0; iifname "eth0" drop; }
		}' || return
	done
}
join_network() {
	on a nft 'table inet cut; delete table inet cut' &&
		on b nft 'table inet cut; delete table inet cut'
}

# hosts_down: the test's end does it. Nobody but us starts processes in there, so all that are there
# are ended, whoever has started them; daemons first, since they start disks anew. The stores are
# unmounted here: with a namespace they would go some time after its last process.
hosts_down() {
	local host
	for host in "${!host_daemon[@]}"; do host_stop "$host"; done
	for host in "${!host_holder[@]}"; do
		wait_for 10 host_is_empty "$host"
		[ ! -e "$(in_store "$host" lost+found)" ] || on "$host" umount -l "$store"
	done >>"$dir/log" 2>&1
}
host_is_empty() {
	local pids
	mapfile -t pids < <(host_processes "$1")
	[ ${#pids[@]} -eq 0 ] || { stop "${pids[@]}"; return 1; }
}
# host_processes HOST: prints all but the one that holds the host.
host_processes() {
	local namespace
	namespace=$(readlink "/proc/${host_holder[$1]}/ns/net")
	find /proc/[0-9]*/ns/net -lname "${namespace//[/\\[}" 2>/dev/null | cut -d / -f 3 |
		grep -vx "${host_holder[$1]}"
}
