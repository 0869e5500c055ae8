#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A client is cut off with writes in flight in a slow device, and one more in its socket. A new one
# writes the same block. Without sessions (docs/nbd.md) the old write lands on top of the new one;
# with them it never does. Then the same for a mirror whose target is slow for a while.
# shellcheck source-path=SCRIPTDIR/../system source=disk.bash
. "$(dirname "$0")/../system/disk.bash"

python=${PYTHON:-/usr/bin/python3}
have "$python" qemu-nbd nbdcopy jq || { skip "stale writes" "python3, qemu-utils, libnbd-bin, jq"; exit; }
"$python" -c 'import nbd' 2>/dev/null || { skip "stale writes" "python3-libnbd"; exit; }

# URI OLD NEW: a client of epoch OLD (0: without a session) fills the connection's 128 requests and
# writes "A" behind them; it is cut off. One of epoch NEW writes "B" to that block, and prints what is
# there when the old requests are over, and how many ms it took to be let in.
cat >"$dir/cut.py" <<'END'
import nbd, os, signal, sys, time
uri, old, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def connect(epoch):
    h = nbd.NBD()
    context = "blockmirror:session:writer:%016x" % epoch
    if epoch:
        h.add_meta_context(context)
    h.connect_uri(uri)
    assert not epoch or h.can_meta_context(context)
    return h

def be_cut_off(sent):
    h = connect(old)
    for i in range(128):
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"o" * 4096)), i * 4096)
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"A" * 4096)), 8 << 20)
    while h.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
        h.poll(-1)
    os.write(sent, b"!")
    signal.pause()

sent = os.pipe()
child = os.fork()
if not child:
    try:
        be_cut_off(sent[1])
    finally:
        os._exit(1)
os.close(sent[1])
try:
    if os.read(sent[0], 1) != b"!":
        raise SystemExit("the first client failed")
    os.kill(child, signal.SIGSTOP)  # its connection is there, and takes replies
    began = time.monotonic()
    h = connect(new)
    took = time.monotonic() - began
    h.pwrite(b"B" * 4096, 8 << 20)
    h.flush()
    assert h.pread(4096, 8 << 20) == b"B" * 4096
    time.sleep(4)
    block = h.pread(4096, 8 << 20)
    print(chr(block[0]) if len(set(block)) == 1 else "torn", int(took * 1000))
finally:
    os.kill(child, signal.SIGKILL)
END
# cut OLD NEW: what is in the block at last ($block), and what it took to be let in ($took).
cut() {
	local line
	block='' took=''
	line=$(timeout 60 "$python" "$dir/cut.py" "$uri" "$1" "$2") || return
	read -r block took <<<"$line"
	echo "the block holds $block, it took $took ms to be let in"
}
truncate -s $((16 * M)) "$dir/slow.img"
check "a server whose device takes 3 s for a write" start_blockmirror_nbd "$dir/s" \
	"fault:op=write,range=0-1M,delay=3s;file:$dir/slow.img"
server=$pid
check "a client without a session is cut off, a new one comes" cut 0 0
result "$([ "$block" = A ]; echo $?)" "the old write lands on top of the new one: that is the danger"
check "a client with a session is cut off, its next session comes" cut 1 2
result "$([ "$block" = B ]; echo $?)" "the new write stays"
result "$([ "${took:-0}" -gt 1000 ]; echo $?)" "it was let in when the device was done with the old ones"
check "the server says so" grep -q 'a newer session takes its place' "$dir/log"
check_fails "the old session does not come in any more" 1 'policy' "$python" -c 'import nbd, sys
h = nbd.NBD()
h.add_meta_context("blockmirror:session:writer:%016x" % 1)
h.connect_uri(sys.argv[1])' "$uri"
stop "$server"

# hang NAME URI: a mirror to URI, whose device takes 6 s for a write while $dir/hang is there; $back is
# how long it took (ms) until the target was back.
hang() {
	local name=$1 began log=$BLOCKMIRROR_RUN_DIR/disks/$1.log
	"$bm" relocate "$name" "$2" --overwrite --switch manual --guest-latency off || return
	began=${EPOCHREALTIME/./}
	touch "$dir/hang"
	wait_for 10 grep -q 'the target is lost' "$log" || return
	rm "$dir/hang"
	wait_for 30 grep -q 'the target is back' "$log" || return
	back=$(((${EPOCHREALTIME/./} - began) / 1000))
	grep 'the target is' "$log"
	"$bm" job wait "$name" --for in-sync
}
is_back() { grep -q "the target is back${2:-}\$" "$BLOCKMIRROR_RUN_DIR/disks/$1.log"; }
image_size=$((64 * M)) half=$((32 * M)) back=0
truncate -s $image_size "$dir/a.img" "$dir/remote.img"
check "a target" start_blockmirror_nbd "$dir/t" "fault:op=write,delay=6s,while=$dir/hang;file:$dir/remote.img"
check "a disk is served" serve disk "$dir/a.img"
start_load disk --iops 0 --sizes 64k:256k
check "its target hangs, is lost, and comes back" hang disk "$uri"
result "$([ "$back" -gt 5500 ]; echo $?)" "not before it was done with the old session ($back ms)"
check "and the mirror knows that it is" is_back disk
check "the guest noticed nothing" end_load
check "it switches" "$bm" switch disk
check "the disk is what was written" state_fits "$(disk_uri disk)"
check "byte for byte" serves disk "$dir/remote.img"
check "it is stopped" unserve disk

truncate -s $image_size "$dir/b.img" "$dir/foreign.img"
check "a foreign server" start_qemu_nbd "$dir/f" "$dir/foreign.img"
foreign=$pid
check "another disk is served" serve other "$dir/b.img"
check "it is mirrored there" "$bm" relocate other "$uri" --overwrite --switch manual
stop "$foreign"
lost() { grep -q 'the target is lost' "$BLOCKMIRROR_RUN_DIR/disks/other.log"; }
check "that server dies" wait_for 10 lost
check "and begins anew" start_qemu_nbd "$dir/f" "$dir/foreign.img"
check "it is back, and known to know no sessions" wait_for 20 is_back other '; it does not tell.*'
check "the mirror goes on" "$bm" job wait other --for in-sync
check "and switches" "$bm" switch other
check "it is stopped, too" unserve other
