#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Talks with a guest from outside, and writes down what it sees; times are ns since 1970.

    network.py watch FOLDER ADDRESS MAC,… INTERFACE…   until it is ended
    network.py say ADDRESS WORD                      to the guest, by UDP
    network.py alive FOLDER SINCE                    0 when ping, TCP and UDP have come since then
    network.py faults FOLDER SINCE                   what is wrong with any of them; 1 when there is something
    network.py frames FOLDER INTERFACE FROM TO [PROTOCOL[/MAC]]
                                                     how many frames of the guest came by that one
    network.py first FOLDER INTERFACE FROM MAC       when the first frame of that card came by that one since then
    network.py pause FOLDER AT                       "FROM TO OTHER": since when until when it was silent around that
                                                     time, and the longest silence of the two seconds before and after

FOLDER has: udp (time, number), tcp (time, bytes that came back, or why it ended), ping (time sent, number, and
"back"), frames (time, interface, protocol/MAC).
"""
import os
import select
import socket
import struct
import sys
import threading
import time

PORT = 7070
STEP = 0.05
OUTGOING = 4  # PACKET_OUTGOING
SO_TIMESTAMPNS = 35


def stamp_of(controls):
    for level, kind, data in controls:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, ns = struct.unpack("qq", data[:16])
            return seconds * 1000000000 + ns
    return time.time_ns()


class Notes:
    def __init__(self, folder, name):
        self.file = open(os.path.join(folder, name), "w", buffering=1)

    def add(self, *words):
        self.file.write(" ".join(str(w) for w in words) + "\n")


def hear_udp(folder):
    notes = Notes(folder, "udp")
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    s.bind(("", PORT))
    while True:
        data, controls, _, _ = s.recvmsg(64, 256)
        notes.add(stamp_of(controls), struct.unpack("Q", data)[0])


def talk_tcp(folder, address):
    """One connection for all the time. What comes back must be what was sent."""
    notes = Notes(folder, "tcp")
    while True:
        try:
            s = socket.create_connection((address, PORT), 30)
            break
        except OSError:
            time.sleep(0.2)
    s.settimeout(60)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    number = 0
    while True:
        sent = struct.pack("Q", number) * 8
        try:
            s.sendall(sent)
            back = b""
            while len(back) < len(sent):
                piece = s.recv(len(sent) - len(back))
                if not piece:
                    raise OSError("closed")
                back += piece
        except OSError as e:
            notes.add(time.time_ns(), "ended:", e)
            return
        notes.add(time.time_ns(), number if back == sent else "ended: something else came back")
        number += 1
        time.sleep(STEP)


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(folder, address):
    notes = Notes(folder, "ping")
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    number = 0
    while True:
        body = struct.pack("!HHQ", 77, number & 0xFFFF, time.time_ns())
        head = struct.pack("!BBH", 8, 0, checksum(b"\x08\x00\0\0" + body))
        try:
            s.sendto(head + body, (address, 0))
        except OSError:
            pass
        end = time.monotonic() + 2 * STEP
        while time.monotonic() < end:
            if not select.select([s], [], [], max(0, end - time.monotonic()))[0]:
                break
            data = s.recv(256)[20:]
            kind, _, _, who, which, sent = struct.unpack("!BBHHHQ", data[:16])
            if kind == 0 and who == 77:
                notes.add(sent, which, "back")
        number += 1


def see_frames(folder, mac, interfaces):
    """What came in by a cable with the guest's address as its sender."""
    notes = Notes(folder, "frames")
    guests = {bytes.fromhex(each.replace(":", "")): each for each in mac.split(",")}
    sockets = {}
    for name in interfaces:
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        s.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        s.bind((name, 0))
        sockets[s] = name
    while True:
        for s in select.select(list(sockets), [], [])[0]:
            data, controls, _, where = s.recvmsg(64, 256)
            if where[2] != OUTGOING and data[6:12] in guests:
                notes.add(stamp_of(controls), sockets[s], data[12:14].hex() + "/" + guests[data[6:12]])


def watch(folder, address, mac, *interfaces):
    for function, arguments in (
        (hear_udp, (folder,)),
        (talk_tcp, (folder, address)),
        (ping, (folder, address)),
        (see_frames, (folder, mac, interfaces)),
    ):
        threading.Thread(target=function, args=arguments, daemon=True).start()
    while True:
        time.sleep(3600)


def say(address, word):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(word.encode(), (address, PORT))


def read(folder, name):
    with open(os.path.join(folder, name)) as f:
        lines = [line.split() for line in f if line.endswith("\n")]
    return [(int(words[0]), words[1:]) for words in lines]


def alive(folder, since):
    ended = [w for _, w in read(folder, "tcp") if w[0] == "ended:"]
    late = [n for n in ("udp", "tcp", "ping") if not any(t > int(since) for t, _ in read(folder, n))]
    if ended or late:
        print("silent:", late, ended[:1])
    sys.exit(bool(ended or late))


def faults(folder, since):
    wrong = [" ".join(w) for _, w in read(folder, "tcp") if w[0] == "ended:"]
    numbers = [int(w[0]) for t, w in read(folder, "udp") if t >= int(since)]
    again = [n for last, n in zip(numbers, numbers[1:]) if n <= last]
    if again:
        wrong.append("UDP went back to %s" % again[:3])
    if not numbers:
        wrong.append("no UDP")
    for text in wrong:
        print(text)
    lost = numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0
    print("UDP: %d came, %d lost" % (len(numbers), lost))
    sys.exit(bool(wrong))


def frames(folder, interface, begin, end, protocol=""):
    seen = [w for t, w in read(folder, "frames") if int(begin) <= t < int(end)]
    print(sum(w[0] == interface and w[1].startswith(protocol) for w in seen))


def first(folder, interface, begin, mac):
    print(min(t for t, w in read(folder, "frames") if t >= int(begin) and w[0] == interface and w[1].endswith("/" + mac)))


def pause(folder, at):
    at = int(at)
    times = sorted(t for t, _ in read(folder, "udp") if abs(t - at) < 60000000000)
    gaps = list(zip(times, times[1:]))
    here = [(a, b) for a, b in gaps if a <= at < b]
    other = [b - a for a, b in gaps if not a <= at < b and abs(a - at) < 2000000000]
    if not here:
        sys.exit("nothing came before or after it")
    print(*here[0], max(other, default=0))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
