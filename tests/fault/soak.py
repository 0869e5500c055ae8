# SPDX-License-Identifier: BSD-3-Clause
"""Soak: a disk moves to and fro for as long as is wanted, and all sorts of things go wrong.

soak.py MINUTES [--seed N] [--keep DIR]

Images are files, one of them where space runs out, and exports of three servers, one of them slow. In
every other stretch of time processes are killed and upgraded, too; in those between they live, and
must have as many descriptors, and about as much memory, at the end as at the beginning. At the end of
each stretch the load has read everything back, and the image is compared with what the disk serves.
$HOLD: while that file exists no move begins, and there is no load.
"""
import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from lab import (BUILD, M, Lab, Refused, Server, Violation, become_reaper, call, end_all, is_gone,
                 kill_all, mark_of, same)

SIZE, LOADED = 16 * M, 8 * M
ENDED = ("done", "undone", "cancelled", "failed", "interrupted")
GROWTH = 12 * M  # of a process's memory in a stretch: what its allocator keeps differs by some MiB


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


class Soak(Lab):
    """The disk, where it may go, and what happened to it."""

    def __init__(self, folder, seed, minutes):
        super().__init__(folder, seed)
        self.minutes = minutes
        self.servers, self.images = {}, {}  # by URI: the server; the file
        self.faults, self.moves, self.verdicts = {}, {}, []
        self.requests = self.reconnects = 0
        self.killing, self.small = False, None
        self.content = os.urandom(SIZE)

    # The scene

    def start(self):
        with open(os.path.join(self.dir, "first.img"), "wb") as f:
            f.write(self.content)
        for name in ("first", "second"):
            path = os.path.join(self.dir, name + ".img")
            self.images[path] = path
        for name, kind in (("own", "blockmirror-nbd"), ("foreign", "qemu-nbd"), ("slow", "slow")):
            path = os.path.join(self.dir, name + ".img")
            with open(path, "wb") as f:
                f.truncate(SIZE)
            server = Server(self, name, kind, path)
            server.start()
            self.servers[server.uri], self.images[server.uri] = server, path
        small = os.path.join(self.dir, "small")
        os.mkdir(small)
        if not subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE + M}", "none", small],
                              check=False, stderr=subprocess.DEVNULL).returncode:
            self.small = os.path.join(small, "disk.img")
            self.images[self.small] = self.small
        self.start_daemon()
        if self.serve(os.path.join(self.dir, "first.img")).wait(60):
            raise Violation("the disk is not served: " + self.log_tail("log"))
        self.begin_load()

    def end(self):
        super().end()
        if self.small:
            subprocess.run(["umount", "-l", os.path.dirname(self.small)], check=False)

    def begin_load(self):
        self.start_load(LOADED, "--iops", str(self.random.choice((50, 150, 400))), "--sizes", "512:64k",
                        "--connections", "2", *(("--resume",) if self.verdicts else ()))
        time.sleep(0.5)

    def disk(self):
        """show; who was killed is back soon."""
        end = time.monotonic() + 180
        while True:
            self.load_lives()
            self.mind_servers()
            with contextlib.suppress(OSError, EOFError):
                return self.show(5)
            if time.monotonic() > end:
                raise Violation("the disk is not back: " + self.log_tail("run/disks/disk.log"))
            time.sleep(0.05)

    def ask(self, method, params=None):
        """A call whose refusal is no matter here; what it led to is looked at."""
        with contextlib.suppress(OSError, EOFError, Refused):
            call(self.control, method, params, 2)

    # What goes wrong

    def stop_a_while(self, pid, most):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.random.uniform(0, most))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def kill_server(self, server):
        kill_all([server.process.pid])
        time.sleep(self.random.uniform(0, 0.5))
        server.start()

    def kill_daemon(self):
        kill_all([self.daemon.pid])
        time.sleep(self.random.uniform(0, 0.5))
        self.start_daemon()

    def upgrade(self):
        self.spawn([os.path.join(BUILD, "blockmirror"), "upgrade", "disk"]).wait(60)

    def fault(self, disk):
        """One of those that are possible now."""
        r, job = self.random, disk["job"]
        remote = self.servers.get(job["target"])
        possible = {
            "disk stopped": lambda: self.stop_a_while(disk["pid"], 1),
            "daemon stopped": lambda: self.stop_a_while(self.daemon.pid, 1),
            "paused": lambda: (self.ask("job.pause"), time.sleep(r.uniform(0, 1)), self.ask("job.resume")),
            "rate": lambda: self.ask("job.set", {"rate": r.choice((4 * M, 16 * M, 64 * M, 0))}),
            "cancelled": lambda: self.ask("job.cancel"),
            "compared": lambda: self.ask("verify"),
        }
        # A remote image that is the authority must not lose its server: see docs/mirror.md.
        if remote and disk["uri"] != job["target"] and job["phase"] in ("copying", "verifying") or \
                remote and job["phase"] == "in-sync" and job["switch"] == "manual":
            possible["server stopped"] = lambda: self.stop_a_while(remote.process.pid, 4)
            possible["server killed"] = lambda: self.kill_server(remote)
        if self.killing:
            possible["disk killed"] = lambda: kill_all([disk["pid"]])
            possible["daemon killed"] = self.kill_daemon
            possible["both killed"] = lambda: (kill_all([disk["pid"]]), self.kill_daemon())
            possible["upgraded"] = self.upgrade
        name = r.choice(list(possible))
        self.faults[name] = self.faults.get(name, 0) + 1
        possible[name]()

    # A move

    def begin(self, target):
        r = self.random
        params = {"target": target, "overwrite": True, "manual": r.random() < 0.5,
                  "verify": r.random() < 0.5, "rate": r.choice((0, 8 * M, 16 * M)),
                  "guest_latency": r.choice(("off", "auto")), "target_deadline": 10000000000}
        if r.random() < 0.5:
            params["undo_window"] = int(r.choice((0.3, 2, 600)) * 1e9)
        end = time.monotonic() + 300
        while True:
            self.mind_servers()
            try:
                call(self.control, "relocate", params, 120)
                return
            except Refused as e:
                if not self.mind_servers():
                    raise Violation(f"the move to {target} was refused: {e}") from e
            except (OSError, EOFError):
                job = self.disk()["job"]
                if job and job["state"] == "running":
                    return
            if time.monotonic() > end:
                raise Violation(f"no move to {target} begins")

    def mind_servers(self):
        """One that has died by itself is started again; whether there was one."""
        died = [s for s in self.servers.values() if s.has_died()]
        for server in died:
            server.start()
            self.faults["nbdkit died by itself"] = self.faults.get("nbdkit died by itself", 0) + 1
        return bool(died)

    def fill(self, fill):
        """Less space than the target takes; True when it is full."""
        with open(fill, "wb") as f, contextlib.suppress(OSError):
            f.write(bytes(SIZE // 2))
        self.faults["full"] = self.faults.get("full", 0) + 1

    def order(self, job):
        """What a move waits for."""
        r = self.random
        if job["phase"] == "in-sync" and job["switch"] == "manual":
            self.ask(r.choice(("switch", "switch", "job.cancel")))
        elif job["phase"] == "undo-window" and r.random() < 0.5:
            self.ask(r.choice(("undo", "release")))
        elif job["state"] == "paused" or job.get("progress", {}).get("target") == "target-full":
            self.ask("job.resume")

    def move(self):
        here = self.disk()["uri"]
        target = self.random.choice([uri for uri in self.images if uri != here])
        fill = os.path.join(self.dir, "small/fill")
        if target == self.small and here != self.small and self.random.random() < 0.7:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.small)
            self.begin(target)
            self.fill(fill)
        else:
            self.begin(target)
        began = time.monotonic()
        while True:
            self.mind_servers()
            disk = self.disk()
            job = disk["job"]
            if job["state"] in ENDED:
                break
            if job.get("progress", {}).get("mismatches"):
                raise Violation("granules were clean, idle, and different")
            if self.random.random() < 0.2:
                self.fault(disk)
            elif self.random.random() < 0.5:
                self.order(job)
            if time.monotonic() - began > 3:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fill)
            if time.monotonic() - began > 300:
                raise Violation(f"the move does not end: {job}")
            time.sleep(self.random.uniform(0, 0.3))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fill)
        self.judge_move(disk, job, target, here)

    def judge_move(self, disk, job, target, here):
        self.moves[job["state"]] = self.moves.get(job["state"], 0) + 1
        if job["state"] in ("failed", "interrupted"):
            raise Violation(f"the move ended as {job['state']}: {job.get('error')}")
        where = target if job["state"] == "done" else here
        record = self.read_record()
        if disk["uri"] != where or record["uri"] != where or record["job"]["state"] != job["state"]:
            raise Violation(f"{job['state']}: the disk is on {disk['uri']}, says the record {record}")
        if where[0] == "/" and mark_of(where) != "active":
            raise Violation(f"the truth is marked {mark_of(where)}")

    # Judgement

    def judge(self):
        """The load has read everything; what the disk serves is its image, and what nobody wrote is
        what it was."""
        report = self.end_load()
        self.requests += report["requests"]
        self.reconnects += report["reconnects"]
        self.verdicts.append(report["requests"])
        seen, disk = os.path.join(self.dir, "seen"), self.disk()
        if subprocess.run(["nbdcopy", self.disk_uri, seen], check=False, timeout=120).returncode:
            raise Violation("the disk cannot be read")
        if not same(seen, self.images[disk["uri"]], 0, SIZE):
            raise Violation("the disk does not serve what is in its image")
        with open(seen, "rb") as f:
            f.seek(LOADED)
            if f.read() != self.content[LOADED:]:
                raise Violation("what nobody wrote has changed")

    def long_lived(self):
        """Name, process: those that live through a stretch."""
        return [("disk", self.disk()["pid"]), ("daemon", self.daemon.pid)]

    def go_home(self):
        """To where what a process has is comparable."""
        home, end = os.path.join(self.dir, "first.img"), time.monotonic() + 300
        while (disk := self.disk())["uri"] != home or disk["job"] and disk["job"]["state"] not in ENDED:
            if not disk["job"] or disk["job"]["state"] in ENDED:
                self.ask("relocate", {"target": home, "overwrite": True, "guest_latency": "off"})
            time.sleep(0.2)
            if time.monotonic() > end:
                raise Violation(f"it does not go home: {disk['job']}")
        time.sleep(0.5)

    def stretch(self, end):
        """Moves until END; how much the processes took before and after."""
        if not self.load:
            self.begin_load()
        for _ in range(3):  # what is allocated once is there then
            self.move()
        self.go_home()
        before = {name: (pid, descriptors(pid), memory(pid)) for name, pid in self.long_lived()}
        moves = 0
        while time.monotonic() < end or moves < 2:
            self.rest()
            self.move()
            moves += 1
        self.go_home()
        for name, (pid, fds, rss) in before.items():
            if self.killing or is_gone(pid):
                continue
            now, took = descriptors(pid), memory(pid)
            print(f"# {name}, {moves} moves: descriptors {fds}, then {now}; memory {rss // 1024}, then "
                  f"{took // 1024} KiB", flush=True)
            if now > fds + 1 or took > rss + GROWTH:
                raise Violation(f"{name} grows")
        self.judge()

    def rest(self):
        hold = os.environ.get("HOLD", "/nonexistent")
        if not os.path.exists(hold):
            return
        self.judge()
        while os.path.exists(hold):
            time.sleep(1)
        self.begin_load()

    def all(self):
        start, length = time.monotonic(), max(20, self.minutes * 60 / 8)
        while time.monotonic() < start + self.minutes * 60:
            self.stretch(time.monotonic() + length)
            self.killing = not self.killing


def counted(count):
    return ", ".join(f"{name} {n}" for name, n in sorted(count.items(), key=lambda i: -i[1]))


def main():
    parser = argparse.ArgumentParser(description="a disk moves to and fro")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.randrange(1000000000))
    parser.add_argument("--keep")
    options = parser.parse_args()
    print(f"# seed {options.seed}", flush=True)
    become_reaper()
    top = tempfile.mkdtemp(prefix="bm-soak.", dir=os.environ.get("TMPDIR", "/var/tmp"))
    soak, status, start = Soak(os.path.join(top, "s"), options.seed, options.minutes), 0, time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        soak.start()
        soak.all()
    except KeyboardInterrupt:
        print("# told to end")
    except Violation as e:
        print(f"# violation: {e}")
        status = 1
        if options.keep:
            shutil.copytree(soak.dir, options.keep, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns("*.s", "*.sock", "*.nbd", ".adopt"))
    finally:
        soak.end()
        end_all()
        shutil.rmtree(top, ignore_errors=True)
    print(f"# {(time.monotonic() - start) / 60:.1f} minutes; moves: {counted(soak.moves)}")
    print(f"# faults and orders: {counted(soak.faults)}")
    print(f"# the load: {soak.requests} requests in {len(soak.verdicts)} verdicts, "
          f"{soak.reconnects} times cut off")
    print(f"# violations: {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())
