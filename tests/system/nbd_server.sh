#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# blockmirror-nbd with the clients that people use: libnbd's tools, QEMU's, fio. Speaks TAP.
set -u
cd "$(dirname "$0")/../.." || exit 1
server=$(realpath "${BUILD:-build}")/blockmirror-nbd
python=${PYTHON:-/usr/bin/python3}
dir=$(mktemp -d)
pid=
count=0

stop() {
	[ -n "$pid" ] && kill "$pid" 2>/dev/null && wait "$pid"
	status=$?
	pid=
	return $status
}
finish() {
	[ -n "$pid" ] && kill -KILL "$pid" 2>/dev/null
	rm -rf "$dir"
	echo "1..$count"
}
trap finish EXIT

# result STATUS NAME
result() {
	count=$((count + 1))
	if [ "$1" -eq 0 ]; then
		echo "ok $count - $2"
	else
		echo "not ok $count - $2"
		tail -n 20 "$dir/out" | sed 's/^/# /'
	fi
}

# check NAME COMMAND…: it must succeed, in time. What it printed is in $dir/out.
check() {
	local name=$1 limit=(timeout 120)
	shift
	[ "$(type -t "$1")" = function ] && limit=()
	"${limit[@]}" "$@" >"$dir/out" 2>&1
	result $? "$name"
}

# fails NAME STATUS TEXT COMMAND…: it must end with that status and one line that has TEXT in it.
fails() {
	local name=$1 expected=$2 text=$3 got
	shift 3
	timeout 20 "$@" >"$dir/out" 2>&1
	got=$?
	[ $got -eq "$expected" ] && [ "$(wc -l <"$dir/out")" -eq 1 ] && grep -qF -- "$text" "$dir/out"
	result $? "$name"
}

# have PROGRAM…: or skip NAME.
have() {
	local name=$1 program
	shift
	for program; do
		command -v "$program" >/dev/null && continue
		count=$((count + 1))
		echo "ok $count - $name # SKIP no $program"
		return 1
	done
}

# serve ARGUMENT…: starts a server, waits until it is ready; $uri is what it says.
serve() {
	rm -f "$dir/ready"
	mkfifo "$dir/ready"
	"$server" "$@" >"$dir/ready" 2>"$dir/server.log" </dev/null &
	pid=$!
	read -r word uri <"$dir/ready"
	[ "$word" = ready ]
}

# nbd PYTHON: a program for libnbd's handle h, connected to $uri.
nbd() {
	"$python" - "$uri" <<-END
		import nbd, os, sys
		h = nbd.NBD()
		$(cat)
	END
}

image=$dir/disk.img source=$dir/source.img socket=$dir/socket size=67108864
dd if=/dev/urandom of="$source" bs=1M count=64 status=none
truncate -s 64M "$image"

# Starting and ending

serve --unix "$socket" --pid-file "$dir/pid" "$image"
result $? "a line says that clients may connect"
[ "$uri" = "nbd+unix:///?socket=$socket" ]
result $? "and where"
[ "$(stat -c %a "$socket")" = 660 ]
result $? "the socket's mode is 0660"
[ "$(cat "$dir/pid")" = "$pid" ]
result $? "the pid file has the process ID"
fails "a socket in use is not taken away" 3 "another process listens there" \
	"$server" --unix "$socket" mem:1M
fails "an image in use is not served twice" 3 "another process has the image open" \
	"$server" --unix "$dir/other" "$image"
[ ! -e "$dir/other" ]
result $? "and no socket is left behind"
stop
result $? "SIGTERM ends it with status 0"
[ ! -e "$socket" ] && [ ! -e "$dir/pid" ]
result $? "and takes the socket and the pid file away"
serve --unix "$socket" mem:1M
kill -KILL "$pid"
wait "$pid" 2>/dev/null
serve --unix "$socket" mem:1M
result $? "a socket that a killed server left behind is replaced"
kill -INT "$pid" && wait "$pid"
result $? "SIGINT ends it with status 0"
pid=

# libnbd's tools

serve --unix "$socket" --export-name "a disk" "$image"
[ "$uri" = "nbd+unix:///a%20disk?socket=$socket" ]
result $? "an export's name is escaped in the URI"
if have "libnbd's tools" nbdinfo nbdcopy; then
	check "nbdinfo" nbdinfo "$uri"
	expected="export=\"a disk\":
export-size: $size (64M)
can_cache: true
can_df: true
can_fast_zero: true
can_flush: true
can_fua: true
can_multi_conn: true
can_trim: true
can_zero: true
is_read_only: false
base:allocation
block_size_minimum: 1
block_size_preferred: 4096
block_size_maximum: 33554432"
	sed 's/^[[:space:]]*//' "$dir/out" >"$dir/info"
	! grep -vxFf "$dir/info" <<<"$expected" >"$dir/out"
	result $? "and all that it should see"
	check "nbdinfo --list" nbdinfo --list "$uri"
	! nbdinfo "nbd+unix:///other?socket=$socket" >"$dir/out" 2>&1
	result $? "another name is another export"
	check "nbdcopy to the server" nbdcopy "$source" "$uri"
	check "nbdcopy from the server" nbdcopy "$uri" "$dir/copy"
	check "and back is what went there" cmp "$source" "$dir/copy"
	stop
	check "nbdcopy starts the server itself" nbdcopy "$source" -- [ "$server" "$image" ]
	check "and what it wrote is in the image" cmp "$source" "$image"
	nbdinfo --size -- [ "$server" --read-only "$image" ] >"$dir/out" 2>&1
	[ "$(cat "$dir/out")" = $size ]
	result $? "nbdinfo starts the server itself, which prints nothing"
	check "nbdcopy from one server to another" \
		nbdcopy -- [ "$server" "$image" ] [ "$server" --create 64M "$dir/second.img" ]
	check "and both images are the same" cmp "$source" "$dir/second.img"
fi
stop

if have "a device that hangs" nbdcopy; then
	serve --unix "$socket" "fault:op=write,drop;mem:64M"
	nbdcopy "$source" "$uri" >"$dir/out" 2>&1 &
	client=$!
	sleep 2
	kill "$pid"
	sleep 0.5
	kill -0 "$pid"
	result $? "SIGTERM waits for a request that the device does not finish"
	stop
	result $? "a second one does not"
	wait $client
	[ $? -eq 1 ]
	result $? "and the client is told"
fi

# QEMU's tools

if have "QEMU's tools" qemu-img qemu-io; then
	rm "$image"
	serve --unix "$socket" --create 64M "$image"
	check "qemu-img convert to the server" qemu-img convert -n -f raw -O raw "$source" "$uri"
	check "qemu-img compare" qemu-img compare -f raw -F raw "$source" "$uri"
	check "qemu-img convert from the server" qemu-img convert -f raw -O raw "$uri" "$dir/copy"
	check "and back is what went there" cmp "$source" "$dir/copy"
	check "qemu-io" qemu-io -f raw -c "write -P 7 1M 3M" -c "read -P 7 1M 3M" \
		-c "write -z 2M 1M" -c "read -P 0 2M 1M" -c "write -z -u 8M 16M" \
		-c "read -P 0 8M 16M" -c "discard 32M 16M" -c "write -f -P 9 511 1025" \
		-c "read -P 9 511 1025" -c "write -P 5 40000001 7" -c "read -P 5 40000001 7" \
		-c "aio_write -P 3 50M 4M" -c "aio_read 30M 8M" -c aio_flush -c flush \
		-c "read -P 3 50M 4M" "$uri"
	! grep -qi "fail\|error" "$dir/out"
	result $? "and it read what it wrote"
	check "qemu-img map" qemu-img map --output=json -f raw "$uri"
	grep -q '"start": 8388608, "length": 16777216,.*"zero": true, "data": false' "$dir/out"
	result $? "sees the hole"
	stop
fi

# fio

# fio_job NAME KEY=VALUE…
fio_job() {
	printf '%s\n' "[$1]" ioengine=nbd "uri=$uri" size=64M "${@:2}" >"$dir/$1.fio"
	timeout 120 fio --aux-path="$dir" --output="$dir/fio.out" "$dir/$1.fio"
}

if have fio fio; then
	serve --unix "$socket" "$image"
	check "fio verifies crc32c" fio_job verify rw=randwrite bsrange=512-128k bs_unaligned=1 \
		iodepth=32 verify=crc32c randseed=1
	fio_job load rw=randrw bs=4k iodepth=32 time_based=1 runtime=30 >"$dir/out" 2>&1 &
	load=$!
	sleep 1
	start=$SECONDS
	stop && [ $((SECONDS - start)) -lt 5 ]
	result $? "SIGTERM under load ends it with status 0, and soon"
	wait $load
	serve --unix "$socket" "$image"
	fio --name=j --ioengine=nbd --uri="$uri" --rw=randrw --bs=64k --iodepth=32 --size=64M \
		--time_based --runtime=30 --thread >"$dir/out" 2>&1 &
	load=$!
	sleep 1
	kill -KILL $load
	wait $load 2>/dev/null
	check "a client that is killed under load leaves the server as it was" \
		fio_job again rw=randwrite bs=4k iodepth=32 io_size=8M verify=crc32c
	[ "$(awk '/VmHWM/ { print $2 }' "/proc/$pid/status")" -lt 100000 ]
	result $? "its memory is bounded"
	stop
fi
# libnbd itself

if "$python" -c "import nbd" 2>/dev/null; then
	serve --unix "$socket" --create 80M "$dir/large.img"
	nbd >"$dir/out" 2>&1 <<-'END'
		h.set_request_structured_replies(False)
		h.connect_uri(sys.argv[1])
		assert not h.get_structured_replies_negotiated()
		h.set_strict_mode(0)
		data = os.urandom(64 << 20)
		h.pwrite(data, 512, nbd.CMD_FLAG_FUA)
		assert h.pread(64 << 20, 512) == data
		assert h.pread(33 << 20, 1000) == data[488:488 + (33 << 20)]
		h.shutdown()
	END
	result $? "64 MiB in one request, with simple replies"
	nbd >"$dir/out" 2>&1 <<-'END'
		h.connect_uri(sys.argv[1])
		h.set_strict_mode(0)
		def error(call, *arguments):
		    try:
		        call(*arguments)
		    except nbd.Error as e:
		        return e.errno
		assert error(h.pread, 512, 80 << 20) == "EINVAL"
		assert error(h.pwrite, bytes(512), 80 << 20) == "ENOSPC"
		assert error(h.pwrite, bytes(65 << 20), 0) in ("EOVERFLOW", "ERANGE")
		assert error(h.pread, 2 << 20, 0, nbd.CMD_FLAG_DF) == "EOVERFLOW"
		assert error(h.trim, 512, 1 << 63) == "EINVAL"
		assert h.pread(512, 0) is not None
		h.shutdown()
	END
	result $? "errors are what the protocol says"
	stop
	serve --unix "$socket" --read-only "$dir/large.img"
	nbd >"$dir/out" 2>&1 <<-'END'
		h.connect_uri(sys.argv[1])
		assert h.is_read_only()
		h.set_strict_mode(0)
		for call in (lambda: h.pwrite(bytes(512), 0), lambda: h.zero(512, 0),
		             lambda: h.trim(512, 0)):
		    try:
		        call()
		        sys.exit("it was written to")
		    except nbd.Error as e:
		        assert e.errno == "EPERM", e.errno
		h.pread(512, 0)
		h.flush()
		h.shutdown()
	END
	result $? "--read-only is"
	stop
	uri=
	SERVER=$server IMAGE=$dir/large.img nbd >"$dir/out" 2>&1 <<-'END'
		h.connect_command([os.environ["SERVER"], "--stdio", os.environ["IMAGE"]])
		h.pwrite(b"x" * 100000, 3)
		assert h.pread(100000, 3) == b"x" * 100000
		h.shutdown()
	END
	result $? "--stdio"
	for address in 127.0.0.1 '[::1]' localhost ''; do
		serve --listen "$address:0" --insecure mem:1M
		nbd >"$dir/out" 2>&1 <<-'END'
			h.connect_uri(sys.argv[1])
			assert h.get_size() == 1 << 20
			h.shutdown()
		END
		result $? "--listen $address:0"
		stop
	done
else
	have "libnbd itself" "python3-libnbd"
fi

# Mistakes

fails "no URI" 2 "URI is missing" "$server"
fails "two URIs" 2 "not several" "$server" --unix "$socket" a b
fails "no way to connect" 2 "--unix PATH" "$server" "$image"
fails "two ways to connect" 2 "only one" "$server" --unix "$socket" --stdio "$image"
fails "an unknown option" 2 "--nonsense" "$server" --nonsense "$image"
fails "no such image" 4 "nothing.img" "$server" --unix "$socket" "$dir/nothing.img"
fails "an image that is none" 3 "directory" "$server" --unix "$socket" "$dir"
fails "an unknown scheme" 2 "unknown scheme" "$server" --unix "$socket" "what:ever"
fails "a size that is none" 2 "--create" "$server" --unix "$socket" --create much "$dir/new"
fails "--create of what is no file" 2 "for files" "$server" --unix "$socket" --create 1M mem:1M
fails "an address without a port" 2 "ADDR:PORT" "$server" --listen localhost "$image"
fails "half a bracket" 2 "brackets" "$server" --listen "[::1:0" "$image"
fails "an IPv6 address without brackets" 2 "brackets" "$server" --listen ::1:0 "$image"
fails "a folder that does not exist" 4 "$dir/no/s" "$server" --unix "$dir/no/s" mem:1M
fails "a pid file that cannot be written" 4 "$dir/no/pid" \
	"$server" --unix "$socket" --pid-file "$dir/no/pid" mem:1M
[ ! -e "$socket" ]
result $? "and no socket is left behind"

# Help

"$server" --help >"$dir/help" && [ "$("$server" --version)" != "" ]
result $? "--help and --version"
