# SPDX-License-Identifier: BSD-3-Clause
"""Process death: a disk moves under load, and what takes part in that is killed at random moments.

Each run has a seed of its own, which chooses where the disk moves, how, who is killed, and when: at
a moment that is uniform over the time that moves take here and now, or as a phase begins. What was killed
is started again, unless the product does that; the move comes to its end; then all is looked at.
Prints the figures; exit status 1 when anything was violated. Options: see campaign.py.
"""
import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import campaign
from campaign import counted, middle
from lab import (BUILD, GRANULE, M, Control, Lab, Refused, Server, Violation, answer_of, call, kill_all,
                 mark_of, same, wait_for)

CONTENT = os.urandom(16 * M)  # what images hold at first
PATHS = ("file file", "file blockmirror-nbd", "file nbdkit", "blockmirror-nbd file", "qemu-nbd file")
PHASES = ("preparing", "copying", "verifying", "in-sync", "switching", "undo-window", "finishing")
FIRST = ("preparing", "copying", "verifying", "in-sync")  # the disk is on its source
ENDED = ("done", "undone", "cancelled", "failed", "interrupted")
BESIDE = 0.5  # s that a move takes beside copying and comparing, where that is not known yet
DEADLINE = 10000000000  # ns for the target's answer: busy is not lost
PATIENCE = 300  # s after which nothing is waited for any more: a busy machine is slow


class Case:
    """What a seed chooses."""

    def __init__(self, seed, beside):
        r = random.Random(seed)
        self.seed = seed
        self.source, self.target = r.choices(PATHS, (35, 20, 15, 20, 10))[0].split()
        self.daemon = r.random() < 0.6
        self.window = r.random() < 0.5
        self.end = r.choice(("undo", "undo", "release", "expire")) if self.window else \
            r.choices(("done", "cancel"), (85, 15))[0]
        self.settle = r.random() < 0.25  # the load ends before the move does, and both are compared
        self.size = r.choices((4, 8, 16), (5, 4, 1))[0] * M
        self.loaded = self.size // 2  # behind it nobody writes
        self.rate = int(self.size / r.uniform(0.2, 1))
        self.iops = r.choice((50, 100, 150))
        victims = ["disk"] * 6
        remote = self.source + self.target != "filefile"
        if remote:
            victims += ["server", "server", "disk server"]
        if self.daemon:
            victims += ["daemon", "disk daemon"] + ["disk daemon server"] * remote
        self.kills = []
        for _ in range(r.choices((1, 2, 3), (5, 3, 2))[0]):
            who = r.choice(victims).split()
            r.shuffle(who)
            if r.random() < 0.5:
                when = ("at", r.uniform(0, beside + 2 * self.size / self.rate))
            else:
                when = (r.choices(PHASES, (2, 1, 1, 2, 4, 3 if self.window else 0, 3))[0],
                        r.choice((0, r.uniform(0, 0.005), r.uniform(0, 0.03))))
            self.kills.append((when, who))
        self.kills.sort(key=lambda k: k[0][1] if k[0][0] == "at" else 9)
        self.manual = self.end == "cancel" or self.settle or r.random() < 0.3


class Run:
    """One case, carried out."""

    def __init__(self, case, folder):
        self.case, self.r = case, random.Random(case.seed + 1)
        self.lab = Lab(folder, case.seed)
        self.events = self.job = self.pid = None
        self.phase, self.seen, self.began = "preparing", {}, 0.0
        self.mover = None      # the connection that has asked for the move
        self.relocated = 0     # when the move was asked for, as jobs tell it
        self.asked = 0.0       # when the order for the end was given last
        self.server_died, self.since = False, 0.0
        self.kept = None       # the unsettled bytes of the map that was examined last
        self.resumes = 0
        self.figures = {"size": case.size, "rate": case.rate, "kills": [], "again": 0, "answers": [],
                        "by_hand": [], "foreign": [], "nbdkit": 0, "resumed": {}, "dirty": 0, "resent": 0, "settled_maps": 0, "compared": 0,
                        "ended": "", "took": 0, "reconnects": 0, "stall": 0, "requests": 0}

    # The scene

    def image(self, uri):
        """The file that holds an image."""
        return next((s.path for s in self.servers if s.uri == uri), uri)

    def start(self):
        lab, case = self.lab, self.case
        self.a, self.b = os.path.join(lab.dir, "a.img"), os.path.join(lab.dir, "b.img")
        with open(self.a, "wb") as f:
            f.write(CONTENT[:case.size])
        self.servers, uris = [], []
        for name, kind, path in (("a", case.source, self.a), ("b", case.target, self.b)):
            if kind == "file":
                uris.append(path)
                continue
            if path == self.b:
                with open(path, "wb") as f:
                    f.truncate(case.size)
            self.servers.append(Server(lab, name, kind, path))
            self.servers[-1].start()
            uris.append(self.servers[-1].uri)
        self.foreign = [s.uri for s in self.servers if s.kind != "blockmirror-nbd"]
        self.source, self.target = uris
        if case.daemon:
            lab.start_daemon()
        if lab.serve(self.source).wait(PATIENCE):
            raise Violation("the disk is not served: " + lab.log_tail("log"))
        self.pid = lab.show()["pid"]
        lab.start_load(case.loaded, "--iops", str(case.iops), "--sizes", "512:64k", "--fill", "25",
                       "--connections", str(self.r.choice((1, 2, 4))))
        wait_for(lambda: lab.show()["requests"]["write"] > 20, 60, "the load begins", 0.05)

    def listen(self):
        """Events of the process that serves now."""
        if self.events:
            self.events.close()
        self.events = Control(self.lab.control)
        self.events.send("events")
        self.events.line(30)

    def relocate(self):
        """Asks for the move; the answer comes later, if at all."""
        case = self.case
        params = {"target": self.target, "overwrite": True, "manual": case.manual, "verify": True,
                  "rate": case.rate, "guest_latency": "off", "target_deadline": DEADLINE}
        if case.window:
            params["undo_window"] = int((0.5 if case.end == "expire" else 600) * 1e9)
        if self.mover:
            self.mover.close()
        now = time.time_ns()
        self.mover = Control(self.lab.control)
        self.mover.send("relocate", params)
        self.job, self.phase, self.asked, self.relocated = None, "preparing", 0.0, now

    # Watching

    def heed(self, line):
        """An event."""
        job = line.get("params", {}).get("job")
        if job:
            self.take(job)

    def take(self, job):
        if job.get("started", 0) < self.relocated:
            return  # one that was refused, and told of late
        self.job = job
        if job["phase"] != self.phase:
            self.phase = job["phase"]
            self.seen[self.phase] = self.seen.get(self.phase, 0) + 1
        if job.get("progress", {}).get("mismatches"):
            raise Violation(f"{job['progress']['mismatches']} granules were clean, idle, and different")

    def turn(self, seconds):
        """Waits for an event, and takes it."""
        try:
            line = self.events.line(seconds)
        except (EOFError, OSError) as e:
            raise Violation("the disk's process ended by itself: " + self.tail()) from e
        if line:
            self.heed(line)
        self.lab.load_lives()

    def tail(self):
        return self.lab.log_tail("run/disks/disk.log")

    def ended(self):
        """A move that was refused is none: who asked is told."""
        return not self.mover and bool(self.job) and self.job["state"] in ENDED

    def was_refused(self):
        """Whether the move that was asked for came to nothing before it began."""
        if not self.mover:
            return False
        try:
            line = self.mover.line(0)
        except (EOFError, OSError):
            raise Violation("who asked for the move was cut off: " + self.tail()) from None
        if not line:
            return False
        self.mover.close()
        self.mover = None
        try:
            answer_of(line)
        except Refused as e:
            if not self.server_died or e.args[0] not in ("E_UNREACHABLE", "E_IO"):
                raise Violation(f"the move was refused: {e}") from e
            return True
        return False

    # Dying

    def strike(self, who):
        lab, r = self.lab, self.r
        server = self.servers[-1] if self.servers else None
        pids = {"disk": self.pid, "daemon": lab.daemon and lab.daemon.pid,
                "server": server and server.process.pid}
        examine = "disk" in who and r.random() < 0.5
        held = examine and lab.daemon and "daemon" not in who
        if held:
            os.kill(lab.daemon.pid, signal.SIGSTOP)
        lab.read_record()
        self.figures["kills"].append(("+".join(sorted(who)), self.phase))
        start = time.monotonic()
        kill_all([pids[name] for name in who])
        if examine:
            self.examine()
            start = time.monotonic()
        if held:
            os.kill(lab.daemon.pid, signal.SIGCONT)
        self.server_died |= "server" in who
        order = [name for name in who if name != "disk"]
        r.shuffle(order)
        for name in order:
            if r.random() < 0.5:
                time.sleep(r.uniform(0, 0.3))
                start = time.monotonic()
            self.revive(name)
        if "disk" in who:
            self.back(start)
        elif "daemon" in who:
            wait_for(self.is_adopted, PATIENCE, "the daemon has its disk again")

    def examine(self):
        """At rest, nothing runs that would write: the map must be right."""
        self.kept = self.lab.unsettled(self.lab.read_record(), self.image)
        self.figures["settled_maps"] += self.kept is not None

    def revive(self, name):
        if name == "daemon":
            self.lab.start_daemon()
        else:
            self.servers[-1].start()

    def mind_servers(self):
        """One that has died by itself is started again."""
        died = [s for s in self.servers if s.has_died()]
        for server in died:
            server.start()
            self.server_died = True
            self.figures["nbdkit"] += 1
        return bool(died)

    def is_adopted(self):
        with contextlib.suppress(OSError, EOFError, Refused):
            disk = call(os.path.join(self.lab.run, "blockmirrord.sock"), "show", {"name": "disk"})
            return disk["state"] == "running"
        return False

    def back(self, start):
        """Until another process serves the disk; it may be killed meanwhile."""
        lab, dead, again, kind = self.lab, self.pid, 0, "answers" if self.lab.daemon else "by_hand"
        starter = None if lab.daemon else lab.serve()
        while self.r.random() < 0.3 and again < 3:
            time.sleep(self.r.choice((self.r.uniform(0, 0.03), self.r.uniform(0, 0.3))))
            victims = [pid for pid in lab.disk_processes() if pid != dead]
            kill_all(victims)
            if not victims:
                continue
            again, self.kept, start = again + 1, None, time.monotonic()
            if starter:
                starter.wait(PATIENCE)
                starter = lab.serve()
        self.figures["again"] += again
        disk = None
        while not disk:
            if self.mind_servers():
                kind = "foreign"
            if starter and starter.wait(PATIENCE):
                if kind != "foreign" and not self.mind_servers():
                    raise Violation("the disk is not served again: " + lab.log_tail("log"))
                kind, starter = "foreign", lab.serve()
            disk = lab.answers(dead)
            if not disk:
                time.sleep(0.005)
            if time.monotonic() - start > PATIENCE:
                raise Violation("the disk is not back: " + self.tail())
        if lab.read_record()["uri"] in self.foreign:
            kind = "foreign"
        self.figures[kind].append(round((time.monotonic() - start) * 1000, 1))
        self.pid, self.since = disk["pid"], time.monotonic()
        self.listen()
        self.taken_up(lab.show(), again)

    def taken_up(self, disk, again):
        """What the next process says of the job."""
        record = self.lab.read_record()
        if record["uri"] not in (self.source, self.target):
            raise Violation(f"the record names {record['uri']}")
        if self.mover:
            self.mover.close()
            self.mover = None
        job = disk["job"]
        if not job:
            self.relocate()
            return
        self.asked = 0.0
        resumed = job.get("resumed")
        if resumed and resumed["times"] > self.resumes:
            self.resumes = resumed["times"]
            self.figures["resumed"][resumed["from"]] = self.figures["resumed"].get(resumed["from"], 0) + 1
            if self.kept is not None and not again:
                if resumed["from"] != "map":
                    raise Violation(f"there was a map, and the job went on from {resumed['from']}")
                if resumed["dirty_bytes"] != self.kept:
                    raise Violation(f"{self.kept} bytes were unsettled, {resumed['dirty_bytes']} are copied")
        self.kept = None
        self.take(job)

    # To the end

    def give_order(self):
        """What the case wants at this point, once, and again when nothing came of it."""
        case, now = self.case, time.monotonic()
        if self.asked and now - self.asked < 3:
            return
        order = None
        if self.phase == "in-sync" and case.end == "cancel":
            order = "job.cancel"
        elif self.phase == "in-sync" and case.manual and self.job.get("undo_until", 0) == 0:
            order = "switch"
        elif self.phase == "undo-window" and case.end in ("undo", "release"):
            order = case.end
        if not order:
            return
        if case.settle and self.lab.load and not self.lab.load.returncode:
            self.compare_at_rest()
        self.asked = now
        control = Control(self.lab.control)  # the answer is not waited for: events tell
        control.send(order)
        self.callers.append(control)

    def compare_at_rest(self):
        """In sync, or in the window, and nobody writes: both images are equal."""
        self.finish_load()
        disk = self.lab.show()
        if disk["state"] != "in-sync":
            return
        if not same(self.a, self.b, 0, self.case.size):
            raise Violation(f"{self.phase}: in sync, nobody writes, and the images differ")
        self.figures["compared"] += 1

    def finish_load(self):
        report = self.lab.end_load()
        if report:
            self.figures["stall"] = report["longest_request"]["ms"]
            self.figures["requests"] = report["requests"]
            self.figures["reconnects"] = report["reconnects"]

    def is_possible(self, kill):
        """A flush of the guest may fail when our process and the server of the authority die together,
        or nearly so: what was answered and not flushed may be lost then (docs/mirror.md)."""
        _, who = kill
        only_target = self.case.target != "file" and self.phase in FIRST
        return "server" not in who or only_target or \
            (len(who) == 1 and time.monotonic() - self.since > 3)

    def is_due(self, kill):
        (what, when), _ = kill
        now = time.monotonic()
        if what == "at":
            return now - self.began >= when
        if what == self.phase and self.seen.get(what, 0) <= 2:
            time.sleep(when)
            return True
        return False

    def move(self):
        self.listen()
        self.began = self.since = time.monotonic()
        self.relocate()
        kills, self.callers = list(self.case.kills), []
        while True:
            if self.was_refused():
                self.relocate()
            due = next((k for k in kills if self.is_possible(k) and self.is_due(k)), None)
            if due:
                kills.remove(due)
                self.strike(due[1])
                continue
            if self.ended():
                break
            self.mind_servers()
            self.give_order()
            now = time.monotonic() - self.began
            self.turn(min([0.1] + [max(when - now, 0.02) for (what, when), _ in kills if what == "at"]))
            if time.monotonic() - max(self.began, self.since) > PATIENCE:
                raise Violation(f"the move does not end: {self.job and self.job['state']} "
                                f"{self.phase} {self.tail()}")
        self.figures["took"] = round(time.monotonic() - self.began, 2)

    # Judgement

    def judge(self):
        lab, case, job = self.lab, self.case, self.job
        self.figures["ended"] = job["state"]
        if job["state"] not in {"cancel": ("cancelled",), "undo": ("undone",)}.get(case.end, ("done",)):
            raise Violation(f"the job ended as {job['state']}, {case.end} was wanted: {job.get('error')}")
        self.judge_resent(job)
        live, old = (self.target, self.source) if job["state"] == "done" else (self.source, self.target)
        time.sleep(0.2)
        self.finish_load()
        disk = lab.show()
        if disk["uri"] != live or lab.read_record()["uri"] != live:
            raise Violation(f"after {job['state']} the disk is on {disk['uri']}")
        if lab.read_record()["job"]["state"] != job["state"]:
            raise Violation(f"the record says {lab.read_record()['job']['state']}")
        if disk["pid"] != self.pid:
            raise Violation("another process serves the disk: " + self.tail())
        self.judge_marks(job["state"], live, old)
        self.judge_bytes(live)
        if os.path.exists(lab.map):
            raise Violation("the map outlives the job")
        with open(os.path.join(lab.run, "disks/disk.log"), encoding="utf-8", errors="replace") as f:
            if "Assertion" in (said := f.read()) or "Sanitizer" in said:
                raise Violation("a process said: " + self.tail())

    def judge_resent(self, job):
        """What the last process copied is what might have differed, and what collided."""
        resumed, progress = job.get("resumed"), job.get("progress")
        if not resumed or not progress:
            return
        sent = progress["copied_bytes"] + progress["zero_bytes"]
        self.figures["resent"] += sent
        self.figures["dirty"] += resumed["dirty_bytes"]
        if not self.server_died and sent > 1.5 * resumed["dirty_bytes"] + \
                16 * GRANULE * (1 + progress["collisions"]):
            raise Violation(f"{sent} bytes were sent again, {resumed['dirty_bytes']} were dirty")

    def judge_marks(self, state, live, old):
        if "/" == live[0] and mark_of(live) != "active":
            raise Violation(f"the truth is marked {mark_of(live)}")
        wanted = (None, "incomplete") if state == "cancelled" else ("retired",)
        if "/" == old[0] and mark_of(old) not in wanted:
            raise Violation(f"the old copy is marked {mark_of(old)}")
        if os.path.exists(old) and self.r.random() < 0.3:
            thief = self.lab.spawn([os.path.join(BUILD, "blockmirror"), "serve", "thief", old])
            if thief.wait(PATIENCE) != 3:
                raise Violation("the old copy is served: " + self.lab.log_tail("log"))

    def judge_bytes(self, live):
        seen = os.path.join(self.lab.dir, "seen")
        if subprocess.run(["nbdcopy", self.lab.disk_uri, seen], check=False, timeout=PATIENCE).returncode:
            raise Violation("the disk cannot be read")
        if not same(seen, self.image(live), 0, self.case.size):
            raise Violation("the disk does not serve what is in its image")
        with open(seen, "rb") as f:
            f.seek(self.case.loaded)
            if f.read() != CONTENT[self.case.loaded:self.case.size]:
                raise Violation("what nobody wrote has changed")


def one(figures, past, folder):
    """A run of a campaign."""
    beside = [max(f["took"] - 2 * f["size"] / f["rate"], 0.1) for f in past[-25:] if f.get("took")]
    run = Run(Case(figures["seed"], middle(beside) or BESIDE), folder)
    try:
        run.start()
        run.move()
        run.judge()
    finally:
        figures.update(run.figures)


def report(results):
    """The figures, a line each."""
    good = [f for f in results if "kills" in f]
    kills = [tuple(k) for f in good for k in f["kills"]]
    resumed = {}
    for f in good:
        for source, n in f["resumed"].items():
            resumed[source] = resumed.get(source, 0) + n
    seeds = [f["seed"] for f in results]
    print(f"# runs: {len(results)}, seeds {min(seeds)} to {max(seeds)}, a move took "
          f"{middle([f['took'] for f in good])} s (median), a run {middle([f['cpu'] for f in good]):.1f} s "
          f"of a processor")
    print(f"# moves ended: {counted(f['ended'] for f in good if f['ended'])}")
    print(f"# kills: {len(kills)}, and while a killed one came back {sum(f['again'] for f in good)}")
    print(f"# kills by victim: {counted(who for who, _ in kills)}")
    print(f"# kills by phase: {counted(phase for _, phase in kills)}; nbdkit died by itself "
          f"{sum(f['nbdkit'] for f in good)} times")
    print(f"# resumes: {sum(resumed.values())} ({counted(s for s, n in resumed.items() for _ in range(n))})")
    print(f"# sent again by the last process of each, in bytes: {sum(f['resent'] for f in good)}, "
          f"might have differed {sum(f['dirty'] for f in good)}")
    print(f"# maps looked at after a kill {sum(f['settled_maps'] for f in good)}, copies compared at "
          f"rest {sum(f['compared'] for f in good)}")
    for key, what in (("answers", "by the daemon"), ("by_hand", "started by hand"),
                      ("foreign", "on a foreign server, with its wait of 2 s")):
        ms = [m for f in good for m in f[key]]
        print(f"# back {what}: {len(ms)} times, median {middle(ms)} ms, longest {max(ms, default=0)} ms; "
              f"within 300 ms {sum(m <= 300 for m in ms)}")
    print(f"# the load: {sum(f['requests'] for f in good)} requests, {sum(f['reconnects'] for f in good)} "
          f"times cut off, longest {max((f['stall'] for f in good), default=0)} ms")


if __name__ == "__main__":
    sys.exit(campaign.run("a disk moves, and processes die", one, report))
