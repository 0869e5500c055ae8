# SPDX-License-Identifier: BSD-3-Clause
"""Power cut: a disk moves under load, and the power of a host goes.

power.py shutdown|volatile [--cycles N] [--jobs N] [--seed N] [--keep DIR]

shutdown: images, record and map are on xfs and ext4, which are shut down beneath them. volatile: they
are on disks with a cache that forgets, tears and reorders what was not flushed, with a file system in
between or not. Cycles come in sets of up to 20 on one scene, which the seed of the set chooses: where
the record is, where the images are (one may be on another host, behind an NBD server), and with what
the power goes. In each cycle the disk moves to its other image, is cut off somewhere on the way, comes
back by its record alone (RUN is empty), and the move is brought to its end. What must hold then:

- the record is a legal one, and none that is older than what was told;
- the image that it names has all that the guest was told is flushed, or written, if that image kept its
  power; and nothing that was never written there (I1, I3);
- the other image is not served (I4);
- a job that had begun goes on by itself, and when it says that both are equal they are (I2, I5).

Prints the figures; exit status 1 when anything was violated. --seed with the seed of a set, and
--cycles with 20 at most, repeat it as far as timing allows. $HOLD: while that file exists no set begins.
"""
import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from lab import (BUILD, GRANULE, M, Control, Lab, Refused, Server, Violation, answer_of, become_reaper, call,
                 descendants, is_gone, mark_of, process_name, reap, same, wait_for)
from storage import SIZES, Filesystem, Power, Supply, make_templates, own_mounts, possible, unmount_all

SET = 20    # cycles on one scene
LONG = 240  # s, on a machine that has much else to do
PLACES = {"idle": 1, "copying": 4, "in-sync": 4, "switching": 6, "window": 3, "undoing": 3, "releasing": 3,
          "orderly end": 4}
ENDED = ("done", "undone", "cancelled")


def until(condition, what):
    """For what costs the disk's process something to tell."""
    wait_for(condition, LONG, what, 0.02)


class Scene(Lab):
    """A disk with two images, and what supplies them."""

    def __init__(self, folder, seed, kind, templates):
        super().__init__(folder, seed)
        self.volatile, self.templates, self.name = kind == "volatile", templates, kind
        self.far = None  # the NBD server of image b, and its supply
        self.supply, self.images, self.place = {}, {}, {}

    def build(self):
        r = self.random
        self.size = r.choice((4, 12, 12)) * M  # one or three extents of the checkpoint
        self.env["BLOCKMIRROR_CHECKPOINT"] = r.choice(("0.05", "0.05", "0.2", ""))
        self.remote = r.random() < 0.4
        fs = {name: r.choice(("xfs", "ext4")) for name in ("state", "a", "b")}
        for name in ("state", "host") + (("far",) if self.remote else ()):
            self.supply[name] = self.make_supply(name, fs)
        own_mounts()
        state = self.add_filesystem("state", "state", fs["state"])
        self.state = os.path.join(state.folder, "state")
        self.env["BLOCKMIRROR_STATE_DIR"] = self.state
        self.record = os.path.join(self.state, "disks/disk/record")
        a = self.put_image("a", "host", state, fs["a"])
        b = self.put_image("b", "far" if self.remote else "host", state, fs["b"])
        self.images[a] = a
        if self.remote:
            self.far = Server(self, "far", r.choices(("blockmirror-nbd", "qemu-nbd"), (4, 1))[0], b)
            self.far.start()
        self.here, self.there = a, self.far.uri if self.far else b
        self.images[self.there] = b
        self.name += f": {self.size // M} MiB, state on {fs['state']}, a {self.place['a']}, b {self.place['b']}" + \
            (f" behind {self.far.kind}" if self.far else "")

    def make_supply(self, name, fs):
        if not self.volatile:
            return Supply(self)
        # xfs takes a block that is half written for one that is: its log is not replayed over it.
        blocks = {name: f"{SIZES[fs[name]]}:4096" for name in fs}
        disks = {"state": {"state": blocks["state"]},
                 "host": {"a": self.size, "b": self.size, "fs-a": blocks["a"], "fs-b": blocks["b"]},
                 "far": {"b": self.size, "fs-b": blocks["b"]}}
        return Supply(self, Power(self, "power-" + name, disks[name]))

    def add_filesystem(self, name, supply, kind):
        supply = self.supply[supply]
        disk = supply.power and supply.power.path(name)
        supply.filesystems.append(Filesystem(self, name, kind, os.path.join(self.templates, kind), disk))
        return supply.filesystems[-1]

    def put_image(self, name, supply, state, kind):
        """A path: on a volatile disk itself, beside the record, or on a file system of its own."""
        r = self.random
        where = r.choice(("bare", "beside", "own") if self.volatile else ("beside", "own"))
        if where == "beside" and supply == "far":
            where = "own"
        self.place[name] = where if where != "own" else f"on {kind}"
        if where == "bare":
            return self.supply[supply].power.path(name)
        fs = state if where == "beside" else self.add_filesystem("fs-" + name, supply, kind)
        path = os.path.join(fs.folder, name + ".img")
        with open(path, "wb") as f:
            f.truncate(self.size)
            if r.random() < 0.5:
                os.posix_fallocate(f.fileno(), 0, self.size)
            os.fsync(f.fileno())
        return path

    def is_file(self, uri):
        """Whether it is a file that can be removed, and made again."""
        return uri[0] == "/" and not (self.supply["host"].power and
                                      uri.startswith(self.supply["host"].power.folder))

    def supplies_of(self, uri):
        """Those that the content of an image depends on."""
        if uri[0] != "/":
            return {"far"}
        return {"state"} if uri.startswith(os.path.dirname(self.state)) else {"host"}

    def call(self, method, params=None, timeout=LONG):
        return call(self.control, method, params, timeout)

    def hammer(self, log, *options):
        out = open(os.path.join(self.dir, log), "wb")  # pylint: disable=consider-using-with
        process = self.spawn([os.path.join(BUILD, "fixtures/hammer"), "--json", *options, self.disk_uri],
                             log="load.log", stdout=out)
        out.close()
        return process

    def requests(self):
        requests = self.call("show")["requests"]
        return sum(n for kind, n in requests.items() if not kind.startswith("bytes"))

    def begin_load(self, iops):
        """Returns when it has begun."""
        r, before = self.random, self.requests()
        self.load = self.hammer(
            "load.json", "--time", "0", "--overlap", "20", "--cut-ok", "--resume", "--iops", str(iops),
            "--seed", str(r.randrange(1 << 30)), "--sizes", "512:32k", "--depth", "8",
            "--connections", str(r.choice((1, 2))), "--patience", "30", "--fua", str(r.choice((0, 5))), "--hot",
            f"{r.choice((0, 100, 100))}@{r.randrange(self.size // GRANULE) * GRANULE}", "--mix",
            f"read=20,write=60,zero=5,nohole=3,trim=4,flush={r.choice((0, 1, 4, 12))}", "--state",
            os.path.join(self.dir, "load.state"))
        until(lambda: self.requests() > before, "the load begins")

    def wait_load(self):
        """It has lost its connection: it knows what it knew."""
        process, self.load = self.load, None
        try:
            status = process.wait(LONG)
        except subprocess.TimeoutExpired as e:
            raise Violation("the load does not end: " + self.log_tail("load.log")) from e
        if status:
            raise Violation(f"the load: {self.log_tail('load.json')} {self.log_tail('load.log')}")

    def check_content(self, crashed):
        """What is on the disk, against what the load knows."""
        crash = ("--after-crash", "--adopt") if crashed else ()
        status = self.hammer("check.json", "--depth", "2", "--check",
                             os.path.join(self.dir, "load.state"), *crash).wait(LONG)
        if status:
            raise Violation(f"{'flushed' if crashed else 'acknowledged'} data is wrong: "
                            f"{self.log_tail('check.json')[:3000]} {self.log_tail('load.log')[-600:]}")

    def disk_log(self):
        return self.log_tail("disk.log")

    def keep_log(self):
        with contextlib.suppress(OSError):
            shutil.copy(os.path.join(self.run, "disks/disk.log"), os.path.join(self.dir, "disk.log"))

    def keep(self):
        """What is on the file systems as long as these are mounted."""
        self.keep_log()
        for name, path in [("record", self.record)] + [(os.path.basename(p), p) for p in self.images.values()]:
            with contextlib.suppress(OSError):
                shutil.copy(path, os.path.join(self.dir, "kept-" + name))

    def end(self):
        if self.load:
            self.load.kill()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for supply in self.supply.values():
            supply.end()
        super().end()

    def processes(self):
        """All but what the storage consists of."""
        return [pid for pid in descendants() if process_name(pid) != "powerfs"]


def stopped(pid):
    """Every thread has stopped, or is in a call that it will not come back from before it stops."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", encoding="ascii", errors="replace") as f:
                if f.read().rpartition(")")[2].split()[0] not in "TtDZX":
                    return False
    except OSError:
        pass
    return True


class Cycle:
    """One move that is cut off, and brought to its end."""

    def __init__(self, scene, figures):
        self.lab, self.r, self.figures = scene, scene.random, figures
        self.here, self.there = scene.here, scene.there
        self.told = {self.here}  # where the disk may be, from what the control socket has said
        self.asked = None        # a connection on which an answer may be that tells more
        self.place = self.r.choices(list(PLACES), PLACES.values())[0]
        self.who = self.choose_who()
        self.window = self.place in ("window", "undoing", "releasing") or self.r.random() < 0.2
        self.begun = False       # the job's record is known to be durable
        self.undo = False        # the way back was asked for
        self.pid = None

    def choose_who(self):
        """What loses its power."""
        shared = "state" in self.lab.supplies_of(self.here) | self.lab.supplies_of(self.there)
        who = [("state", "host")] * 6
        if not shared:
            who += [("state",)] * 2
        if self.lab.far:
            who += [("state", "host", "far")] * 3
            # A remote authority must not lose its server: docs/mirror.md.
            if self.place in ("copying", "in-sync") and self.here[0] == "/":
                who += [("far",)] * 6
        return self.r.choice(who)

    # Up to the cut

    def go(self):
        lab, r = self.lab, self.r
        if lab.is_file(self.there) and r.random() < 0.4:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.there)
        disk = lab.call("show")
        self.pid = disk["pid"]
        self.before = disk["job"]["number"] if disk["job"] else 0
        lab.generation = max(lab.generation, disk["generation"])
        lab.begin_load(r.choice((5, 20, 100, 400)))
        time.sleep(r.uniform(0, 0.15))
        getattr(self, "to_" + self.place.replace(" ", "_").replace("-", "_"))()

    def relocate(self, rate):
        return {"target": self.there, "overwrite": True, "manual": True, "verify": self.r.random() < 0.25,
                "rate": rate, "guest_latency": "off", "target_deadline": LONG * 10 ** 9,
                "undo_window": 600 * 10 ** 9 if self.window else 0,
                "delete_source": self.lab.is_file(self.here) and self.r.random() < 0.2}

    def ask(self, method, params=None):
        self.asked = Control(self.lab.control)
        self.asked.send(method, params)

    def soon(self, *most):
        """A moment later; on volatile disks now and then in the middle of a request."""
        supply = self.lab.supply[self.r.choice(self.who)]
        if supply.power and self.r.random() < 0.5:
            supply.arm(*self.r.choice((("sync", self.r.randint(1, 12)), ("sync", self.r.randint(1, 4)),
                                       ("write", self.r.randint(1, 40)))))
            end = time.monotonic() + 0.5
            while not supply.was_cut() and time.monotonic() < end:
                time.sleep(0.002)
        else:
            time.sleep(self.r.uniform(0, self.r.choice(most)))

    def to_idle(self):
        time.sleep(self.r.uniform(0, 0.3))

    def to_copying(self):
        self.ask("relocate", self.relocate(self.r.choice((8, 16)) * M))
        self.soon(0.05, 0.8)

    def sync(self):
        self.lab.call("relocate", self.relocate(0))
        self.begun = True
        job = self.lab.call("job.wait", {"for": "in-sync"})
        if job["phase"] != "in-sync":
            raise Violation(f"the move does not get in sync: {job}")

    def to_in_sync(self):
        self.sync()
        self.soon(0.1, 0.6, 1.5)

    def to_switching(self):
        self.sync()
        self.told.add(self.there)
        self.lab.call("switch")
        self.ask("job.wait", {"for": "done"})
        self.soon(0.005, 0.02, 0.06)

    def moved(self):
        self.sync()
        self.lab.call("switch")
        job = self.lab.call("job.wait", {"for": "done"})
        if job["phase"] != "undo-window":
            raise Violation(f"the disk does not move: {job}")
        self.told = {self.there}

    def to_window(self):
        self.moved()
        self.soon(0.1, 0.5, 1)

    def to_undoing(self):
        self.moved()
        self.told.add(self.here)
        self.undo = True
        self.ask("undo")
        self.soon(0.005, 0.02, 0.06)

    def to_releasing(self):
        self.moved()
        self.ask("release")
        self.soon(0.005, 0.02)

    def to_orderly_end(self):
        if self.r.random() < 0.5:
            self.sync()
        else:
            self.lab.call("relocate", self.relocate(12 * M))
            self.begun = True
            time.sleep(self.r.uniform(0, 0.5))
        os.kill(self.pid, signal.SIGTERM)
        self.soon(0.01, 0.03, 0.1)

    # The cut

    def victims(self):
        pids = [self.pid] if self.who != ("far",) else []
        return pids + ([self.lab.far.process.pid] if "far" in self.who else [])

    def signal_all(self, number):
        for pid in self.victims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def cut(self):
        lab, who = self.lab, list(self.who)
        self.figures["cuts"][f"{self.place}: {'+'.join(self.who)}"] = \
            self.figures["cuts"].get(f"{self.place}: {'+'.join(self.who)}", 0) + 1
        self.r.shuffle(who)
        # Who could see that the disk is gone would tell of it; a volatile one gives no answer.
        freeze = not lab.volatile and self.who != ("state",)
        if freeze:
            self.signal_all(signal.SIGSTOP)
            for pid in self.victims():
                wait_for(lambda p=pid: stopped(p), 20, f"process {pid} stops")
        self.how = [f"{name}: {lab.supply[name].cut()}" for name in who]
        if self.who == ("state",):
            self.guest_goes_on()
        self.signal_all(signal.SIGKILL)
        for name in who:
            if lab.supply[name].power:
                lab.supply[name].power.tell("off")
        for pid in self.victims():
            wait_for(lambda p=pid: is_gone(p), 30, f"process {pid} ends")
        self.read_answer()
        if self.who != ("far",):
            lab.wait_load()
        for name in who:
            lab.supply[name].drop()
        for name in who:
            lab.supply[name].restore()
        reap()

    def guest_goes_on(self):
        if self.place == "orderly end":
            return
        before = self.lab.call("show")["requests"]["write"]
        until(lambda: self.lab.call("show")["requests"]["write"] > before + 5,
              "without its records the disk is written to")
        time.sleep(self.r.uniform(0, 0.2))

    def read_answer(self):
        """What was told before the power went."""
        line = None
        if self.asked:
            with contextlib.suppress(EOFError, OSError):
                line = self.asked.line(0.0001)
            self.asked.close()
        if not line:
            return
        try:
            job = answer_of(line)
        except Refused as e:  # the cut came before there was a job
            if ("far" in self.who and e.args[0] == "E_UNREACHABLE" or
                    "state" in self.who and e.args[0] == "E_IO"):
                return
            raise
        self.begun = True
        if job["state"] in ("done", "undone") or job["phase"] == "undo-window":
            self.told = {self.here if job["state"] == "undone" else self.there}

    # Afterwards

    def come_back(self):
        lab = self.lab
        if "far" in self.who:
            time.sleep(self.r.uniform(0, 0.2))
            lab.far.start()
        if self.who == ("far",):
            return
        lab.keep_log()
        shutil.rmtree(lab.run)
        record = self.read_record()
        authority = record["uri"]
        if lab.serve().wait(LONG):
            raise Violation("the disk is not served again: " + lab.log_tail("log"))
        disk = lab.call("show")
        if disk["uri"] != authority:
            raise Violation(f"the record said {authority}, and {disk['uri']} is served")
        self.pid = disk["pid"]
        lab.check_content(crashed=bool(lab.supplies_of(authority) & set(self.who)))
        self.judge_job(record, disk["job"])
        if self.r.random() < 0.3:
            self.serve_the_other(authority)

    def goes_again(self):
        """One time in four the power goes while the job is being taken up."""
        lab = self.lab
        if self.who == ("far",) or self.r.random() < 0.75:
            return False
        disk = lab.call("show")
        if not disk["job"] or disk["job"]["state"] != "running":
            return False
        self.place, self.told, self.asked, self.begun = "resumed", {disk["uri"]}, None, True
        lab.generation = max(lab.generation, disk["generation"])
        self.who = self.choose_who()
        lab.begin_load(self.r.choice((5, 20, 100)))
        self.soon(0.05, 0.3, 1)
        return True

    def read_record(self):
        try:
            record = self.lab.read_record()
        except (OSError, ValueError) as e:
            raise Violation(f"the record: {e}") from e
        if record["uri"] not in self.told:
            raise Violation(f"the record names {record['uri']}; it was told that the disk is on {self.told}")
        return record

    def judge_job(self, record, job):
        """One that was durable goes on."""
        if not self.begun:
            return
        was = record.get("job")
        if not was or was["target"] != self.there:
            raise Violation(f"the job is not in the record: {was}")
        over = "done" if record["uri"] == self.there else "undone" if self.undo else None
        if was["state"] == "running" and job["state"] not in ("running", over):
            raise Violation(f"the job did not go on: {job}")

    def serve_the_other(self, authority):
        other = self.here if authority == self.there else self.there
        if other[0] != "/" or not os.path.exists(other) or not mark_of(other):
            return
        if self.lab.spawn([os.path.join(BUILD, "blockmirror"), "serve", "thief", other]).wait(LONG) != 3:
            raise Violation(f"{other} is served by another, marked as {mark_of(other)}")
        self.figures["refused"] += 1

    def finish(self):
        """The job comes to its end; both images are compared when it says that they are equal."""
        lab, r = self.lab, self.r
        if not lab.load and r.random() < 0.5:
            lab.begin_load(200)
        job = lab.call("show")["job"]
        if job and job["state"] == "running":
            self.count_resume(job)
            lab.call("job.set", {"rate": 0})
            lab.call("job.wait", {"for": "in-sync"})
            until(self.in_sync, "both images are in sync again")
        if lab.load:
            time.sleep(r.uniform(0, 0.1))
        lab.end_load()
        if job and job["state"] == "running":
            self.compare()
            self.count_sent(job)
            job = self.end_job()
        self.judge_end(job)

    def in_sync(self):
        disk = self.lab.call("show")
        if disk["job"]["state"] != "running":
            raise Violation(f"the job ended by itself: {disk['job']}")
        return disk["state"] == "in-sync" and disk["job"]["phase"] in ("in-sync", "undo-window")

    def compare(self):
        if not same(self.lab.images[self.here], self.lab.images[self.there], 0, self.lab.size):
            raise Violation("in sync, nobody writes, and the images differ: " + self.differences())
        self.figures["compared"] += 1

    def differences(self):
        with open(self.lab.images[self.here], "rb") as f, open(self.lab.images[self.there], "rb") as g:
            a, b = f.read(), g.read()
        return str([i for i in range(0, len(a), 512) if a[i:i + 512] != b[i:i + 512]][:20])

    def count_resume(self, job):
        resumed = job.get("resumed")
        if not resumed or self.who == ("far",):
            return
        self.figures["resumes"][resumed["from"]] = self.figures["resumes"].get(resumed["from"], 0) + 1
        self.figures["dirty"] += resumed["dirty_bytes"]
        self.figures["kept"] += resumed["kept_bytes"]

    def count_sent(self, job):
        if job.get("resumed") and self.who != ("far",):
            progress = self.lab.call("show")["job"]["progress"]
            self.figures["sent"] += progress["copied_bytes"] + progress["zero_bytes"]

    def end_job(self):
        lab = self.lab
        disk = lab.call("show")
        if disk["uri"] == self.here and self.r.random() < 0.15:
            return lab.call("job.cancel")
        if disk["uri"] == self.here:
            lab.call("switch")
            job = lab.call("job.wait", {"for": "done"})
            if job["phase"] != "undo-window":
                return job
        return lab.call("undo" if self.r.random() < 0.3 else "release")

    def judge_end(self, job):
        lab = self.lab
        record = lab.read_record()
        if job and job["number"] > self.before:
            live = self.there if job["state"] == "done" else self.here
            if job["state"] not in ENDED or record["uri"] != live:
                raise Violation(f"the job ended as {job['state']}, the record names {record['uri']}")
            if live[0] == "/" and mark_of(live) != "active":
                raise Violation(f"the truth is marked {mark_of(live)}")
            old = self.there if live == self.here else self.here
            wanted = (None, "incomplete", "retired") if job["state"] == "cancelled" else ("retired", None)
            if old[0] == "/" and mark_of(old) not in wanted:
                raise Violation(f"the old copy is marked {mark_of(old)}")
        if self.r.random() < 0.15:
            lab.check_content(crashed=False)
        if record["uri"] == self.there:
            lab.here, lab.there = self.there, self.here


def one_set(kind, seed, cycles, folder, templates):
    """The figures of a set. In a process of its own."""
    become_reaper()
    figures = {"seed": seed, "cycles": 0, "cuts": {}, "resumes": {}, "dirty": 0, "kept": 0, "sent": 0,
               "compared": 0, "refused": 0, "stable": 0, "lost": 0, "scene": ""}
    scene, cycle = Scene(folder, seed, kind, templates), None
    try:
        scene.build()
        figures["scene"] = scene.name
        if scene.serve(scene.here).wait(LONG):
            raise Violation("the disk is not served: " + scene.log_tail("log"))
        for _ in range(cycles):
            cycle = Cycle(scene, figures)
            cycle.go()
            cycle.cut()
            cycle.come_back()
            while cycle.goes_again():
                cycle.cut()
                cycle.come_back()
            cycle.finish()
            figures["cycles"] += 1
    except SystemExit:  # that is all, for today
        pass
    except Exception as e:  # pylint: disable=broad-except
        why = str(e) if isinstance(e, (Violation, Refused)) else traceback.format_exc()
        about = f", {cycle.place}, {'+'.join(cycle.who)} cut ({getattr(cycle, 'how', '')})" if cycle else ""
        scene.keep()
        figures["violation"] = f"cycle {figures['cycles'] + 1}{about}: {why}"
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        scene.end()
        for supply in scene.supply.values():
            figures["stable"] += supply.kept
            figures["lost"] += supply.lost
    return figures


class Campaign:
    """Many sets, some at a time, and their figures added up."""

    def __init__(self, options):
        self.options = options
        self.dir = tempfile.mkdtemp(prefix="bm-power.", dir=os.environ.get("TMPDIR", "/dev/shm"))
        self.running, self.results = {}, []

    def begin(self, seed, cycles):
        folder = os.path.join(self.dir, str(seed))
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            os.setpgid(0, 0)
            try:
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
                figures = one_set(self.options.kind, seed, cycles, folder, self.dir)
                with os.fdopen(write, "w") as out:
                    json.dump(figures, out)
            finally:
                os._exit(0)
        os.close(write)
        self.running[pid] = (seed, read, folder)

    def finish_one(self):
        pid, status = os.wait()
        seed, read, folder = self.running.pop(pid)
        with os.fdopen(read) as said:
            text = said.read()
        unmount_all(folder)
        figures = json.loads(text) if text else {"seed": seed, "violation": f"it ended with {status}"}
        if "violation" in figures:
            print(f"# violation: seed {seed}: {figures.get('scene')}: {figures['violation']}", flush=True)
            if self.options.keep:
                shutil.copytree(folder, os.path.join(self.options.keep, f"{self.options.kind}-{seed}"),
                                dirs_exist_ok=True, ignore=lambda d, names: [
                                    n for n in names if not os.path.isfile(os.path.join(d, n)) and
                                    not os.path.isdir(os.path.join(d, n)) or n.endswith(".fs")])
        elif self.options.sets:
            print(f"# seed {seed}: {figures['cycles']} cycles, {figures['scene']}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        self.results.append(figures)

    def end(self):
        """Nothing stays, whatever happened."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for pid in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        while self.running:
            self.finish_one()
        if self.results:
            report(self.options, self.results)
        unmount_all(self.dir)
        shutil.rmtree(self.dir, ignore_errors=True)

    def carry_out(self):
        o, left = self.options, self.options.cycles
        make_templates(self.dir)
        seed = o.seed
        while left > 0:
            while os.path.exists(os.environ.get("HOLD", "/nonexistent")):
                time.sleep(1)
            if len(self.running) >= o.jobs:
                self.finish_one()
            if o.first and any("violation" in f for f in self.results):
                break
            self.begin(seed, min(left, SET))
            seed, left = seed + 1, left - SET
        while self.running:
            self.finish_one()
        return any("violation" in f for f in self.results)


def add_up(results, key):
    total = {}
    for figures in results:
        for name, n in figures.get(key, {}).items():
            total[name] = total.get(name, 0) + n
    return total


def listed(total):
    return ", ".join(f"{name} {n}" for name, n in sorted(total.items())) or "none"


def report(options, results):
    """The figures, a line each."""
    results.sort(key=lambda f: f["seed"])
    total = {key: sum(f.get(key, 0) for f in results)
             for key in ("cycles", "dirty", "kept", "sent", "compared", "refused", "stable", "lost")}
    resumes, violated = add_up(results, "resumes"), [f["seed"] for f in results if "violation" in f]
    cuts = add_up(results, "cuts")
    print(f"# {options.kind}: {total['cycles']} cycles, {sum(cuts.values())} cuts, in sets with the seeds "
          f"{options.seed} to {results[-1]['seed']}")
    print(f"# cuts by place: {listed(cuts)}")
    if options.kind == "volatile":
        print(f"# sectors that were not flushed: {total['lost']} lost, {total['stable']} kept")
    print(f"# resumes: {sum(resumes.values())} ({listed(resumes)}); {total['dirty']} bytes might differ, "
          f"{total['kept']} were known to be equal, {total['sent']} were sent again")
    print(f"# images compared in sync, at rest: {total['compared']}; old or incomplete copies not served: "
          f"{total['refused']}")
    print(f"# violations: {len(violated)}" +
          (f", seeds {' '.join(map(str, violated))}" if violated else
           f"; with 95 % confidence fewer than {300 / max(sum(cuts.values()), 1):.2g} % of such cuts violate"))


def main():
    parser = argparse.ArgumentParser(description="a disk moves, and the power goes")
    parser.add_argument("kind", choices=("shutdown", "volatile"))
    parser.add_argument("--cycles", type=int, default=SET)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(1000000000))
    parser.add_argument("--first", action="store_true", help="no set begins after a violation")
    parser.add_argument("--sets", action="store_true", help="a line for each set")
    parser.add_argument("--keep", help="a folder for what a violation leaves behind")
    options = parser.parse_args()
    missing = possible()
    if missing:
        print(f"# impossible: {missing}")
        return 77
    print(f"# seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    campaign = Campaign(options)
    try:
        return campaign.carry_out()
    finally:
        campaign.end()


if __name__ == "__main__":
    sys.exit(main())
