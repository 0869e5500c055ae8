#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Disks on storage that both hosts reach (a path, an NBD server, an iSCSI unit) pass from one to the
# other and back, and nothing is copied: one of the two has it open for writing at any time, what is
# not the same storage is found out, and what is not allowed is not opened. shared_death.sh has those
# who die on the way.
# shellcheck source-path=SCRIPTDIR source=shared.bash
. "$(dirname "$0")/shared.bash"

have nbdinfo qemu-nbd jq || { skip "disks on storage of both hosts" "libnbd-bin, qemu-utils, jq"; exit; }
need_hosts
BEFORE=0.3 AFTER=0.3 kind=''

begin() {
	check "two hosts are paired" hosts_up
	check "they have a folder in common" pool_up
	make_image "$dir/disk.img"
	check "a serves a disk there" served
}
served() { cp --sparse=always "$dir/disk.img" "$(in_pool disk.img)" && on a serve disk "$pool/disk.img"; }

refusals() {
	check_fails "without a word it is copied as ever, and where to is not allowed" 3 "E_ACCESS: .*--receive" \
		bm_on a migrate arm disk --to host-b
	check_fails "what a may have opened b has to say" 3 "E_ACCESS: .*peer allow host-a --shared $pool/disk.img" shares a b
	check "other folders are" allow b a "$dir/elsewhere" "$store"
	check_fails "and no more than these" 3 "E_ACCESS" shares a b
	check_fails "nor by a path that leads out of them" 3 "E_ACCESS" shares a b "=$store/../pool/disk.img"
	check_fails "nor a server" 3 "E_ACCESS" shares a b =nbd://10.77.0.1:10809/
	on b cp --sparse=always --preserve=xattr "$pool/disk.img" "$store/copy.img"
	check_fails "a copy, with all its attributes, is another file" 1 "E_FOREIGN: .*is not the file that host host-a has" \
		shares a b "=$store/copy.img"
	on b truncate -s 1M "$store/small.img"
	check_fails "so is a smaller one" 3 "E_SIZE: .*was cut" shares a b "=$store/small.img"
	check_fails "one that is not there" 3 "E_ACCESS" shares a b "=$store/none.img"
	check "nothing is left of that on b" has_none b
	check "nor on a" no_offer a
	check "the pool is allowed to both" allow_pool
	check_fails "who is to have it is to be said" 2 "--to HOST" bm_on a hand-over disk --shared
	check_fails "and what is copied is not shared" 2 "no --into" \
		bm_on a migrate arm disk --to host-b --shared --into /tmp
	}

# There by a first write, back by hand, after a guest has worked; several times with LONG=1.
rounds() { # WORD…: of hand-over, after --to HOST
	local i
	for ((i = 0; i < ${LONG:+3}+0 || i < 1; i++)); do
		loaded a b "$@"
		check "$kind: b is armed again" bm_on a migrate arm disk --to host-b "$@"
		check "$kind: a guest there sees what is there" all_on b
		check "$kind: its first write has the disk" writes b
		passed a b
		[ -z "${LONG:-}" ] || loaded b a "$@"
		check "$kind: it is handed back" bm_on b hand-over disk --to host-a "$@"
		passed b a
	done
	check "$kind: what no guest wrote, too" rest_fits a
}
loaded() { # FROM TO WORD…
	check "$kind: a guest on $1" on "$1" start_load disk --initial any
	check "$kind: it works" on "$1" works
	check "$kind: $2 is armed" bm_on "$1" migrate arm disk --to "host-$2" "${@:3}"
	check_fails "$kind: a guest that writes keeps the disk" 3 "E_SPLIT: .*both run, and this one keeps it" \
		bm_on "$1" hand-over disk --to "host-$2" "${@:3}"
	check "$kind: and has noticed nothing" on "$1" end_load
	check "$kind: $1 has it" one_has "$1" "$2"
}
passed() { # FROM TO
	check "$kind: $2 has it, and nobody else" one_has "$2" "$1"
	check "$kind: every sector is there" all_on "$2"
	check "$kind: $1 has no disk any more" wait_for 10 has_none "$1"
}
rest_fits() { cmp -i $half -n $half <(on "$1" nbdcopy "$(nbd_uri "$dir/$1/run/disks/disk.nbd" disk)" -) "$dir/disk.img"; }

# While b has it.
by_path() {
	kind=path rounds --shared
	check "b is armed" bm_on a migrate arm disk --to host-b --shared
	check "a goes on" writes a
	check_fails "a must not move what is offered" 3 "E_BUSY: .*migrate disarm disk" bm_on a relocate disk "$pool/x.img"
	check "it is taken back" bm_on a migrate disarm disk
	check "b has no standby any more" has_none b
	check "the image is where it was" [ -s "$(in_pool disk.img)" ]
	check "a has it" one_has_alone a
	check "b has it by another path" bm_on a hand-over disk --to host-b "--shared=$other/disk.img"
	check "and says so" [ "$(on b show disk .uri)" = "$other/disk.img" ]
	check "a has no disk any more" wait_for 10 has_none a
	check_fails "a does not serve it by mistake" 3 "E_RETIRED: .*is on host host-b since generation" \
		bm_on a serve disk "$pool/disk.img"
	check_fails "not by another name either" 3 "E_OWNED|E_RETIRED|E_LOCKED" bm_on a serve new "$pool/disk.img"
	check "nothing is left beside the image" [ "$(on b getfattr -d --absolute-names "$other/disk.img" | grep -c ^user.blockmirror)" = 1 ]
	check "it moves on, as any disk" bm_on b relocate disk "$pool/moved.img" --guest-latency off
	check "and passes from there" bm_on b hand-over disk --to host-a --shared
	check "a has it" one_has a b
	check "all is there" all_on a
	check "it is stopped" wait_for 10 bm_on a stop disk
	check "and forgotten" forget_all
}

over_nbd() {
	start_server "$dir/disk.img" || { not_ok "the server starts" "$dir/log"; return; }
	check "a serves a disk of a server" on a serve disk "$uri"
	check_fails "b does not ask servers for a" 3 "E_ACCESS: .*--shared $uri" shares a b
	check "it does that one" allow_uri "${uri%/}"
	kind=NBD rounds # found out by the name
	start_server "$dir/other.img" 10810 || { not_ok "another server starts" "$dir/log"; return; }
	check "another server is allowed, too" allow b a nbd://10.77.0.1:10810
	check_fails "what it has is something else" 1 "E_FOREIGN: .*nothing that was looked at is the same" \
		bm_on a migrate arm disk --to host-b "--shared=$uri"
	check_fails "a server of b's own is not asked by a's name" 2 "with --shared=URI" arm_local
	check "it is stopped" wait_for 10 bm_on a stop disk
	check "and forgotten" forget_all
}
# A socket is another one on each host.
arm_local() {
	truncate -s 8M "$dir/local.img"
	spawn_on a qemu-nbd -k "$dir/local.sock" -t -f raw "$dir/local.img"
	wait_for 5 lib_listens "$dir/local.sock" "$pid"
	bm_on a serve local "nbd+unix:///?socket=$dir/local.sock" >>"$dir/log" 2>&1
	bm_on a migrate arm local --to host-b
	local status=$?
	bm_on a stop local && bm_on a forget local
	return $status
}

over_iscsi() {
	have tgtd tgtadm || { skip "an iSCSI unit of both hosts" "tgt"; return; }
	start_target || { not_ok "the target starts" "$dir/log"; return; }
	qemu-img convert -U -n -O raw "$dir/disk.img" "$dir/tgt/lun1.1.img"
	check "a serves a disk of an iSCSI target" on a serve disk "$uri"
	check "it is allowed" allow_uri "${uri%%/iqn*}"
	kind=iSCSI rounds
	check "it is stopped" wait_for 10 bm_on a stop disk
}

begin
refusals
by_path
over_nbd
over_iscsi
