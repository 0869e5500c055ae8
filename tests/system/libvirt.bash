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

# A guest that writes records to two disks, disk0 and disk1, and tells of them on $console.0 and .1.

cache=${GUEST:-$BUILD/guest} records=$BUILD/fixtures/records console=$dir/console
need_guest() {
	have busybox || { skip "a guest" "busybox-static"; exit; }
	if ! fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1; then
		skip "a guest" "no kernel: $(tail -n 1 "$dir/out")"
		exit
	fi
}

guest_files=(init) # beside fixtures/guest's; init.records is this guest's own init
# The kernel unpacks both parts of the initrd; what comes later replaces what was there.
make_guest() {
	install -m 755 tests/system/libvirt_guest.init "$dir/init.records" &&
		install -m 755 "tests/system/${guest_init:-libvirt_guest.init}" "$dir/init" &&
		(cat "$cache/initrd.gz" && cd "$dir" && printf '%s\n' "${guest_files[@]}" | busybox cpio -o -H newc | gzip -1) \
			>"$dir/initrd.gz" 2>>"$dir/log" &&
		sed -e "s#@KERNEL@#$cache/vmlinuz#; s#@INITRD@#$dir/initrd.gz#; s#@CONSOLE@#$console#" \
			-e "s#@DISKS@#$disks_folder#; s#@QEMU@#$(command -v qemu-system-x86_64)#" \
			tests/system/libvirt_guest.xml >"$dir/guest.xml"
}

ticks() { grep -c ^TICK "$console.$1" 2>/dev/null; }
ticked() { [ "0$(ticks 0)" -ge "$1" ] && [ "0$(ticks 1)" -ge "$2" ]; }
goes_on() { wait_for 30 ticked $(($(ticks 0) + 30)) $(($(ticks 1) + 30)); }

# sound HOST: all is there that the guest was told to be written, and it has met no error. It is at rest
# meanwhile: what is in flight is not whole.
sound() {
	local i status=0
	virsh_on "$1" suspend guest || return
	for i in 0 1; do
		"$records" check "$(in_store "$1" "disk$i.img")" "$console.$i" || status=1
		in_order $i || status=1
		! grep -aE 'I/O error|ERROR|BAD' "$console.$i" || status=1
	done
	virsh_on "$1" resume guest && return $status
}

# in_order CONSOLE: one record follows the other. Of two machines that run, both would count.
in_order() {
	local half=0
	[ "$(tail -c 1 "$console.$1" | wc -l)" -eq 1 ] || half=1 # a line that its guest was stopped in
	# shellcheck disable=SC2016 # awk has words in dollars, too
	head -n "-$half" "$console.$1" | awk '/^TICK / { if (last && $2 != last + 1) { print "after record " last ": " $0; bad = 1 } last = $2 }
		END { exit bad }'
}
