# SPDX-License-Identifier: BSD-3-Clause
"""Many NBD clients on one unix socket, each of them with one long request, and the server's memory.

nbd_limits.py SOCKET EXPORT read|write COUNT PID

Each of COUNT clients asks for, or sends, 64 MiB, and takes, or goes on sending, as much as the
server wants it to until nothing moves any more. Prints the clients that got an export, and the most
memory (KiB, VmHWM) that process PID ever had. Of those that read, the first one then takes all.
"""
import selectors
import socket
import struct
import sys
import time

LONG = 64 << 20
OPTION_GO = 7
READ, WRITE = 0, 1


def exactly(sock, length):
    data = bytearray(length)
    at = memoryview(data)
    while at:
        count = sock.recv_into(at)
        if not count:
            raise SystemExit("the server has closed a connection")
        at = at[count:]
    return data


def connect(path, export):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(path)
    exactly(sock, 18)
    name = export.encode()
    option = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    sock.sendall(struct.pack(">I", 3) + b"IHAVEOPT" +
                 struct.pack(">II", OPTION_GO, len(option)) + option)
    while True:
        _, _, kind, length = struct.unpack(">QIII", exactly(sock, 20))
        exactly(sock, length)
        if kind == 1:
            return sock
        if kind & 1 << 31:
            raise SystemExit("the export was refused")


def request(command):
    return struct.pack(">IHHQQI", 0x25609513, 0, command, 1, 0, LONG)


def send_until_stuck(socks):
    """What all sockets take of their 64 MiB; ends when for half a second none took anything."""
    selector = selectors.DefaultSelector()
    left = {}
    block = bytes(1 << 20)
    for sock in socks:
        sock.setblocking(False)
        left[sock] = LONG
        selector.register(sock, selectors.EVENT_WRITE)
    while True:
        ready = selector.select(0.5)
        if not ready:
            return
        for key, _ in ready:
            sock = key.fileobj
            left[sock] -= sock.send(block[:left[sock]])
            if not left[sock]:
                selector.unregister(sock)


def wait_until_stuck(socks):
    """Lets the server send what the sockets hold; ends when for half a second none got more."""
    before = -1
    while True:
        waiting = sum(len(sock.recv(1 << 24, socket.MSG_PEEK)) for sock in socks)
        if waiting == before:
            return
        before = waiting
        time.sleep(0.5)


def most_memory(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    raise SystemExit("no VmHWM")


def main():
    path, export, what, count, pid = sys.argv[1:]
    socks = [connect(path, export) for _ in range(int(count))]
    for sock in socks:
        sock.sendall(request(WRITE if what == "write" else READ))
    if what == "write":
        send_until_stuck(socks)
    else:
        wait_until_stuck(socks)
    print(len(socks), most_memory(pid))
    if what == "read":
        if struct.unpack(">IIQ", exactly(socks[0], 16))[1]:
            raise SystemExit("the read failed")
        if any(exactly(socks[0], LONG)):
            raise SystemExit("what was read is not what is there")


main()
