#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine is moved by somebody who knows nothing of its disks, with a plain "virsh migrate --live",
# to a host that does not see their storage: "migrate arm" is all that is said before. No record of
# the guest is lost, no request of it fails, each disk is on exactly one host, and where a migration
# comes to nothing, on the one that it was on. $ROUNDS there and back, by default one, LONG=1: 20; in
# the first and then in every fifth one migrations are cut short at moments chosen by chance.
# shellcheck source-path=SCRIPTDIR source=libvirt.bash
. "$(dirname "$0")/libvirt.bash"

need_hosts
need_libvirt
need_guest
rounds=${ROUNDS:-${LONG:+20}}
disks=(disk0 disk1)
here=a there=b      # where the guest is, where it goes
took=3000           # ms, a migration
held=0 stall=0      # ns, a first write; ms of the guest's time, between two records
arrivals=0 aborts=0

# Where it is

# role HOST DISK: what the record there says; nothing where there is none.
role() { jq -R -r 'fromjson? | .role // "active"' "$dir/$1/state/disks/$2/record" 2>/dev/null; }

# is_here ROLE: the guest and its disks are, and ROLE is what the disks are on the other host.
is_here() {
	local disk
	for disk in "${disks[@]}"; do
		[ "$(role $here "$disk"), $(role $there "$disk")" = "active, $1" ] || {
			echo "$disk: $(role $here "$disk") on $here, $(role $there "$disk") on $there"
			return 1
		}
	done
	[ "$(guests)" = "$here guest running" ] || { guests; return 1; }
}
# guests: what libvirt says of both hosts.
guests() {
	local host
	for host in a b; do virsh_on $host list --all | awk "NF { print \"$host\", \$2, \$3 }"; done
}

# each FILTER TEXT HOST: what is said of each disk there is TEXT.
each() {
	local disk
	for disk in "${disks[@]}"; do
		[ "$(on "$3" show "$disk" "$1")" = "$2" ] || { on "$3" show "$disk" .; return 1; }
	done
}
are_pairs() { each '.job | .phase + "/" + .progress.target' undo-window/in-sync $here; }
is_in_store() {
	local disk
	for disk in "${disks[@]}"; do
		[ "$(on $here show "$disk" .uri)" = "$store/$disk.img" ] || return
	done
}

# Moves

# arm [OPTION…]
arm() { bm_on $here migrate arm "${disks[@]}" --to host-$there --expires 10m "$@"; }
# After a failure all that follows would only be waited for.
may_go_on() { [ "$lib_failed" -eq 0 ] || exit; }
turn() { [ $here = a ] && here=b there=a || here=a there=b; }

# passes NAME [OPTION…]: options of "migrate arm".
passes() {
	local start
	check "$1: it is prepared" arm "${@:2}"
	may_go_on
	start=${EPOCHREALTIME/./}
	check "$1: virsh migrate" virsh_on $here migrate --live guest "$(libvirt_uri $there)"
	took=$(((${EPOCHREALTIME/./} - start) / 1000))
	arrives "$1"
}

arrives() {
	local disk ns
	turn
	check "$1: the guest goes on" goes_on
	check "$1: it is there, and its disks are" wait_for 10 is_here standby
	check "$1: the copies of before are kept equal" wait_for 30 are_pairs
	check "$1: nothing is lost" sound $here
	stall=$(sed -n 's/.*longest stall \([0-9]*\) ms/\1/p' "$dir/out" | sort -n | tail -n 1)
	for disk in "${disks[@]}"; do
		ns=$(on $here show "$disk" .first_write_held_ns)
		[ "$ns" -le "$held" ] || held=$ns
	done
	arrivals=$((arrivals + 1))
}

# aborted NAME HOW [OPTION…]: HOW is a function that ends a migration that runs, which has OPTION….
# Where the migration was quicker, the guest is where it was to go, and nothing else is different.
aborted() {
	local client status disk
	check "$1: it is prepared" arm --overwrite
	may_go_on
	log=$dir/virsh spawn_on $here virsh -q -c qemu:///system migrate --live "${@:3}" guest \
		"$(libvirt_uri $there)"
	client=$pid
	"$2" >>"$dir/log" 2>&1
	wait_for 90 lib_gone "$client" || kill -KILL "$client"
	wait "$client" 2>>"$dir/log"
	status=$?
	lib_forget "$client"
	if [ $status -eq 0 ]; then
		arrives "$1, too late"
		return
	fi
	check "$1: the guest stays, and its disks do" wait_for 30 is_here standby
	check "$1: the guest goes on" goes_on
	check "$1: they are not offered any more" bm_on $here migrate disarm "${disks[@]}"
	check "$1: nor would they be taken" each .gate standby $there
	check "$1: they are where they were" is_in_store
	check "$1: nothing is lost" sound $here
	aborts=$((aborts + 1))
}
# moment MS: sleeps, at most for so long.
moment() {
	local ms=$(($1 * (RANDOM % 1000) / 1000))
	sleep "$((ms / 1000)).$(printf %03d $((ms % 1000)))"
}
# At any moment; before there is a job, none can be aborted. In the second half it may be too late.
by_user() {
	local most=$((took / 2))
	[ -z "${LONG:-}" ] || most=$took
	moment "$most"
	wait_for 60 is_aborted
}
is_aborted() { virsh_on $here domjobabort guest || lib_gone "$client"; }
# While its memory is on its way, slowly: libvirt does not know of a guest that just began to run there.
by_death() {
	wait_for 10 has_arrived
	moment 2000
	kill -KILL "$(on $there cat /run/libvirt/qemu/guest.pid)"
}
by_client() {
	wait_for 10 has_arrived
	moment 2000
	kill -KILL "$client"
}
has_arrived() { on $there test -s /run/libvirt/qemu/guest.pid; }

begin() {
	local disk
	check "a guest is made" make_guest
	check "two hosts are paired" hosts_up
	check "each has a libvirtd" libvirt_up
	check "b lets a put disks there" bm_on b peer allow host-a --receive "$store"
	check "and a lets b" bm_on a peer allow host-b --receive "$store"
	for disk in "${disks[@]}"; do
		check "a serves $disk" on a serve "$disk" "$store/$disk.img" --create 32M
	done
	check "a has the guest" virsh_on a create "$dir/guest.xml"
	check "it boots and writes to both" wait_for 60 ticked 100 100
}

cut_short() {
	aborted "$1: aborted" by_user
	[ -n "${LONG:-}" ] || return
	aborted "$1: the machine there is killed" by_death --bandwidth 8
	aborted "$1: virsh is killed" by_client --bandwidth 8
}

begin
for round in $(seq "${rounds:-1}"); do
	if [ "$round" -eq 1 ]; then
		passes "first"
	else
		passes "$round, $here to $there"
	fi
	[ $((round % 5)) -ne 1 ] || cut_short "$round"
	if [ $((round % 4)) -eq 3 ]; then # and from the beginning
		for disk in "${disks[@]}"; do check "$disk: no copy is kept any more" bm_on $here release "$disk"; done
		check_fails "an old copy is not given up unasked" 3 "E_EXISTS" arm
	fi
	passes "$round, $here to $there" --overwrite
done
check "the guest is ended" virsh_on $here destroy guest
echo "# moved $arrivals times, and $aborts times not; a first write was held for $((held / 1000000)) ms" \
	"at most, and between two records were $stall ms"
