#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Stands between a QEMU and its relay, and says what went through it: tee.py LISTEN CONNECT

One connection, both ways. At the end of each direction a line is printed: "out" (from LISTEN to CONNECT)
or "back", how many bytes, and their SHA-256.
"""
import hashlib
import socket
import sys
import threading


def pump(source, sink, name):
    digest, count = hashlib.sha256(), 0
    try:
        while data := source.recv(1 << 18):
            digest.update(data)
            count += len(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # What one side sees, the other one shall see.
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
    print(name, count, digest.hexdigest(), flush=True)


def main():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(1)
    near, _ = listener.accept()
    far = socket.socket(socket.AF_UNIX)
    far.connect(sys.argv[2])
    back = threading.Thread(target=pump, args=(far, near, "back"))
    back.start()
    pump(near, far, "out")
    back.join()


main()
