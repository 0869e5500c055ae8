# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests of TLS: certificates and keys, made on the spot.

# certify DIR NAME CA-DIR LINE…: DIR/NAME-key.pem, and DIR/NAME-cert.pem signed by CA-DIR's authority
# (by itself when CA-DIR is empty), with these lines of certtool's template. It is three days old already,
# if these say nothing else: clocks differ.
certify() {
	local folder=$1 name=$2 ca=$3
	shift 3
	[[ $* == *activation_date=* ]] || set -- "$@" "activation_date=$(date_in -3days)"
	printf '%s\n' "$@" expiration_days=9 >"$dir/$name.cfg"
	mkdir -p "$folder"
	certtool --generate-privkey --key-type ecdsa --outfile "$folder/$name-key.pem" 2>>"$dir/log"
	if [ -n "$ca" ]; then
		certtool --generate-certificate --template "$dir/$name.cfg" \
			--load-privkey "$folder/$name-key.pem" --load-ca-certificate "$ca/ca-cert.pem" \
			--load-ca-privkey "$ca/ca-key.pem" --outfile "$folder/$name-cert.pem"
	else
		certtool --generate-self-signed --template "$dir/$name.cfg" \
			--load-privkey "$folder/$name-key.pem" --outfile "$folder/$name-cert.pem"
	fi 2>>"$dir/log"
}

# date_in TIME: as such a template has it.
date_in() { date -u -d "$1" +'"%Y-%m-%d %H:%M:%S"'; }

# make_authority DIR
make_authority() {
	certify "$1" ca "" "cn=authority" ca cert_signing_key crl_signing_key
}

# revoke CA-DIR FILE CERTIFICATE…: FILE says that these were revoked; for $DAYS days.
revoke() {
	local ca=$1 file=$2 arguments=() one
	shift 2
	for one; do arguments+=(--load-certificate "$one"); done
	printf '%s\n' "crl_next_update=${DAYS:-5}" crl_number=1 >"$dir/crl.cfg"
	certtool --generate-crl --template "$dir/crl.cfg" --load-ca-privkey "$ca/ca-key.pem" \
		--load-ca-certificate "$ca/ca-cert.pem" "${arguments[@]}" --outfile "$file.new" 2>>"$dir/log" &&
		mv "$file.new" "$file"
}

# make_keys FILE USER…: new keys, the old ones are gone; as an administrator would, in one step.
make_keys() {
	local file=$1 user
	shift
	for user; do
		echo "$user:$(od -An -N 32 -tx1 /dev/urandom | tr -d ' \n')"
	done >"$file.new"
	chmod 600 "$file.new"
	mv "$file.new" "$file"
}

# start_nbds COMMAND…: a server that prints "ready URI"; $uri.
start_nbds() {
	: >"$dir/ready"
	log=$dir/ready spawn "$@"
	wait_for 10 grep -q '^ready' "$dir/ready" || { cat "$dir/ready" >>"$dir/log"; return 1; }
	uri=$(sed -n 's/^ready //p' "$dir/ready")
}

# port_of URI
port_of() { sed 's,.*:\([0-9]*\)/.*,\1,' <<<"$1"; }
