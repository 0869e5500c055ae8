# SPDX-License-Identifier: BSD-3-Clause
"""A disk in one network namespace, its target in another: network.py BUILD-DIR SCRATCH-DIR SERVER FAULT

SERVER: nbd and tls (blockmirror-nbd), nbdkit, iscsi (tgtd). FAULT: see FAULTS. The guest must have no
error and wait no longer than the mirror's deadline; the mirror must come back and be in sync; then
the disk is switched over, and all is compared. Needs root, and ip(8).
"""
import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from guest import Guest
from process import Disk, Violation, clean_up_on_sigterm
from proxy import DOWN, UP, Proxy

SIZE = 16 << 20
GUEST_BLOCKS = 2048
DEADLINE = 2.0
SLACK = float(os.environ.get("SLACK", 4.0))
SERVERS = ["nbd", "tls", "nbdkit", "iscsi"]
# Where messages begin and end: the greeting, options, requests (28), replies (16, 20), iSCSI (48).
BOUNDARIES = [1, 8, 15, 16, 17, 18, 19, 20, 27, 28, 29, 43, 44, 47, 48, 49, 96, 4095, 4096, 4123, 4124, 4125,
              65536, 65563, 65564, 65565]


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout


class Net:
    """Two namespaces and a wire."""

    def __init__(self):
        tag = f"{os.getpid() % 100000}"
        self.a, self.b, self.va, self.vb = f"bma{tag}", f"bmb{tag}", f"va{tag}", f"vb{tag}"
        self.stop = []
        for namespace in self.a, self.b:
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "link", "add", self.va, "netns", self.a, "type", "veth", "peer", "name", self.vb, "netns", self.b)
        for namespace, device, address in (self.a, self.va, 1), (self.b, self.vb, 2):
            run("ip", "-n", namespace, "addr", "add", f"10.99.0.{address}/24", "dev", device)
            run("ip", "-n", namespace, "link", "set", device, "up")

    def link(self, how):
        run("ip", "-n", self.a, "link", "set", self.va, how)

    def lose(self, namespace, address, how):
        """All that the namespace sends to the address is dropped: the other direction works."""
        run("ip", "-n", namespace, "route", how, "blackhole", f"{address}/32")

    def shape(self, *qdisc):
        for namespace, device in (self.a, self.va), (self.b, self.vb):
            run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *qdisc)

    def unshape(self):
        for namespace, device in (self.a, self.va), (self.b, self.vb):
            run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")

    def drop_some(self, permille):
        """So many of a thousand packets that arrive are dropped, by chance, on both sides."""
        for namespace in self.a, self.b:
            run("ip", "netns", "exec", namespace, "nft",
                "table inet bm { chain in { type filter hook input priority 0; iifname \"v*\" "
                f"numgen random mod 1000 < {permille} counter drop\n}}\n}}")

    def dropped(self):
        return sum(int(re.search(r"packets (\d+)", subprocess.run(
            ["ip", "netns", "exec", namespace, "nft", "list", "table", "inet", "bm"], check=True,
            capture_output=True, text=True).stdout).group(1)) for namespace in (self.a, self.b))

    def drop_none(self):
        for namespace in self.a, self.b:
            run("ip", "netns", "exec", namespace, "nft", "delete", "table", "inet", "bm")

    def close(self):
        for namespace in self.a, self.b:
            subprocess.run(["ip", "netns", "del", namespace], check=False)


class Server:
    def __init__(self, kind, net, build, folder):
        self.kind, self.image, self.processes, self.folder = kind, folder + "/b.img", [], folder
        self.net = net
        with open(self.image, "wb") as f:
            f.truncate(SIZE)
        port, self.proxy = 10809, None
        if kind in ("nbd", "tls"):
            self.serve(build + "/blockmirror-nbd", "--listen", f"10.99.0.2:{port}", *self.secrets(), self.image)
        elif kind == "nbdkit":
            self.serve("nbdkit", "-f", "-i", "10.99.0.2", "-p", str(port), "file", self.image)
        else:
            self.tgt = folder + "/tgt"
            uri = run("ip", "netns", "exec", net.b, "fixtures/tgt.sh", "start", self.tgt, str(SIZE >> 20)).split()[-1]
            address = uri.split("/")[2]
            self.image, port = self.tgt + "/lun1.1.img", int(address.rsplit(":", 1)[1])
            self.path = uri.split("/", 3)[3] + ":disk/1"
        where = ("127.0.0.1" if kind == "iscsi" else "10.99.0.2", port)
        self.wait(where)
        self.proxy = Proxy(net.b, ("10.99.0.2", 4000), where)

    def secrets(self):
        if self.kind == "nbd":
            return ["--insecure"]
        with open(self.folder + "/keys.psk", "w") as f:
            f.write("alice:" + "5a" * 32 + "\n")
        return ["--tls", "require", "--tls-psk", self.folder + "/keys.psk"]

    def uri(self):
        if self.kind == "iscsi":
            return f"iscsi://10.99.0.2:4000/{self.path}"
        if self.kind == "tls":
            return f"nbds://alice@10.99.0.2:4000/?tls-psk-file={self.folder}/keys.psk"
        return "nbd://10.99.0.2:4000/"

    def serve(self, *command):
        log = open(self.folder + "/server.log", "ab")
        self.processes.append(subprocess.Popen(["ip", "netns", "exec", self.net.b, *command], stdout=log, stderr=log,
                                               stdin=subprocess.DEVNULL))

    def wait(self, where):
        end = time.monotonic() + 15
        probe = f"import socket; socket.create_connection(('{where[0]}', {where[1]}), 1)"
        while subprocess.run(["ip", "netns", "exec", self.net.b, sys.executable, "-c", probe], check=False,
                             capture_output=True).returncode:
            if time.monotonic() > end:
                raise Violation("the server does not listen")
            time.sleep(0.05)

    def pids(self):
        """exec by ip(8): the process is the server itself."""
        if self.kind == "iscsi":
            with open(self.tgt + "/pid") as f:
                return [int(f.read())]
        return [p.pid for p in self.processes]

    def signal(self, number):
        for pid in self.pids():
            os.kill(pid, number)

    def close(self):
        if self.proxy:
            self.proxy.cut_now()
        for p in self.processes:
            p.kill()
            p.wait()
        if self.kind == "iscsi":
            subprocess.run(["ip", "netns", "exec", self.net.b, "fixtures/tgt.sh", "stop", self.tgt], check=False,
                           capture_output=True)


class Case:
    def __init__(self, args, net, folder):
        self.net, self.dir, self.seed = net, folder, args.seed
        self.random = random.Random(args.seed)
        self.a = folder + "/a.img"
        data = self.random.randbytes(SIZE)
        with open(self.a, "wb") as f:
            f.write(data)
        self.server = Server(args.server, net, args.build, folder)
        self.disk = Disk(args.build, folder, ["ip", "netns", "exec", net.a])
        self.guest = Guest(folder + "/run/disks/d.nbd", "d", GUEST_BLOCKS, args.seed, data)
        self.faults = 0

    def job(self):
        job, _ = self.disk.call("job.show", 10)
        if not job:
            raise Violation("nobody answers" if not self.disk.ended() else "the process has ended")
        if job["phase"] == "ended" and job["state"] != "done":
            raise Violation(f"the job is {job['state']}: {job.get('error')}")
        return job

    def wait(self, what, seconds, is_so):
        end = time.monotonic() + seconds
        while True:
            job = self.job()
            if is_so(job):
                return job
            if time.monotonic() > end:
                raise Violation(f"not {what} within {seconds} s: {job['phase']}, target {job['progress']['target']}")
            time.sleep(0.02)

    def in_sync(self):
        return self.wait("in sync", 90, lambda j: j["phase"] == "in-sync" and j["progress"]["target"] == "in-sync")

    def losses(self):
        return self.job()["progress"]["target_losses"]

    def lost(self, before, seconds=30):
        self.wait("noticed", seconds, lambda j: j["progress"]["target_losses"] > before)
        self.faults += 1

    def begin(self):
        if not self.disk.start(self.a):
            raise Violation("it is not served")
        self.guest.start()
        begun, error = self.disk.begin(40, target=self.server.uri(), overwrite=True, manual=True,
                                       guest_latency="off")
        if not begun:
            raise Violation(f"it does not begin: {error}")
        self.in_sync()

    def end(self):
        """No fault any more: it switches over, and all is there."""
        job = self.in_sync()
        result, error = self.disk.call("verify", 60)
        if error or not result["equal"]:
            raise Violation(f"the copies differ: {error or result}")
        self.disk.call("switch", 1)
        ended = self.disk.job(60)
        if not ended or ended["state"] != "done":
            raise Violation(f"it does not switch: {ended or self.job()['phase']}")
        time.sleep(0.2)
        problem = self.guest.end()
        if problem or self.guest.errors or self.guest.reconnects:
            raise Violation(problem or f"the guest had errors {self.guest.error_numbers}, "
                                       f"{self.guest.reconnects} connections")
        if self.guest.longest > DEADLINE + SLACK:
            raise Violation(f"the guest waited for {self.guest.longest:.1f} s")
        self.disk.call("show", 5)
        self.disk.stop()
        with open(self.server.image, "rb") as f:
            image = f.read(SIZE)
        problem = self.guest.compare_all(image)
        if problem:
            raise Violation("at the end " + problem)
        p = job["progress"]
        print(f"faults {self.faults}, sessions lost {p['target_losses']}, bytes copied {p['copied_bytes']}, mirrored "
              f"{p['mirrored_bytes']}, guest requests {self.guest.requests}, longest "
              f"{self.guest.longest * 1000:.0f} ms, violations 0, seed {self.seed}")

    def close(self):
        self.guest.stopping, self.guest.patience = True, 0
        try:
            self.server.signal(signal.SIGCONT)
        except OSError:
            pass
        self.disk.kill()
        self.server.close()


# The faults: each is called in sync, and leaves the network well.

def cuts(case, offsets, how):
    """In what is carried, n bytes from now on, in either direction."""
    for direction in UP, DOWN:
        for n in offsets:
            if direction == DOWN and n > 5000:  # answers to writes are short: that would take long
                continue
            case.in_sync()
            before = case.losses()
            case.server.proxy.cut_after(direction, n, how)
            case.lost(before)


def cut_boundaries(case):
    cuts(case, BOUNDARIES, "reset")


def cut_random(case):
    cuts(case, [case.random.randrange(1, 1 << case.random.randrange(4, 17)) for _ in range(20)], "reset")


def cut_end(case):
    """In order, as by a server that ends."""
    cuts(case, case.random.sample(BOUNDARIES, 6), "end")


def cut_silence(case):
    """Nothing comes any more, and nobody says so."""
    cuts(case, case.random.sample(BOUNDARIES, 3), "silence")
    case.server.proxy.cut_now()


def cut_greeting(case):
    """The next connection is cut while it is being made."""
    for direction in UP, DOWN:
        for n in BOUNDARIES[:14] + [case.random.randrange(50, 400) for _ in range(3)]:
            case.in_sync()
            before = case.losses()
            cuts_before = case.server.proxy.cuts
            case.server.proxy.cut_greeting_after(direction, n, "reset")
            case.server.proxy.cut_now()
            case.lost(before)
            end = time.monotonic() + 3
            while case.server.proxy.cuts == cuts_before and time.monotonic() < end:
                time.sleep(0.02)


def link_down(case, seconds):
    before = case.losses()
    case.net.link("down")
    begin = time.monotonic()
    case.lost(before)
    time.sleep(max(0, seconds - (time.monotonic() - begin)))
    case.net.link("up")


def link_down_short(case):
    for seconds in (1, 3):
        case.in_sync()
        case.net.link("down")
        time.sleep(seconds)
        case.net.link("up")
        case.faults += 1


def half_open(case, namespace, address):
    before = case.losses()
    case.net.lose(namespace, address, "add")
    try:
        case.lost(before)
        time.sleep(3)
    finally:
        case.net.lose(namespace, address, "del")


def stopped(case):
    before = case.losses()
    case.server.signal(signal.SIGSTOP)
    try:
        case.lost(before)
        time.sleep(1)
    finally:
        case.server.signal(signal.SIGCONT)


def slow_link(case):
    case.net.shape("tbf", "rate", "100mbit", "burst", "256k", "latency", "50ms")
    time.sleep(5)
    case.in_sync()
    case.faults += 1
    case.net.unshape()


def far_away(case):
    case.server.proxy.delay = 0.02
    time.sleep(5)
    case.server.proxy.delay = 0
    case.faults += 1


def loss(case):
    """One packet in fifty, each way."""
    case.net.drop_some(20)
    time.sleep(8)
    case.in_sync()
    dropped = case.net.dropped()
    case.net.drop_none()
    print(f"packets dropped: {dropped}")
    if not dropped:
        raise Violation("no packet was dropped")
    case.faults += 1


FAULTS = {
    "cut-boundaries": cut_boundaries, "cut-random": cut_random, "cut-end": cut_end, "cut-silence": cut_silence,
    "cut-greeting": cut_greeting, "down-short": link_down_short, "down-10": lambda c: link_down(c, 10),
    "down-30": lambda c: link_down(c, 30),
    "drop-there": lambda c: half_open(c, c.net.a, "10.99.0.2"),
    "drop-back": lambda c: half_open(c, c.net.b, "10.99.0.1"), "stopped": stopped, "slow-link": slow_link,
    "far-away": far_away, "loss": loss,
}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("scratch")
    p.add_argument("server", choices=SERVERS)
    p.add_argument("fault", choices=FAULTS)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    args = p.parse_args()
    clean_up_on_sigterm()
    args.build = os.path.realpath(args.build)
    folder = f"{os.path.realpath(args.scratch)}/{args.server}-{args.fault}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    net = case = None
    status = 1
    try:
        net = Net()
        case = Case(args, net, folder)
        case.begin()
        FAULTS[args.fault](case)
        case.end()
        status = 0
    except Violation as e:
        print(f"{args.server} {args.fault}: {e} (seed {args.seed})\n" + (case.disk.said(0)[-2000:] if case else ""))
        status = 1
    except subprocess.CalledProcessError as e:
        print(f"{e}: {e.stderr}")
        status = 77 if args.fault == "slow-link" else 1
    finally:
        if case:
            case.close()
        if net:
            net.close()
    sys.stdout.flush()
    os._exit(status)  # threads of the proxy may still wait


if __name__ == "__main__":
    sys.exit(main())
