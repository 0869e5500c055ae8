# SPDX-License-Identifier: BSD-3-Clause
"""The fault laboratory: a disk, its servers and its load, which can be killed at any moment, and
what must hold then.

Everything lives in one folder and descends from this process, which adopts what loses its parent:
whatever becomes of a run, end() leaves no process behind.
"""
import contextlib
import ctypes
import json
import os
import random
import select
import signal
import socket
import subprocess
import time

M = 1 << 20
GRANULE = 65536
MAP_HEADER = 4096
BUILD = os.path.realpath(os.environ.get("BUILD", "build"))


class Violation(Exception):
    """What must not be."""


class Refused(Exception):
    """An error that was answered; its code is the first argument."""


def become_reaper():
    """Processes that lose their parent become ours."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            return [int(word) for word in f.read().split()]
    except OSError:
        return []


def descendants(pid=None):
    """Of this process, or of PID."""
    found = children(pid or os.getpid())
    for child in list(found):
        found += descendants(child)
    return found


def process_name(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii") as f:
            return f.read().strip()
    except OSError:
        return ""


def is_gone(pid):
    """One that has ended and was not waited for is gone, too."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_for(condition, seconds, what, step=0.01):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Violation(f"{what}: not within {seconds} s")
        time.sleep(step)


def reap():
    """What has ended and was adopted. Children that subprocess knows it waits for itself."""
    for pid in children(os.getpid()):
        if is_gone(pid) and pid not in Lab.own:
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)


def kill_all(pids):
    """SIGKILL, at once; returns when they are gone, with all that the kernel did for them."""
    victims = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            victims.append(os.pidfd_open(pid))
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(victim, signal.SIGKILL)
    for victim in victims:
        if not select.select([victim], [], [], 60)[0]:
            raise Violation("a process outlives SIGKILL by a minute")
        os.close(victim)
    reap()


def end_all():
    """Of this process's descendants none is left."""
    for _ in range(500):
        pids = descendants()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


class Control:
    """A connection to a control socket: calls, answers, events."""

    def __init__(self, path, timeout=30):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.said = b""
        try:
            self.sock.connect(path)
        except OSError:
            self.sock.close()
            raise

    def close(self):
        self.sock.close()

    def send(self, method, params=None):
        call = {"jsonrpc": "2.0", "id": 1, "method": method}
        if params:
            call["params"] = params
        self.sock.sendall(json.dumps(call).encode() + b"\n")

    def line(self, timeout):
        """The next object; None when there is none in time. EOFError at the end."""
        self.sock.settimeout(max(timeout, 0.0001))
        while b"\n" not in self.said:
            try:
                more = self.sock.recv(1 << 20)
            except (TimeoutError, BlockingIOError):
                return None
            if not more:
                raise EOFError
            self.said += more
        line, _, self.said = self.said.partition(b"\n")
        return json.loads(line)


def answer_of(line):
    if "error" in line:
        raise Refused(line["error"].get("data", {}).get("code", "?"), line["error"]["message"])
    return line["result"]


def call(path, method, params=None, timeout=30):
    """The result of one call. OSError or EOFError: nobody is there."""
    control = Control(path, timeout)
    try:
        control.send(method, params)
        line = control.line(timeout)
        if line is None:
            raise TimeoutError(f"{method}: no answer in {timeout} s")
        return answer_of(line)
    finally:
        control.close()


class Server:
    """An NBD server with a file: blockmirror-nbd, nbdkit (also a slow one), qemu-nbd."""

    def __init__(self, lab, name, kind, path):
        self.lab, self.kind, self.path = lab, kind, path
        self.socket = os.path.join(lab.dir, name + ".s")
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.process = None

    def start(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        if self.kind == "nbdkit":
            argv = ["nbdkit", "-f", "-U", self.socket, "file", self.path]
        elif self.kind == "slow":
            argv = ["nbdkit", "-f", "-U", self.socket, "--filter=delay", "file", self.path, "wdelay=5ms",
                    "rdelay=2ms"]
        elif self.kind == "qemu-nbd":
            argv = ["qemu-nbd", "-k", self.socket, "-t", "-e", "16", "-f", "raw",
                    "--discard=unmap", self.path]
        else:
            argv = [os.path.join(BUILD, "blockmirror-nbd"), "--unix", self.socket, self.path]
        self.process = self.lab.spawn(argv)
        wait_for(self.listens, 60, f"{self.kind} listens")

    def has_died(self):
        """Version 1.32 of nbdkit does when a client goes without a word."""
        return self.kind in ("nbdkit", "slow") and self.process.poll() is not None

    def listens(self):
        if self.process.poll() is not None:
            raise Violation(f"{self.kind} ended by itself: {self.lab.log_tail('log')}")
        if not os.path.exists(self.socket):
            return False
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
            return any(line.rstrip().endswith(" " + self.socket) and " 00010000 " in line for line in f)


class Lab:
    """One disk, named "disk"."""

    own = set()  # what subprocess waits for

    def __init__(self, folder, seed):
        self.dir, self.seed = folder, seed
        self.random = random.Random(seed)
        os.makedirs(folder)
        self.run, self.state = os.path.join(folder, "run"), os.path.join(folder, "state")
        self.control = os.path.join(self.run, "disks/disk.sock")
        self.disk_uri = f"nbd+unix:///disk?socket={self.run}/disks/disk.nbd"
        self.map = os.path.join(self.run, "disks/disk.map")
        self.record = os.path.join(self.state, "disks/disk/record")
        self.env = dict(os.environ, BLOCKMIRROR_RUN_DIR=self.run, BLOCKMIRROR_STATE_DIR=self.state)
        self.daemon = self.load = None
        self.generation = 0
        Lab.own = set()

    # Processes

    def spawn(self, argv, log="log", **more):
        with open(os.path.join(self.dir, log), "ab") as out:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=out, env=self.env,
                                       **({"stdout": out} | more))
        Lab.own.add(process.pid)
        return process

    def log_tail(self, name):
        try:
            with open(os.path.join(self.dir, name), encoding="utf-8", errors="replace") as f:
                lines = [line for line in f.read().splitlines()
                         if not line.startswith(("QEMU:", "libvirt:", "disk disk is served"))]
                return " | ".join(lines[-6:])
        except OSError:
            return ""

    def end(self):
        end_all()

    def start_daemon(self):
        read, write = os.pipe()
        self.daemon = self.spawn([os.path.join(BUILD, "blockmirrord")], stdout=write)
        os.close(write)
        with os.fdopen(read) as out:
            if not out.readline().startswith("ready"):
                raise Violation("blockmirrord does not start: " + self.log_tail("log"))

    def disk_processes(self):
        return [pid for pid in descendants() if process_name(pid) == "blockmirror-dis" and not is_gone(pid)]

    def serve(self, *arguments):
        """blockmirror serve: its exit status."""
        return self.spawn([os.path.join(BUILD, "blockmirror"), "serve", "disk", *arguments])

    def show(self, timeout=30):
        return call(self.control, "show", timeout=timeout)

    def answers(self, beside):
        """Its answer to show, when another process than BESIDE serves the disk; may take a while."""
        try:
            disk = self.show(5)
        except (OSError, EOFError):
            return None
        return disk if disk["pid"] != beside else None

    # The load

    def start_load(self, length, *options):
        report = os.path.join(self.dir, "load.json")
        out = open(report, "wb")  # pylint: disable=consider-using-with
        self.load = self.spawn(
            [os.path.join(BUILD, "fixtures/hammer"), "--json", "--time", "0", "--overlap", "20",
             "--range", f"0:{length}", "--reconnect", "120", "--patience", "120", "--initial", "any",
             "--seed", str(self.seed), "--state", os.path.join(self.dir, "load.state"), *options, self.disk_uri],
            log="load.log", stdout=out)
        out.close()

    def end_load(self):
        """What the load found: its report. It has read everything back."""
        if not self.load:
            return None
        process, self.load = self.load, None
        process.terminate()
        try:
            status = process.wait(120)
        except subprocess.TimeoutExpired as e:
            raise Violation("the load does not end: " + self.log_tail("load.log")) from e
        with open(os.path.join(self.dir, "load.json"), encoding="utf-8") as f:
            said = f.read().splitlines()
        report = json.loads(said[-1]) if said else {}
        if status or report.get("errors") or report.get("mismatches") or not report:
            raise Violation(f"the load (exit status {status}): {said[-1:]} {self.log_tail('load.log')}")
        return report

    def load_lives(self):
        if self.load and self.load.poll() is not None:
            raise Violation(f"the load ended by itself, status {self.load.returncode}: "
                            f"{self.log_tail('load.json')} {self.log_tail('load.log')}")

    # What is on disk

    def read_record(self):
        """The record; its generation never falls."""
        with open(self.record, encoding="utf-8") as f:
            record = json.loads(f.readline())
        if record["generation"] < self.generation:
            raise Violation(f"generation {record['generation']} after {self.generation}")
        self.generation = record["generation"]
        return record

    def unsettled(self, record, image_of):
        """What the map, if it is one, says may differ, in bytes; None without one. What it says is
        equal must be. Nobody may write meanwhile."""
        job = record.get("job")
        if not job or job["state"] != "running" or not os.path.exists(self.map):
            return None
        with open(self.map, "rb") as f:
            found = f.read()
        if int.from_bytes(found[24:32], "little") != job["map"]:
            return None
        bits, size = found[MAP_HEADER:], record["size"]
        unsettled = 0
        with open(image_of(job["source"]), "rb") as a, open(image_of(job["target"]), "rb") as b:
            for g in range((size + GRANULE - 1) // GRANULE):
                left, right = a.read(GRANULE), b.read(GRANULE)
                if not bits[g // 8] >> g % 8 & 1:
                    unsettled += GRANULE
                elif left != right:
                    raise Violation(f"the map calls granule {g} settled, and it differs")
        return unsettled


def mark_of(path):
    try:
        return json.loads(os.getxattr(path, "user.blockmirror"))["state"]
    except OSError:
        return None


def same(a, b, start, end):
    """Whether bytes START to END of two files are equal."""
    with open(a, "rb") as f, open(b, "rb") as g:
        f.seek(start)
        g.seek(start)
        return f.read(end - start) == g.read(end - start)
