# SPDX-License-Identifier: BSD-3-Clause
"""A small guest: one NBD connection to a disk, one request at a time, and what it has been told.

It connects again when the connection is lost, and sends the request again that had no answer. Each
block of 4 KiB holds its number and the write that it is of; a write that failed leaves open which of
the two is there. What a read may return is known, and is compared.
"""
import os
import random
import socket
import struct
import threading
import time

BLOCK = 4096
READ, WRITE, FLUSH, ZERO = 0, 1, 3, 6


class Gone(Exception):
    """The connection was lost."""


class Nbd:
    """A connection in the transmission phase, with simple replies."""

    def __init__(self, path, name, timeout=20):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.cookie = 0
        try:
            self.socket.connect(path)
            self.take(18)
            option = struct.pack(">I", len(name)) + name.encode() + struct.pack(">H", 0)
            self.socket.sendall(struct.pack(">I", 1) + b"IHAVEOPT" +
                                struct.pack(">II", 7, len(option)) + option)
            while self.reply() != 1:
                pass
        except (OSError, Gone):
            self.close()
            raise

    def close(self):
        self.socket.close()

    def take(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise Gone
            data += part
        return data

    def reply(self):
        _, _, kind, length = struct.unpack(">QIII", self.take(20))
        self.take(length)
        if kind & 1 << 31:
            raise Gone
        return kind

    def ask(self, op, offset, length, data=b"", flags=0):
        """(errno of the answer, data)"""
        self.cookie += 1
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, op, self.cookie, offset,
                                        length) + data)
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        if magic != 0x67446698 or cookie != self.cookie:
            raise AssertionError("the answer is none to the question")
        return error, self.take(length) if op == READ and not error else b""


class Guest(threading.Thread):
    """Random writes, reads and flushes on the first blocks of a disk until it is stopped."""

    def __init__(self, path, name, blocks, seed, first):
        super().__init__(daemon=True)
        self.path, self.name_, self.blocks = path, name, blocks
        self.random = random.Random(seed)
        self.may = [{first[i * BLOCK:(i + 1) * BLOCK]} for i in range(blocks)]
        self.stopping = False
        self.patience = 20
        self.number = self.requests = self.errors = self.reconnects = 0
        self.error_numbers = set()
        self.problem = None
        self.longest = 0

    def run(self):
        try:
            self.nbd = self.connect()
            while not self.stopping:
                self.step()
                time.sleep(0.001)
            self.nbd.close()
        except Exception as e:  # told by the one who waits
            self.problem = self.problem or f"the guest: {type(e).__name__} {e}"

    def connect(self):
        end = time.monotonic() + self.patience
        while True:
            try:
                return Nbd(self.path, self.name_)
            except (OSError, Gone):
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)

    def ask(self, *request):
        begin = time.monotonic()
        while True:
            try:
                error, data = self.nbd.ask(*request)
                break
            except (OSError, Gone):
                self.nbd.close()
                self.reconnects += 1
                self.nbd = self.connect()
        self.longest = max(self.longest, time.monotonic() - begin)
        self.requests += 1
        if error:
            self.errors += 1
            self.error_numbers.add(error)
        return error, data

    def step(self):
        kind = self.random.random()
        block = self.random.randrange(self.blocks)
        if kind < 0.1:
            self.ask(FLUSH, 0, 0)
        elif kind < 0.35:
            self.look(block)
        elif kind < 0.4:
            self.change(block, bytes(BLOCK), self.ask(ZERO, block * BLOCK, BLOCK)[0])
        else:
            self.number += 1
            data = struct.pack(">II", block, self.number) * (BLOCK // 8)
            fua = 1 if self.random.random() < 0.1 else 0
            self.may[block].add(data)  # from now on
            self.change(block, data, self.ask(WRITE, block * BLOCK, BLOCK, data, fua)[0])

    def change(self, block, data, error):
        self.may[block] = self.may[block] | {data} if error else {data}

    def look(self, block):
        error, data = self.ask(READ, block * BLOCK, BLOCK)
        if not error:
            self.compare(block, data)

    def compare(self, block, data):
        if data in self.may[block]:
            self.may[block] = {data}
            return
        # A failed write may have been carried out in part: sector by sector.
        for at in range(0, BLOCK, 512):
            if not any(data[at:at + 512] == m[at:at + 512] for m in self.may[block]):
                self.problem = self.problem or (
                    f"block {block} at {at} holds {data[at:at + 8].hex()}, and may hold "
                    f"{[m[at:at + 8].hex() for m in self.may[block]]}")
                return

    def end(self):
        self.stopping = True
        self.join(self.patience + 10)
        if self.is_alive():
            self.problem = self.problem or "the guest waits for an answer that never comes"
        return self.problem

    def compare_all(self, image):
        """With the content of the image."""
        for block in range(self.blocks):
            self.compare(block, image[block * BLOCK:(block + 1) * BLOCK])
        return self.problem
