#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Records what real clients say to our server, as seeds of tests/fuzz/corpus: record.sh [FOLDER].
# A whole conversation is one of nbd_handshake; what comes after the handshake is one of
# nbd_transmission. What is recorded depends on the clients' versions: look before it is committed.
set -eu
cd "$(dirname "$0")/../.."
BUILD=$(realpath "${BUILD:-build}") corpus=$(realpath "${1:-tests/fuzz/corpus}")
dir=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; rm -rf "$dir"' EXIT
mkdir -p "$corpus/nbd_handshake" "$corpus/nbd_transmission"

"$BUILD/blockmirror-nbd" --unix "$dir/server" mem:1049088 >"$dir/ready" &
pids+=($!)
until [ -s "$dir/ready" ]; do sleep 0.05; done

# split NAME: $dir/said becomes NAME in both corpora, behind the bytes that the targets begin with.
split() {
	/usr/bin/python3 - "$dir/said" "$corpus" "$1" <<'END'
import struct, sys
said, corpus, name = open(sys.argv[1], "rb").read(), sys.argv[2], sys.argv[3]
open(f"{corpus}/nbd_handshake/{name}", "wb").write(b"\0" + said)
at, what = 4, 0
while said[at:at + 8] == b"IHAVEOPT":
    option, length = struct.unpack(">II", said[at + 8:at + 16])
    at += 16 + length
    what |= {1: 8, 8: 1, 10: 4}.get(option, 0)
    if option in (1, 7):
        open(f"{corpus}/nbd_transmission/{name}", "wb").write(bytes([32, what, 0]) + said[at:])
        break
END
	echo "$1: $(stat -c %s "$dir/said") bytes"
}

# record NAME COMMAND…: the client's half of the first connection to $uri.
record() {
	local name=$1
	shift
	rm -f "$dir/said" "$dir/socket"
	socat -r "$dir/said" "UNIX-LISTEN:$dir/socket" "UNIX-CONNECT:$dir/server" &
	pids+=($!)
	until [ -S "$dir/socket" ]; do sleep 0.05; done
	"$@" >"$dir/out" 2>&1 || { cat "$dir/out"; return 1; }
	split "$name"
}

uri="nbd+unix:///?socket=$dir/socket"
record nbdinfo nbdinfo "$uri"
record nbdinfo_list nbdinfo --list "$uri"
record nbdinfo_map nbdinfo --map "$uri"
record qemu_io qemu-io -f raw -c "write -P 7 4k 1k" -c "read 4k 8k" -c "write -z 16k 16k" \
	-c "write -z -u 64k 4k" -c "discard 32k 8k" -c "write -f -P 9 511 10" -c flush "$uri"
record qemu_img_map qemu-img map -f raw "$uri"
head -c 512 /dev/urandom >"$dir/source"
truncate -s 1049088 "$dir/source"
record nbdcopy_write nbdcopy -C 1 -S 512 "$dir/source" "$uri"
record nbdcopy_read nbdcopy -C 1 "$uri" "$dir/copy"
record nbdsh /usr/bin/python3 -c '
import nbd, sys
h = nbd.NBD()
h.set_request_structured_replies(False)
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * 100, 3, nbd.CMD_FLAG_FUA)
h.pread(1000, 0)
h.zero(4096, 1, nbd.CMD_FLAG_NO_HOLE)
h.cache(512, 0)
h.trim(8192, 4096)
for call in (lambda: h.pread(512, 1 << 40), lambda: h.pwrite(b"y", (1 << 63) - 1)):
    try:
        call()
    except nbd.Error:
        pass
h.shutdown()' "$uri"
record nbd_export_name /usr/bin/python3 -c '
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.recv(18, socket.MSG_WAITALL)
s.sendall(struct.pack(">I", 1) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
s.recv(134, socket.MSG_WAITALL)
s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 512))
s.recv(16 + 512, socket.MSG_WAITALL)
s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 2, 0, 0))
s.recv(1)' "$dir/socket"
