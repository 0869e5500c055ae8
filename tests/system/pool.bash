# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced, after machine.bash, by tests of a machine of which both hosts reach disk1's storage: a folder that both
# have.
#
#	machine_up pool_up
#	check "disk1 is on storage of both hosts" moves_to "$pool/disk1.img"

pool=$dir/pool

# One file system, mounted by both hosts.
pool_up() {
	local device
	mkdir -p "$pool"
	truncate -s 1G "$dir/pool.img" && mkfs.ext4 -q "$dir/pool.img" &&
		on a mount -o loop "$dir/pool.img" "$pool" && on_exit pool_down &&
		device=$(on a findmnt -n -o SOURCE "$pool") && on b mount "$device" "$pool" &&
		bm_on b peer allow host-a --receive "$store" --receive "$pool" --shared "$pool" &&
		bm_on a peer allow host-b --receive "$store" --receive "$pool" --shared "$pool"
}
pool_down() {
	on b umount -l "$pool"
	on a umount -l "$pool"
} >>"$dir/log" 2>&1
in_pool() { echo "/proc/${host_holder[a]}/root$pool/$1"; } # as in_store
# moves_to IMAGE: disk1 has its storage there.
moves_to() { bm_on a relocate disk1 "$1" --overwrite --guest-latency off && bm_on a job wait disk1 --for released; }

# writers: how many processes of disks have the image open for writing; while it passes, never two.
writers() {
	local p fd flags comm n=0 image
	image=$(in_pool disk1.img)
	for p in /proc/[0-9]*; do
		read -r comm 2>/dev/null <"$p/comm" && [ "$comm" = blockmirror-dis ] || continue
		for fd in "$p"/fd/*; do
			[ "$fd" -ef "$image" ] || continue
			{ read -r _ && read -r _ flags; } 2>/dev/null <"$p/fdinfo/${fd##*/}" || continue
			[ $((flags & 3)) -eq 0 ] || { n=$((n + 1)); break; }
		done
	done
	echo $n
}

# disk1 is read where it is; else as sound_machine.
sound_both() { sound_shared "$1" "$(in_pool disk1.img)"; }
sound_shared() { # HOST IMAGE
	local status=0 i
	machine_qmp "$1" stop >/dev/null || return
	"$records" check "$(in_store "$1" disk0.img)" "$console.0" || status=1
	"$records" check "$2" "$console.1" || status=1
	for i in 0 1; do
		in_order $i || status=1
		! grep -aE 'I/O error|ERROR|BAD' "$console.$i" || status=1
	done
	machine_qmp "$1" cont >/dev/null && return $status
}
