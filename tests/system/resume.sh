#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk's process dies, and another one serves the disk: what the daemon then has resumed, and what
# not, with a virsh that says what the test wants. libvirt_guest.sh has the same with a real libvirtd.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have jq qemu-io || { skip "what is resumed" "jq, qemu-io"; exit; }
fake=$dir/libvirt
mkdir "$dir/bin" "$fake"
cat >"$dir/bin/virsh" <<END
#!/bin/bash
[ "\$1 \$2 \$3" = "-q -c qemu:///system" ] || exit 2
cd "$fake" || exit
case \$4 in
list)
	said=\$(<domains)
	touch asked
	while [ -e held ]; do sleep 0.02; done
	echo "\$said"
	;;
dumpxml) cat xml ;;
domstate) if [ -s domains ]; then cat state; else echo "shut off (destroyed)"; fi ;;
domblkerror) cat errors ;;
resume) echo >>resumed; cp after state ;;
*) exit 1 ;;
esac
END
chmod +x "$dir/bin/virsh"
export PATH=$dir/bin:$PATH

domain() { # [INSIDE THE SOURCE]
	echo "<domain><name>guest</name><devices><disk type='file'><source file='/x'/><target dev='vdb'/></disk>"
	for name in web db; do
		echo "<disk type='network'><source protocol='nbd' name='$name'>" \
			"<host transport='unix' socket='$(disk_socket $name)'/>${1:-}</source>" \
			"<target dev='$([ $name = web ] && echo vda || echo vdc)'/></disk>"
	done
	echo "</devices></domain>"
}
is() { echo "$1" >"$fake/state"; }
errors() { printf '%s\n' "$@" >"$fake/errors"; }
resumed() { wc -l <"$fake/resumed"; }
has_resumed() { [ "$(resumed)" -eq "$1" ]; }
helper() { pgrep >/dev/null -f "blockmirror .*$BLOCKMIRROR_RUN_DIR.* hook resume"; }
not() { ! "$@"; }

# dies: web's process does, and the domain is as it was said. What watched before has ended.
dies() {
	: >"$fake/domains"
	wait_for 10 not helper || return
	: >"$fake/resumed"
	rm -f "$fake/asked"
	echo guest >"$fake/domains"
	kill_disk web && wait_for 10 is_served web
}
is_served() { [ "$(show "$1" .role)" = active ] && [ "$(show "$1" .pid)" != "$disk_pid" ]; }
# Each look of it takes what virsh takes; there were several.
left_alone() { sleep 1.5; has_resumed 0; }

daemon() { # OPTION…
	: >"$dir/daemon.log"
	log=$dir/daemon.log spawn "$BUILD/blockmirrord" "$@"
	daemon=$pid
	wait_for 10 grep -q ^ready "$dir/daemon.log"
}

end_disks() { for name in web db; do kill -KILL "$(show $name .pid)"; done; }
told_once() { [ "$(cat "$dir/told")" = web ]; }

domain >"$fake/xml"
is running
echo running >"$fake/after"
errors "vda: unspecified error"
: >"$fake/domains"
check "the daemon runs" daemon
check "a disk is served" "$bm" serve web "$dir/web.img" --create 4M
check "another one, too" "$bm" serve db "$dir/db.img" --create 4M
on_exit end_disks

is "paused (user)"
check "paused by an administrator" dies
check "it is left alone" left_alone
is "paused (I/O error)"
check "but watched: once it is stopped for an error, it is resumed" wait_for 5 has_resumed 1
check "the log says so" wait_for 5 grep "domain guest, stopped by an error of disk web, goes on" "$dir/daemon.log"

is "paused (I/O error)"
errors "vda: unspecified error" "vdc: unspecified error"
check "two of ours have failed" dies
check "it is resumed" wait_for 5 has_resumed 1

is "paused (I/O error)"
errors "vda: unspecified error" "vdb: unspecified error"
check "a disk that is not ours has failed, too" dies
check "it is left alone" left_alone

errors "vda: no space"
check "its storage is full" dies
check "it is left alone" left_alone

errors "No errors found"
check "none of its disks has failed" dies
check "it is left alone" left_alone

# In this order: who watches still must not see an error of a machine that does not wait.
domain "<reconnect delay='30'/>" >"$fake/xml"
errors "vda: unspecified error"
check "QEMU waits for the connection itself" dies
check "somebody looks" wait_for 5 test -e "$fake/asked"
check "and does not watch" wait_for 5 not helper
check "it is left alone" has_resumed 0
domain >"$fake/xml"

# One that looked while there was no such domain has not said the last word.
end_once_more() {
	: >"$fake/domains"
	wait_for 10 not helper || return
	: >"$fake/resumed"
	rm -f "$fake/asked"
	is "paused (I/O error)"
	touch "$fake/held"
	kill_disk web && wait_for 10 is_served web && wait_for 5 test -e "$fake/asked" || return
	echo guest >"$fake/domains"
	kill_disk web && wait_for 10 is_served web
	rm "$fake/held"
}
check "its process ends while somebody looks for a domain that was not there yet" end_once_more
check "it is resumed" wait_for 5 has_resumed 1

# A client is there, and yet the machine is stopped each time.
is "paused (I/O error)"
echo "paused (I/O error)" >"$fake/after"
check "an error that is the storage's" dies
lib_serve "$dir/held.sock" qemu-nbd -t -f raw -k "$dir/held.sock" "$(disk_uri web)"
check "it stays stopped" wait_for 20 grep "domain guest stays stopped: disk web is served" "$dir/daemon.log"
echo "# resumed $(resumed) times"
check "after three times with the connection" test "$(resumed)" -ge 3
check "nobody watches" wait_for 5 not helper
stop "$pid"
echo running >"$fake/after"

: >"$fake/domains"
check "the domain ends" wait_for 10 not helper
stop "$daemon"
cat >"$dir/bin/other" <<-END
	#!/bin/sh
	echo "\$*" >>"$dir/told"
END
chmod +x "$dir/bin/other"
check "with a program of the administrator's" daemon --resume-with other
check "it dies" dies
check "that is called, with the disk's name" wait_for 5 told_once
check "libvirt is not asked" has_resumed 0
stop "$daemon"
check "and with none" daemon --resume-with none
is "paused (I/O error)"
check "it dies" dies
check "nothing is" left_alone
stop "$daemon"
