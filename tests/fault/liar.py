# SPDX-License-Identifier: BSD-3-Clause
"""An NBD server that lies in one way, until it is told to be honest.

It serves a file on a unix socket, a thread for each connection. LIES has the ways; what each must
lead to stands in lies.py. Written out by hand from the protocol, so that it can break it anywhere.
"""
import os
import random
import socket
import struct
import threading

READ, WRITE, DISC, FLUSH, TRIM, _, ZERO, STATUS = range(8)
EIO, EINVAL = 5, 22
SIMPLE, STRUCTURED = 0x67446698, 0x668e33ef
ACK, EXPORT, META = 1, 3, 4
ERR_UNSUP, ERR_UNKNOWN = 1 << 31 | 1, 1 << 31 | 6
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_ZEROES = 1, 2, 4, 8, 32, 64


class Stop(Exception):
    """This connection is over."""


class Liar:
    def __init__(self, path, image, lie, seed=0):
        self.path, self.lie, self.honest = path, lie, False
        self.file = os.open(image, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.lock = threading.Lock()
        self.random = random.Random(seed)
        self.connections, self.told, self.chances, self.open = 0, 0, 0, []
        self.was_cut = False
        self.cache = {}  # not flushed: offset -> 512 bytes
        self.closing = False
        self.listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(path):
            os.unlink(path)
        self.listener.bind(path)
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def lies(self, name):
        """Counts the lies that were told."""
        if self.honest or self.lie != name:
            return False
        self.told += 1
        return True

    def accept(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            if self.closing:
                s.close()
                return
            self.connections += 1
            self.open.append(s)
            threading.Thread(target=self.serve, args=(Connection(self, s),), daemon=True).start()

    def serve(self, connection):
        try:
            connection.handshake()
            while True:
                connection.request()
        except (Stop, OSError, struct.error):
            pass
        connection.close()

    def cut(self):
        """All connections; a cache that was not flushed is forgotten."""
        self.was_cut = True
        for s in self.open:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.open = []
        with self.lock:
            self.cache = {}

    def close(self):
        self.closing = True
        self.cut()
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        os.close(self.file)

    # What is stored

    def read(self, offset, length):
        with self.lock:
            data = bytearray(os.pread(self.file, length, offset).ljust(length, b"\0"))
            for at, sector in self.cache.items() if self.cache else ():
                if offset <= at < offset + length:
                    data[at - offset:at - offset + 512] = sector
        return bytes(data)

    def write(self, offset, data):
        with self.lock:
            if self.lie == "flush-nothing":
                for at in range(0, len(data), 512):
                    self.cache[offset + at] = data[at:at + 512]
            else:
                os.pwrite(self.file, data, offset)

    def flush(self):
        if self.lies("flush-nothing"):
            return
        with self.lock:
            for at, sector in self.cache.items():
                os.pwrite(self.file, sector, at)
            self.cache = {}


class Connection:
    def __init__(self, server, s):
        self.server, self.socket = server, s
        self.structured = self.context = False
        self.requests = 0
        self.held = []

    def close(self):
        self.socket.close()

    def take(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise Stop
            data += part
        return data

    def send(self, *parts):
        self.socket.sendall(b"".join(parts))

    # The handshake

    def handshake(self):
        lies = self.server.lies
        if lies("greeting-magic"):
            self.send(b"NBDMAGIX", b"IHAVEOPT", struct.pack(">H", 3))
        if lies("greeting-silence"):
            self.take(1 << 20)
        if lies("greeting-half"):
            self.send(b"NBDMAGIC", b"IHAV")
            raise Stop
        self.send(b"NBDMAGIC", b"IHAVEOPT", struct.pack(">H", 3))
        self.take(4)
        while True:
            magic, option, length = struct.unpack(">8sII", self.take(16))
            if magic != b"IHAVEOPT" or length > 1 << 16:
                raise Stop
            data = self.take(length)
            if self.option(option, data):
                return

    def reply(self, option, kind, data=b"", length=None):
        self.send(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(data) if length is None else length),
                  data)

    def option(self, option, data):
        lies = self.server.lies
        if option == 8:
            self.structured = True
            self.reply(option, ACK)
        elif option == 10:
            if b"base:allocation" in data:
                self.context = True
                self.reply(option, META, struct.pack(">I", 1) + b"base:allocation")
            self.reply(option, ACK)
        elif option == 2:
            self.reply(option, ACK)
            raise Stop
        elif option in (6, 7):
            if lies("option-magic"):
                self.send(struct.pack(">QIII", 4711, option, ACK, 0))
            if lies("option-huge"):
                self.reply(option, EXPORT, b"", 0x7fffffff)
            if lies("no-size"):
                self.reply(option, ACK)
                return True
            self.reply(option, EXPORT, struct.pack(">HQH", 0, *self.geometry()))
            if lies("block-sizes"):
                self.reply(option, EXPORT, struct.pack(">HIII", 3, 3000, 1, 7))
            self.reply(option, ACK)
            return option == 7
        else:
            self.reply(option, ERR_UNSUP)
        return False

    def geometry(self):
        s = self.server
        flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_ZEROES
        size = s.size
        if s.was_cut and s.lies("shrunk"):
            size -= 65536
        if s.was_cut and s.lies("read-only"):
            flags |= READ_ONLY
        if s.lies("size-huge"):
            size = (1 << 64) - 1
        if s.lies("size-zero"):
            size = 0
        return size, flags

    # Requests

    def request(self):
        magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", self.take(28))
        if magic != 0x25609513 or kind == DISC:
            raise Stop
        data = self.take(length) if kind == WRITE else b""
        self.requests += 1
        self.length = length
        self.carry_out(flags, kind, cookie, offset, length, data)
        if self.server.lie == "out-of-order":
            self.let_go()

    def carry_out(self, flags, kind, cookie, offset, length, data):
        s, lies = self.server, self.server.lies
        if kind == READ:
            self.answer_read(cookie, offset, s.read(offset, length))
            return
        if kind == STATUS:
            self.answer_status(cookie, offset, length)
            return
        if kind == WRITE and self.now("write-nothing"):
            data = None
        if kind == WRITE and self.now("write-elsewhere"):
            offset = offset + 512 if offset + 512 + length <= s.size else offset - 512
        if kind == ZERO and lies("zero-nothing"):
            data = None
        elif kind == ZERO:
            data = bytes(length)
        if kind == FLUSH:
            s.flush()
        elif kind in (WRITE, ZERO) and data is not None:
            s.write(offset, data)
        elif kind == TRIM and not lies("trim-nothing"):
            s.write(offset, bytes(length))
        if flags & 1:
            s.flush()
        self.answer(kind, cookie)

    def now(self, lie):
        """Once, at the third chance."""
        s = self.server
        if s.lie != lie or s.honest:
            return False
        s.chances += 1
        return s.chances == 3 and s.lies(lie)

    def answer(self, kind, cookie):
        s, lies = self.server, self.server.lies
        error = 0
        if kind == FLUSH and lies("flush-error"):
            error = EIO
        if kind == WRITE and self.now("odd-errors"):
            error = s.random.choice([11, 99, 108, 1 << 20, 0xffffffff])
        # The guest's: its deadline is what ends the waiting. A copy's has none.
        if kind == WRITE and self.length <= 4096 and self.now("never"):
            return
        if kind == FLUSH and lies("flush-never"):
            return
        if self.now("answer-half"):
            self.send(struct.pack(">II", SIMPLE, 0))
            return
        if self.now("answer-magic"):
            self.send(struct.pack(">IIQ", 0x12345678, 0, cookie))
        if self.now("cookie-unknown"):
            self.send(self.done(error, cookie ^ 0xdead))
        if self.now("cookie-twice"):
            self.send(self.done(error, cookie))
        if self.now("chunk-for-write"):
            self.send(struct.pack(">IHHQI", STRUCTURED, 1, 1, cookie, 12), struct.pack(">QI", 0, 4), b"abcd")
            return
        if s.lie == "out-of-order" and not s.honest:
            self.held.append(self.done(error, cookie))
        else:
            self.send(self.done(error, cookie))

    def done(self, error, cookie):
        return struct.pack(">IIQ", SIMPLE, error, cookie)

    def let_go(self):
        """As the protocol allows: the answers that wait, the last one first."""
        self.socket.setblocking(False)
        try:
            more = self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            more = b""
        finally:
            self.socket.setblocking(True)
        if self.held and (not more or len(self.held) >= 8):
            self.server.told += len(self.held) > 1
            self.send(*reversed(self.held))
            self.held = []

    def chunk(self, cookie, kind, data, last):
        self.send(struct.pack(">IHHQI", STRUCTURED, last, kind, cookie, len(data)), data)

    def answer_read(self, cookie, offset, data):
        if not self.structured:
            self.send(self.done(0, cookie), data)
            return
        half = len(data) // 2
        if self.now("read-missing"):
            self.chunk(cookie, 1, struct.pack(">Q", offset) + data[:half], 1)
        elif self.now("read-overlap"):
            self.chunk(cookie, 1, struct.pack(">Q", offset) + data, 0)
            self.chunk(cookie, 1, struct.pack(">Q", offset) + data[:half], 1)
        elif self.now("read-outside"):
            self.chunk(cookie, 1, struct.pack(">Q", offset + half) + data, 1)
        elif self.now("read-short"):
            self.chunk(cookie, 1, struct.pack(">Q", offset)[:4], 1)
        elif self.now("read-empty"):
            self.chunk(cookie, 0, b"", 1)
        elif self.now("read-changed"):
            self.chunk(cookie, 1, struct.pack(">Q", offset) + bytes([data[0] ^ 1]) + data[1:], 1)
        else:
            self.chunk(cookie, 1, struct.pack(">Q", offset) + data, 1)

    def answer_status(self, cookie, offset, length):
        lies = self.server.lies
        if lies("status-zero"):
            self.status(cookie, (length, 3))
        elif lies("status-short"):
            self.status(cookie, (512, 0))
        elif lies("status-beyond"):
            self.status(cookie, (length + 65536, 0), (1 << 31, 3))
        elif lies("status-nothing"):
            self.status(cookie, (0, 3), (0, 0))
        elif lies("status-empty"):
            self.chunk(cookie, 5, struct.pack(">I", 1), 1)
        elif lies("status-foreign"):
            self.chunk(cookie, 5, struct.pack(">III", 77, length, 3), 1)
        elif lies("status-odd"):
            self.chunk(cookie, 5, struct.pack(">IIIB", 1, length, 0, 7), 1)
        elif lies("status-error"):
            self.chunk(cookie, 1 << 15 | 1, struct.pack(">IH", 99999, 0), 1)
        else:
            self.status(cookie, (length, 0))

    def status(self, cookie, *extents):
        self.chunk(cookie, 5, struct.pack(">I", 1) + b"".join(struct.pack(">II", *e) for e in extents), 1)
