# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests where another manager moves the machine: hosts.bash, and on each host a libvirtd
# and the places that a guest looks for its disks in.
#
#	. "$(dirname "$0")/libvirt.bash"
#	need_hosts
#	need_libvirt
#	check "two hosts are paired" hosts_up
#	check "each has a libvirtd" libvirt_up
#	check "a has a guest" virsh_on a create "$dir/guest.xml"
#	check "it moves" virsh_on a migrate --live guest "$(libvirt_uri b)"
#
# What is served on a host is at $disks_folder/NAME.nbd there, on both hosts alike, as a domain's XML
# needs it. libvirtd says what it does in $dir/HOST/libvirt/log.
# shellcheck source-path=SCRIPTDIR source=hosts.bash
. "$(dirname "${BASH_SOURCE[0]}")/hosts.bash"

disks_folder=/run/blockmirror/disks
declare -A host_libvirtd=()
# What libvirt makes at fixed places, or a folder above them: a host has these empty, for itself.
libvirt_folders=(/run /var/lib /var/cache /var/log)

# need_libvirt: skips the test where there can be no guest that libvirt moves.
need_libvirt() {
	local folder seen=:$dir:$PWD:$BUILD:${GUEST:-}
	have libvirtd virsh qemu-system-x86_64 hostname jq || { skip "libvirt" \
		"libvirt-daemon, libvirt-clients, qemu-system-x86, hostname, jq"; exit; }
	for folder in "${libvirt_folders[@]}"; do
		[[ $seen != *":$folder/"* ]] ||
			{ skip "libvirt" "a host does not see what is in $folder"; exit; }
	done
}

# libvirt_up: each host has a libvirtd of its own, which knows of nothing and leaves nothing behind. It
# has a name of its own, since a machine is not moved to a host with the name of the one that it is
# on. hosts_down ends it, and its guests.
libvirt_up() {
	local host asking=()
	for host in a b; do
		mkdir -p "$dir/$host/libvirt/etc"
		libvirt_settings $host && libvirt_mounts $host || return
		# shellcheck disable=SC2016 # for that shell
		log=$dir/$host/libvirt/log spawn_on $host unshare --uts \
			bash -c 'hostname "$0" && exec "$@"' machine-$host libvirtd --listen
		host_libvirtd[$host]=$pid
	done
	for host in a b; do wait_for 30 libvirt_answers $host || return; done
	# What QEMU can do is found out once, which takes seconds.
	for host in a b; do
		virsh_on $host domcapabilities --virttype qemu >>"$dir/log" 2>&1 &
		asking+=($!)
	done
	for pid in "${asking[@]}"; do wait "$pid" || return; done
}
libvirt_answers() { lib_gone "${host_libvirtd[$1]}" || virsh_on "$1" list; }

libvirt_settings() {
	local etc=$dir/$1/libvirt/etc
	cat >"$etc/libvirtd.conf" <<-END
		listen_tls = 0
		listen_tcp = 1
		listen_addr = "${host_address[$1]}"
		auth_tcp = "none"
		auth_unix_rw = "none"
		host_uuid = "$(cat /proc/sys/kernel/random/uuid)"
	END
	# Nothing but QEMU itself: what keeps guests apart needs a host's services.
	cat >"$etc/qemu.conf" <<-END
		user = "root"
		group = "root"
		security_driver = "none"
		dynamic_ownership = 0
		remember_owner = 0
		cgroup_controllers = []
		namespaces = []
		stdio_handler = "file"
	END
}

libvirt_mounts() {
	local folder
	for folder in "${libvirt_folders[@]}"; do on "$1" mount -t tmpfs tmpfs "$folder" || return; done
	on "$1" mount --bind "$dir/$1/libvirt/etc" /etc/libvirt && libvirt_names "$1" &&
		on "$1" ln -s "$dir/$1/run" "${disks_folder%/*}"
}

# libvirtd does not start without the user that Debian's libvirt-daemon-system makes, and asks for
# the hosts' names, for seconds where nobody answers.
libvirt_names() {
	local folder=$dir/$1/libvirt file host
	cp /etc/passwd /etc/group /etc/hosts "$folder" || return
	getent passwd libvirt-qemu >>"$dir/log" || {
		echo "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin" >>"$folder/passwd"
		echo "libvirt-qemu:x:64055:" >>"$folder/group"
	}
	for host in "${!host_address[@]}"; do
		echo "${host_address[$host]} machine-$host" >>"$folder/hosts"
	done
	for file in passwd group hosts; do
		on "$1" mount --bind "$folder/$file" "/etc/$file" || return
	done
}

# virsh_on HOST ARGUMENT…
virsh_on() { on "$1" virsh -q -c qemu:///system "${@:2}"; }
libvirt_uri() { echo "qemu+tcp://machine-$1/system"; }
