# SPDX-License-Identifier: BSD-3-Clause
"""Clients that begin the handshake of TLS with blockmirror-nbd and do not end it.

half_handshakes.py SOCKET PID       they go, or are killed, anywhere in it: nothing is left behind
half_handshakes.py SOCKET PID slow  they stay, and send a byte now and then: they are sent away
"""

import os
import signal
import socket
import ssl
import struct
import sys
import time

path, pid = sys.argv[1], int(sys.argv[2])


def starttls():
    """A connection after the acknowledged STARTTLS."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect(path)
    greeting = b""
    while len(greeting) < 18:
        greeting += s.recv(18 - len(greeting))
    s.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 5, 0))
    reply = b""
    while len(reply) < 20:
        reply += s.recv(20 - len(reply))
    assert struct.unpack(">QIII", reply) == (0x3E889045565A9, 5, 1, 0), reply
    return s


def client_hello():
    """What a client of TLS says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    tls = context.wrap_bio(incoming, outgoing)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def used():
    """The server's descriptors, and its resident memory in kB."""
    with open(f"/proc/{pid}/status") as status:
        rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return len(os.listdir(f"/proc/{pid}/fd")), rss


def settled(limit):
    """Waits until the server has no more descriptors than that."""
    end = time.monotonic() + 10
    while used()[0] > limit:
        assert time.monotonic() < end, f"{used()[0]} descriptors, {limit} expected"
        time.sleep(0.05)


def go_anywhere():
    hello = client_hello()
    before = used()[0]
    for turn in range(3):
        for cut in range(0, len(hello) + 1, 7):
            s = starttls()
            s.sendall(hello[:cut])
            s.close()
        if turn == 0:
            settled(before)
            rss = used()[1]
    settled(before)
    assert used()[1] < rss + 4096, f"{used()[1]} kB, {rss} kB after the first turn"


def be_killed():
    """Clients that are killed, with the handshake half done."""
    before = used()[0]
    children = []
    for _ in range(20):
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            s = starttls()
            s.sendall(client_hello()[:200])
            os.write(write_end, b".")
            time.sleep(60)
            os._exit(0)
        os.read(read_end, 1)
        os.close(read_end)
        os.close(write_end)
        children.append(child)
    assert used()[0] >= before + 20
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    settled(before)


def be_slow():
    """A limit that every byte put off would be none."""
    hello = client_hello()
    start = time.monotonic()
    connections = [starttls() for _ in range(10)]
    at, gone = 0, 0
    while gone < len(connections) and time.monotonic() < start + 10:
        for s in connections:
            if s.fileno() < 0:
                continue
            try:
                s.sendall(hello[at:at + 1])
            except OSError:
                s.close()
                gone += 1
        at += 1
        time.sleep(0.1)
    took = time.monotonic() - start
    assert gone == len(connections) and 0.9 < took < 4, f"{gone} gone after {took:.1f} s"


if len(sys.argv) > 3:
    be_slow()
else:
    go_anywhere()
    be_killed()
