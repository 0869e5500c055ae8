#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Records migration streams of a small QEMU guest, both ways, for tests/unit/ram_stream_test.c.

    record.py FILE

The guest is a boot sector that writes numbers into 64 pages of RAM over and over. FILE is made of,
for each stream, a line "NAME BYTES" and the bytes, all of it compressed by zstd(1). Streams: plain (no
return path, no target), return (with both) and return.back (what the target answered), xbzrle (the
capability; there is no such record in it), ignore (x-ignore-shared), hotplug (a second block of RAM, with
a long name), huge (RAM in pages of 2 MiB; of those 4 have to be free: /proc/sys/vm/nr_hugepages).
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

BOOT = bytes.fromhex(
    "fa fc"              # cli; cld
    "b80020 8ec0"        # mov ax, 0x2000; mov es, ax
    "6643"               # inc ebx
    "b94000"             # mov cx, 64
    "26 66891e0000"      # mov [es:0], ebx
    "26 66891e0008"      # mov [es:0x800], ebx
    "8cc0 050001 8ec0"   # mov ax, es; add ax, 0x100; mov es, ax
    "e2eb"               # loop
    "ebdf"               # again
    .replace(" ", ""))


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(500):
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.02)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        message = {"execute": command}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.file.write(json.dumps(message) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "error" in answer:
                raise RuntimeError(answer)
            if "return" in answer:
                return answer["return"]

    def capabilities(self, names):
        states = [{"capability": name, "state": True} for name in names]
        self.call("migrate-set-capabilities", capabilities=states)

    def migrated(self):
        while True:
            status = self.call("query-migrate")["status"]
            if status in ("completed", "failed"):
                return status
            time.sleep(0.02)


def pump(source, sink, log):
    with open(log, "wb") as out:
        while True:
            try:
                data = source.recv(65536)
            except OSError:
                break
            if not data:
                break
            out.write(data)
            if sink:
                try:
                    sink.sendall(data)
                except OSError:
                    break
    if sink:
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def start(work, name, kind, *more):
    memory = ["-m", "4"]
    if kind == "huge":
        memory += ["-object", "memory-backend-memfd,id=ram0,size=4M,hugetlb=on",
                   "-machine", "memory-backend=ram0"]
    if kind == "ignore":
        memory += ["-object", f"memory-backend-file,id=ram0,size=4M,mem-path={work}/ram,share=on",
                   "-machine", "memory-backend=ram0"]
    if kind == "hotplug":
        memory = ["-m", "4,slots=2,maxmem=1G", "-object",
                  "memory-backend-ram,id=" + "m" * 120 + ",size=128M",
                  "-device", "pc-dimm,memdev=" + "m" * 120]
    return subprocess.Popen(
        ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-nodefaults", "-display", "none",
         "-qmp", f"unix:{work}/{name}.qmp,server=on,wait=off", *memory,
         "-drive", f"if=ide,format=raw,file={work}/boot,snapshot=on,id=d0", *more])


def record(kind, packed):
    work = tempfile.mkdtemp()
    folder = work
    with open(work + "/boot", "wb") as out:
        out.write(BOOT.ljust(510, b"\0") + b"\x55\xaa" + bytes(65536))
    names = ["events"] + {"ignore": ["x-ignore-shared"], "xbzrle": ["xbzrle"],
                          "return": ["return-path"]}.get(kind, [])
    children = [start(work, "source", kind)]
    source = Qmp(work + "/source.qmp")
    source.capabilities(names)
    time.sleep(2)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(work + "/relay")
    listener.listen()
    target = None
    if kind == "return":
        children.append(start(work, "target", kind, "-incoming", "defer", "-S"))
        there = Qmp(work + "/target.qmp")
        there.capabilities(names)
        there.call("migrate-incoming", uri=f"unix:{work}/incoming")
        target = socket.socket(socket.AF_UNIX)
        target.connect(work + "/incoming")
    source.call("migrate-set-parameters", max_bandwidth=1 << 20, downtime_limit=1)
    source.call("migrate", uri=f"unix:{work}/relay")
    stream, _ = listener.accept()
    threads = [threading.Thread(target=pump, args=(stream, target, f"{folder}/{kind}.out"))]
    if target:
        threads.append(threading.Thread(target=pump, args=(target, stream, f"{folder}/{kind}.back")))
    for thread in threads:
        thread.start()
    time.sleep(1 if kind == "plain" else 1.8)
    source.call("migrate-set-parameters", max_bandwidth=1 << 30, downtime_limit=1000)
    status = source.migrated()
    if status != "completed":
        raise RuntimeError(f"{kind}: {status}")
    for thread in threads[:1]:
        thread.join()
    for child in children:
        child.terminate()
        child.wait()
    for name in (f"{kind}.out", f"{kind}.back"):
        if os.path.exists(f"{folder}/{name}"):
            with open(f"{folder}/{name}", "rb") as recorded:
                data = recorded.read()
            packed.write(f"{name.removesuffix('.out')} {len(data)}\n".encode() + data)
            print(name, len(data), "bytes")
    shutil.rmtree(work)


def main():
    with open(sys.argv[1], "wb") as out:
        zstd = subprocess.Popen(["zstd", "-q", "-19", "--long"], stdin=subprocess.PIPE, stdout=out)
        for kind in ("plain", "return", "xbzrle", "ignore", "hotplug", "huge"):
            record(kind, zstd.stdin)
        zstd.stdin.close()
        sys.exit(zstd.wait())


main()
