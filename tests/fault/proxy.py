# SPDX-License-Identifier: BSD-3-Clause
"""A TCP proxy in a network namespace, which cuts what it carries where it is told to."""
import ctypes
import os
import socket
import struct
import threading
import time

UP, DOWN = 0, 1  # to the server, to the client


def enter(namespace):
    """This thread: sockets that it makes are in the namespace."""
    fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)


class Proxy:
    def __init__(self, namespace, listen, server):
        self.namespace, self.server = namespace, server
        self.lock = threading.Lock()
        self.pairs = []
        self.cuts = 0
        self.carried = [0, 0]
        self.next_cut = None   # of what is carried now: (direction, bytes from now on, how)
        self.greeting = None   # the same of the connection that comes next
        self.delay = 0         # s, each way
        self.ready = threading.Event()
        threading.Thread(target=self.accept, args=(listen,), daemon=True).start()
        if not self.ready.wait(10):
            raise OSError("the proxy does not listen")

    def accept(self, listen):
        enter(self.namespace)
        self.listener = socket.create_server(listen, backlog=64)
        self.ready.set()
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.server, timeout=5)
            except OSError:
                self.end([client], "reset")
                continue
            server.settimeout(None)
            with self.lock:
                budget, self.greeting = self.greeting, None
            pair = {"sockets": [client, server], "budget": list(budget) if budget else None}
            self.pairs.append(pair)
            for direction in UP, DOWN:
                threading.Thread(target=self.pump, args=(pair, direction), daemon=True).start()

    def end(self, sockets, how):
        for s in sockets:
            try:
                if how == "reset":
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    s.close()
                else:
                    s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def share(self, pair, direction, length):
        """How many of these bytes go on; None: all. Then it is over."""
        with self.lock:
            self.carried[direction] += length
            for cut in (pair["budget"], self.next_cut):
                if not cut or cut[0] != direction:
                    continue
                if length < cut[1]:
                    cut[1] -= length
                    continue
                left, how = cut[1], cut[2]
                if cut is self.next_cut:
                    self.next_cut = None
                pair["budget"] = None
                self.cuts += 1
                return left, how
        return None, None

    def pump(self, pair, direction):
        source, to = pair["sockets"][direction], pair["sockets"][1 - direction]
        while True:
            try:
                data = source.recv(1 << 16)
                if not data:
                    self.end([to], "end")
                    return
                if self.delay:
                    time.sleep(self.delay)
                left, how = self.share(pair, direction, len(data))
                to.sendall(data if left is None else data[:left])
            except OSError:
                self.end(pair["sockets"], "end")
                return
            if left is not None and how == "silence":  # held, and nobody is told
                pair["silent"] = True
                while pair.get("silent"):
                    time.sleep(0.05)
                self.end(pair["sockets"], "reset")
                return
            if left is not None:
                self.end(pair["sockets"], how)
                return

    def cut_after(self, direction, count, how):
        with self.lock:
            self.next_cut = [direction, count, how]

    def cut_greeting_after(self, direction, count, how):
        with self.lock:
            self.greeting = [direction, count, how]

    def cut_now(self):
        for pair in list(self.pairs):
            pair["silent"] = False
            self.end(pair["sockets"], "reset")
        self.pairs = []
