# SPDX-License-Identifier: BSD-3-Clause
"""An NBD client that keeps one session and checks it until SIGTERM: session.py SOCKET EXPORT MODE OFFSET

MODE is what it negotiates: simple, structured or extended, the latter two with base:allocation and
the disk's dirty map. It reads what it wrote in the MiB at OFFSET, gets each answer once and with the
ids of its contexts, and lets headers and data come in two halves, some time apart. It never connects
again. Prints how many rounds it made, and exits with 1 when anything was not as it should be.
"""

import random
import signal
import socket
import struct
import sys
import time

path, export, mode, base = sys.argv[1], sys.argv[2].encode(), sys.argv[3], int(sys.argv[4])
READ, WRITE, FLUSH, STATUS = 0, 1, 3, 7
MIB = 1 << 20
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))

s = socket.socket(socket.AF_UNIX)
s.settimeout(30)
s.connect(path)


def receive(length):
    data = bytearray()
    while len(data) < length:
        part = s.recv(length - len(data))
        assert part, "the connection was closed"
        data += part
    return bytes(data)


def send(data):
    """In two halves, every now and then."""
    cut = random.randrange(len(data)) if random.random() < 0.2 else 0
    s.sendall(data[:cut])
    if cut:
        time.sleep(random.choice((0.001, 0.02, 0.1)))
    s.sendall(data[cut:])


def option(number, data=b""):
    """Its answers, as (type, data)."""
    send(struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data)
    answers = []
    while not answers or answers[-1][0] not in (1, *range(1 << 31, (1 << 31) + 20)):
        magic, which, kind, length = struct.unpack(">QIII", receive(20))
        assert magic == 0x3E889045565A9 and which == number, (magic, which)
        answers.append((kind, receive(length)))
    assert answers[-1][0] == 1, answers
    return answers


def text(t):
    return struct.pack(">I", len(t)) + t


def negotiate():
    """The ids of the contexts."""
    ids = []
    receive(18)
    s.sendall(struct.pack(">I", 3))
    if mode != "simple":
        option(11 if mode == "extended" else 8)
        queries = text(b"base:allocation") + text(b"qemu:dirty-bitmap:" + export)
        for kind, data in option(10, text(export) + struct.pack(">I", 2) + queries):
            if kind == 4:
                ids.append(struct.unpack(">I", data[:4])[0])
        assert len(set(ids)) == 2, ids
    option(7, text(export) + struct.pack(">H", 0))
    return sorted(ids)


def request(command, cookie, offset, length, data=b""):
    if mode == "extended":
        flags = 32 if data else 0
        header = struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length)
    else:
        header = struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length)
    send(header + data)


def chunk():
    """(cookie, is it the last one, type, data); a simple reply has no type."""
    magic = struct.unpack(">I", receive(4))[0]
    if magic == 0x67446698:
        error, cookie = struct.unpack(">IQ", receive(12))
        assert not error, f"error {error}"
        return cookie, True, None, b""
    if magic == 0x668E33EF and mode == "structured":
        flags, kind, cookie, length = struct.unpack(">HHQI", receive(16))
    else:
        assert magic == 0x6E8A278C and mode == "extended", hex(magic)
        flags, kind, cookie, _, length = struct.unpack(">HHQQQ", receive(28))
    data = receive(length)
    assert kind < 0x8000, (hex(kind), data)
    return cookie, bool(flags & 1), kind, data


def answer(cookie, length=0):
    """All chunks of one answer: what was read, the contexts that were told of."""
    data, contexts, last = bytearray(length), [], False
    while not last:
        which, last, kind, part = chunk()
        assert which == cookie, f"the answer to {which}, not to {cookie}"
        if kind is None and length:
            data[:] = receive(length)
        elif kind == 1:
            at = struct.unpack(">Q", part[:8])[0] - offset
            data[at : at + len(part) - 8] = part[8:]
        elif kind in (5, 6):
            contexts.append(struct.unpack(">I", part[:4])[0])
    return bytes(data), sorted(contexts)


ids = negotiate()
rounds = 0
while not stop:
    offset = base + random.randrange(0, MIB - 65536, 512)
    data = random.randbytes(65536)
    cookie = random.getrandbits(64)
    request(WRITE, cookie, offset, len(data), data)
    answer(cookie)
    request(READ, cookie + 1 & (1 << 64) - 1, offset, len(data))
    seen, _ = answer(cookie + 1 & (1 << 64) - 1, len(data))
    assert seen == data, "it reads something else than it wrote"
    if mode != "simple":
        request(STATUS, cookie, offset, len(data))
        _, contexts = answer(cookie)
        assert contexts == ids, (contexts, ids)
    request(FLUSH, cookie, 0, 0)
    answer(cookie)
    rounds += 1
    time.sleep(0.02)
s.settimeout(0.1)
try:
    assert not s.recv(1), "something comes that was not asked for"
    raise AssertionError("the connection was closed")
except TimeoutError:
    pass
print(mode, rounds, "rounds in one session")
sys.exit(rounds < 10)
