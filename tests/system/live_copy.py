# SPDX-License-Identifier: BSD-3-Clause
"""What a copy as of one instant must be, held against what its guests know.

    live_copy.py write URI LOG               until SIGTERM; says when it is well under way
    live_copy.py check LOG CUT TOOK IMAGE    IMAGE is a path or a URI; CUT and TOOK are of the job (ns)

Each of several writers makes one write after the other, and sends none before the one before it is
answered, now and then after a flush, too. So the disk holds, at any instant, the first so many of
its writes and nothing of the later ones: each cell has the last of them that went there. A copy that
has a write without one before it, or half a write, or a later one that was in flight beside the
copying, is found. The writers' cells lie in the same granules. With the times of all requests goes:
what was answered before the cut is there, and nothing that was begun after the copy was durable.
"""
import json
import signal
import struct
import sys
import threading
import time

import nbd

SLACK = 10_000_000  # ns: the disk's process may be put aside between two clocks that it reads
WRITERS, CELLS, CELL, STRIDE, START, FLUSH = 6, 64, 4096, 128 << 10, 100 << 20, 16
stopped = threading.Event()


def place(writer, number):
    """Where a write goes; numbers begin with 1."""
    return START + (number - 1) % CELLS * STRIDE + writer * CELL


def content(writer, number):
    return struct.pack("<QQ", writer + 1, number) * (CELL // 16)


def write(writer, uri, log):
    client = nbd.NBD()
    client.connect_uri(uri)
    number = 0
    while not stopped.is_set():
        number += 1
        data = content(writer, number)
        begun = time.time_ns()
        client.pwrite(data, place(writer, number))
        log[writer].append((begun, time.time_ns()))
        if number % FLUSH == 0:
            client.flush()
    client.shutdown()


def write_all(uri, path):
    log = [[] for _ in range(WRITERS)]
    threads = [threading.Thread(target=write, args=(w, uri, log)) for w in range(WRITERS)]
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    for thread in threads:
        thread.start()
    while not stopped.wait(0.1) and min(len(times) for times in log) < 2 * CELLS:
        pass
    print("every cell was written", flush=True)
    stopped.wait()
    for thread in threads:
        thread.join()
    with open(path, "w", encoding="ascii") as out:
        json.dump(log, out)


def reader(image):
    if ":" in image:
        client = nbd.NBD()
        client.connect_uri(image)
        return client.pread
    file = open(image, "rb")  # pylint: disable=consider-using-with

    def read(length, offset):
        file.seek(offset)
        return file.read(length)
    return read


def numbers_of(read, writer):
    """The number that each of a writer's cells holds."""
    found = []
    for cell in range(CELLS):
        data = read(CELL, place(writer, cell + 1))
        number = struct.unpack("<Q", data[8:16])[0]
        if data != content(writer, number):
            sys.exit(f"writer {writer}, cell {cell}: holds no whole write")
        if (number - 1) % CELLS != cell:
            sys.exit(f"writer {writer}, cell {cell}: holds write {number}, of another cell")
        found.append(number)
    return found


def check(path, cut, durable, image):
    with open(path, encoding="ascii") as file:
        log = json.load(file)
    read = reader(image)
    for writer, times in enumerate(log):
        found = numbers_of(read, writer)
        last = max(found)
        for cell, number in enumerate(found):
            due = last - (last - 1 - cell) % CELLS
            if number != due:
                sys.exit(f"writer {writer}: write {last} is there, and in cell {cell} {number} "
                         f"instead of {due}")
        answered = sum(end < cut for _, end in times)
        begun = sum(start <= durable + SLACK for start, _ in times)
        print(f"writer {writer}: {last} of {len(times)}; at the cut {answered} were answered, "
              f"when it was durable {begun} begun")
        if not answered <= last <= begun:
            sys.exit("that is another instant")
        if answered < 2 * CELLS or len(times) <= begun:
            sys.exit("too few writes before or after: this proves nothing")


if sys.argv[1] == "write":
    write_all(*sys.argv[2:])
else:
    check(sys.argv[2], int(sys.argv[3]), int(sys.argv[3]) + int(sys.argv[4]), sys.argv[5])
