#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Two hosts are paired by one line, reach each other, and let nobody else in: other keys, other names,
# no TLS, other versions, who was removed.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have gnutls-cli jq socat || { skip "hosts" "gnutls-bin, jq, socat"; exit; }
declare -A daemon=()
port_a=$((20000 + RANDOM % 6000)) port_b=$((26000 + RANDOM % 6000))
key=''

start_host() { # a|b OPTION…
	local before
	before=$(ready_lines "$1")
	log=$dir/$1.log spawn "$BUILD/blockmirrord" --run-dir "$dir/$1/run" --state-dir "$dir/$1/state" \
		--name "host-$1" "${@:2}"
	daemon[$1]=$pid
	wait_for 10 ready_again "$1" "$before"
}
ready_lines() { sed -n /^ready/p "$dir/$1.log" 2>/dev/null | wc -l; }
# The log goes on: the last one's line must not be taken for this one's.
ready_again() { [ "$(ready_lines "$1")" -gt "$2" ]; }
on() { # a|b ARGUMENT…: blockmirror there
	"$BUILD/blockmirror" --run-dir "$dir/$1/run" --state-dir "$dir/$1/state" "${@:2}"
}
stop_host() { stop "${daemon[$1]}"; }

# says USER KEY LINE…: lines that a host sends to b; what it is answered.
says() {
	local user=$1 secret=$2
	shift 2
	{ printf '%s\n' "$@"; sleep "${AFTER:-0.5}"; } |
		gnutls-cli --pskusername "$user" --pskkey "$secret" --priority \
			'NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK' -p $port_b 127.0.0.1 2>&1
}
call() { # METHOD [PARAMS]
	printf '{"jsonrpc":"2.0","id":1,"method":"%s","params":%s}' "$1" "${2:-{\}}"
}
# answered TEXT COMMAND…
answered() {
	"${@:2}" >"$dir/said"
	cat "$dir/said"
	grep -q "$1" "$dir/said"
}
hello=$(call hello '{"versions":[1,1]}')

pairing() {
	check "host a starts" start_host a --listen 127.0.0.1:$port_a
	check "host b starts" start_host b --listen 127.0.0.1:$port_b
	check_fails "b is not known" 4 "E_NOT_FOUND: .*host-b is not known" on a peer check host-b
	check "they are paired on a" on a peer pair host-b 127.0.0.1:$port_b
	cp "$dir/out" "$dir/pairing"
	check_fails "b does not know a yet" 3 "E_ACCESS: .*knows no host that has our name" \
		on a peer check host-b
	check "the line has one command" grep -c '^  blockmirror peer add host-a ' "$dir/pairing"
	key=$(sed -n 's/.*<<<//p' "$dir/pairing")
	check "it is run on b, as it was printed" run_line
	check "a reaches b" answered "host-b at 127.0.0.1:$port_b: blockmirror .*version 1" \
		on a peer check host-b
	check "b reaches a" facts
	check "it is told how" json_is "$dir/facts" \
		'.version == 1 and .rtt_ns > 0 and .bandwidth > 0 and .mtu > 0'
	check "clocks agree" json_is "$dir/facts" \
		'.clock_ahead_ns < 1000000000 and .clock_ahead_ns > -1000000000'
	check "they are listed" answered "^host-b  *127.0.0.1:$port_b\$" on a peer list
	check "the keys are for nobody else" modes
	check "no key is in a log" no_key_told
}
facts() { on b peer check host-a --json | jq -c . >"$dir/facts" && [ -s "$dir/facts" ]; }
run_line() { eval "$(sed -n 's/^  blockmirror /on b /p' "$dir/pairing")"; }
modes() { [ -z "$(find "$dir"/[ab]/state/peers -type f ! -perm 600; find "$dir"/[ab]/state/peers -type d ! -perm 700)" ]; }
no_key_told() { [ ${#key} -eq 64 ] && ! grep -q "$key" "$dir/a.log" "$dir/b.log"; }

strangers() {
	local other=${key//[0-7]/9}
	check "who has the key may call" answered '"name":"host-b"' says host-a "$key" "$hello"
	check "hello comes first" answered 'hello comes first' says host-a "$key" "$(call ping)"
	check "an older host is told" answered 'E_UNSUPPORTED.*' \
		says host-a "$key" "$(call hello '{"versions":[7,9]}')"
	check "which versions there are" grep -q 'versions 1 to 1 to other hosts, the caller 7 to 9' "$dir/said"
	check "hello makes sense" answered 'E_USAGE' says host-a "$key" "$(call hello '{"versions":[3,1]}')"
	check "of methods there are those of hosts" answered 'unknown method' \
		says host-a "$key" "$hello" "$(call serve '{"name":"x","image":"/etc/passwd"}')"
	check "no more is swallowed than may be" answered 'E_USAGE' \
		says host-a "$key" "$hello" "$(call swallow '{"bytes":9999999999999}')"
	check_fails "another key" 1 'error' says host-a "$other" "$hello"
	check_fails "another name" 1 'error' says host-x "$key" "$hello"
	check "b says so" grep -q 'a client is refused: the TLS handshake failed' "$dir/b.log"
	check "who speaks no TLS gets no answer" no_answer
	check "without a key of ours there is no TLS" no_certificate
	check "who is silent is let go" silent
	check "and b is well" on a peer check host-b
}
no_answer() { ! call list | socat -t 3 - TCP:127.0.0.1:$port_b | grep -a result; }
no_certificate() {
	! gnutls-cli --insecure -p $port_b 127.0.0.1 </dev/null >"$dir/out" 2>&1
}
silent() {
	local began=$SECONDS
	socat -u TCP:127.0.0.1:$port_b,shut-none - >"$dir/out" 2>&1 || true
	[ $((SECONDS - began)) -ge 8 ] && [ $((SECONDS - began)) -le 30 ]
}

bad_input() {
	check_fails "no address" 2 "E_USAGE: .*no address" on a peer pair host-c nowhere
	check_fails "no port" 2 "E_USAGE: .*no address" on a peer pair host-c 10.0.0.1:99999
	check_fails "no name" 2 "E_USAGE: .*no name of a host" on a peer pair a:b 10.0.0.1:1
	check_fails "itself" 2 "E_USAGE: .*is this one" on a peer pair host-a 10.0.0.1:1
	check_fails "a host that is known" 3 "E_EXISTS: .*known already" on a peer pair host-b 10.0.0.1:1
	check_fails "no key" 2 "E_USAGE: there is no key" on a peer add host-c 10.0.0.1:1
	check_fails "half a key" 2 "E_USAGE: the key of host-c is none" half_a_key
	check_fails "no verb" 2 "unknown verb" on a peer frob host-b
	check_fails "too much" 2 "one NAME is wanted" on a peer check host-b host-c
	check_fails "nobody listens there" 7 "E_UNREACHABLE: cannot connect" to_nobody
	check "none of it is known" answered '^1$' count_peers
}
half_a_key() { on a peer add host-c 10.0.0.1:1 <<<0123456789abcdef; }
to_nobody() {
	on a peer pair host-c 127.0.0.1:1 >/dev/null && on a peer check host-c
	local status=$?
	on a peer remove host-c >/dev/null
	return $status
}
count_peers() { on a peer list --json | jq '.peers | length'; }

changes() {
	check "b starts again" restart_b --listen 127.0.0.1:$port_b
	check "and still knows a" on a peer check host-b
	printf 'rubbish' >"$dir/b/state/peers/host-z.json"
	rm "$dir/b/state/peers/keys" # a power cut came between the two
	check "b starts with a damaged file and without its keys" restart_b --listen 127.0.0.1:$port_b
	check "that is told" grep -q 'host-z.json is damaged' "$dir/b.log"
	check "a is let in" on a peer check host-b
	check "a is removed while it is connected" removed_meanwhile
	check_fails "and let in no more" 3 "E_ACCESS" on a peer check host-b
	check_fails "b's other half is refused, too" 4 E_NOT_FOUND on b peer check host-a
	check "they are paired anew, from b" on b peer pair host-a 127.0.0.1:$port_a
	sed -i 's/^  //' "$dir/out"
	sed -n 's/.*<<<//p' "$dir/out" >"$dir/key"
	check_fails "a has an old key" 3 "E_ACCESS: .*another key for our name" on a peer check host-b
	check "it is replaced, from a file" on a peer add host-b 127.0.0.1:$port_b --replace \
		--key-file "$dir/key"
	check "a reaches b" on a peer check host-b
	check "b starts without --listen" restart_b
	check_fails "and is reached by nobody" 7 E_UNREACHABLE on a peer check host-b
	check "but reaches others" on b peer check host-a
	check_fails "its address must be said then" 2 "say where host-c reaches this host" \
		on b peer pair host-c 127.0.0.1:1
	check "and is printed" answered "add host-b 10.9.8.7:55 <<<" \
		on b peer pair host-c 127.0.0.1:1 --address 10.9.8.7:55
	stop_host b
	stop_host a
}
restart_b() { stop_host b; start_host b "$@"; }
removed_meanwhile() {
	{
		echo "$hello"
		sleep 1
		on b peer remove host-a >"$dir/removed"
		call ping
		echo
		sleep 0.5
	} | AFTER=0 gnutls-cli --pskusername host-a --pskkey "$key" --priority \
		'NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK' -p $port_b 127.0.0.1 >"$dir/said" 2>&1
	cat "$dir/said"
	grep -q '"name":"host-b"' "$dir/said" && grep -q 'does not know the host that calls' "$dir/said"
}

pairing
strangers
bad_input
changes
