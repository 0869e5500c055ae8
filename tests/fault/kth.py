# SPDX-License-Identifier: BSD-3-Clause
"""Every k-th call fails: kth.py BUILD-DIR SCRATCH-DIR [options]

A small disk is moved under load, with fixtures/preload/kth.c in its process, which has one call fail:
each kind of call, each number k that the move reaches, once and for ever, with each error. Whatever
becomes of it: the guest has no error that is not its own image's, reads what it wrote, the process does
not crash, hang or refuse without a word; started again without the fault it ends the move; a target
that was created for a move that failed is gone.
"""
import argparse
import errno
import functools
import json
import mmap
import multiprocessing
import os
import random
import shutil
import struct
import subprocess
import sys
import time

from guest import BLOCK, Guest
from process import HANGS, Disk, Violation

SIZE = 4 << 20
GUEST_BLOCKS = 160  # the guest has these; the rest stays what it was
KINDS = ("submit complete setup alloc fsync fdatasync rename open read write pread pwrite ftruncate "
         "fallocate unlink mkdir stat statvfs xattr mmap lock socket connect bind listen accept recv send "
         "epoll eventfd thread").split()
DISK = ["EIO", "ENOSPC"]
ERRORS = {
    "submit": ["EAGAIN", "EIO", "ENOSPC", "short"], "complete": ["EAGAIN", "EIO", "ENOSPC", "short"],
    "setup": ["EAGAIN"], "alloc": ["ENOMEM"], "read": ["EIO", "short"], "write": ["EIO", "ENOSPC", "short"],
    "pread": ["EIO", "EAGAIN", "short"], "pwrite": ["EIO", "ENOSPC", "EAGAIN", "short"],
    "fallocate": ["EIO", "ENOSPC", "EOPNOTSUPP"], "xattr": ["EIO", "ENOSPC", "EOPNOTSUPP"], "mmap": ["ENOMEM"],
    "lock": ["EIO", "ENOLCK"], "socket": ["EMFILE"], "connect": ["EAGAIN"], "bind": ["EACCES"],
    "listen": ["EADDRINUSE"], "accept": ["EMFILE", "ECONNABORTED"], "recv": ["ECONNRESET", "EAGAIN", "short"],
    "send": ["EPIPE", "EAGAIN", "short"], "epoll": ["ENOMEM"], "eventfd": ["EMFILE"], "thread": ["EAGAIN"],
}
# An error for ever of what carries the guest's own bytes leaves nobody to talk to.
SCENARIOS = ["move", "start", "resume"]


class Control:
    """The file that fixtures/preload/kth.c reads."""
    HEAD = struct.Struct("=7I4I64I256s256s256s256s")

    def __init__(self, path):
        self.path = path
        with open(path, "wb") as f:
            f.truncate(max(4096, self.HEAD.size))
        self.file = open(path, "r+b")
        self.map = mmap.mmap(self.file.fileno(), 4096)

    def set(self, kind, k, error, forever, at_main, source, target, only="", delay_ms=0):
        """kind "any": of all of them; only: calls on paths with that in them."""
        number = 0 if error == "short" else getattr(errno, error)
        self.map[:self.HEAD.size] = self.HEAD.pack(
            0, at_main, KINDS.index(kind) if kind != "any" else len(KINDS), k, number, forever, delay_ms, 0, 0, 0,
            0, *[0] * 64, source.encode(), target.encode(), only.encode(), b"")

    def arm(self):
        self.map[0:4] = struct.pack("=I", 1)

    def disarm(self):
        self.map[12:16] = struct.pack("=I", 0)

    def get(self):
        v = self.HEAD.unpack(self.map[:self.HEAD.size])
        return {"hits": v[7], "source": v[8], "target": v[9], "counts": dict(zip(KINDS, v[11:])),
                "where": v[-1].split(b"\0")[0].decode(errors="replace")}


class Run:
    """One move, with one fault."""

    def __init__(self, build, folder, case, seed, patience):
        self.build, self.dir, self.case, self.seed = build, folder, case, seed
        self.patience = patience
        self.a, self.b = folder + "/a.img", folder + "/b.img"
        self.restarts = self.resent = 0
        self.control = self.disk = self.guest = None

    def prepare(self, first):
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        if self.case["scenario"] == "resume":
            restore_interrupted(self)
        else:
            with open(self.a, "wb") as f:
                f.write(first)
        self.first = first
        self.control = Control(self.dir + "/kth")
        self.control.set(self.case["kind"], self.case["k"], self.case["error"], self.case["forever"],
                         self.case["scenario"] != "move", self.a, self.b)
        self.disk = Disk(self.build, self.dir)
        self.guest = Guest(self.dir + "/run/disks/d.nbd", "d", GUEST_BLOCKS, self.seed, first)
        self.guest.patience = 2 * HANGS

    def environment(self):
        return {"LD_PRELOAD": self.build + "/fixtures/kth.so", "KTH_FILE": self.control.path}

    def relocate(self, timeout):
        return self.disk.begin(timeout, target=self.b, guest_latency="off")

    def check_failed(self, job):
        if not (job.get("error") or {}).get("message"):
            raise Violation(f"the job is {job['state']} without a word")
        if job["error"]["code"] != "E_FOREIGN":  # what may be somebody else's is left alone
            self.check_no_target()

    def check_no_target(self):
        left = self.case["kind"] in ("unlink", "alloc") and self.case["forever"]  # it could not be removed
        if os.path.exists(self.b) and not left:
            raise Violation("the target that was created is still there")

    def settle(self):
        """With the fault: until the job has ended, or nothing moves. Then without it."""
        job = self.disk.job(self.patience)
        self.control.disarm()
        if not job and not self.disk.ended() and self.case["forever"]:
            job = self.disk.job(0.3)
        if job:
            return job
        if not self.disk.ended():
            self.disk.stop()
        else:
            self.disk.check_end()
        self.restart()
        return self.disk.job(HANGS)

    def restart(self):
        self.restarts += 1
        self.disk.kill()
        if not self.disk.start(None if os.path.exists(self.dir + "/state/disks/d/record") else self.a):
            raise Violation("it cannot be started again without the fault")

    def go(self):
        image = None if self.case["scenario"] == "resume" else self.a
        started = self.disk.start(image, self.environment())
        if not started:
            # Who ends for lack of memory ends at once: the record is for the next one.
            if image and "the process ends" not in self.disk.said(0) and os.path.exists(self.dir + "/state/disks/d/record") and not self.case["forever"]:
                raise Violation("it was refused, and left a record")
            self.restart()
        self.guest.start()
        if self.case["scenario"] == "move":
            while self.guest.requests < 3 and self.guest.is_alive():
                time.sleep(0.001)
            self.control.arm()
        if self.case["scenario"] == "resume":
            job = self.settle()
        else:
            begun, error = self.relocate(self.patience + 2)
            if error:
                self.control.disarm()
                self.check_no_target()
            job = self.settle() if begun or not error else None
        self.control.disarm()
        self.finish(job)

    def finish(self, job):
        """However it went: in the end the disk is moved, and whole."""
        if self.disk.ended():
            self.disk.check_end()
            self.restart()
        if job and job["state"] != "done":
            self.check_failed(job)
        if not job or job["state"] != "done":
            begun, error = self.relocate(HANGS)
            if not begun and error and error["data"]["code"] == "E_EXISTS":
                os.unlink(self.b)
                begun, error = self.relocate(HANGS)
            job = self.disk.job(HANGS) if begun else None
            if not job or job["state"] != "done":
                raise Violation(f"without the fault it is not moved: {error or job or 'it hangs'} " +
                                str(self.disk.call("job.show", 1)))
        self.resent = (job.get("resumed") or {}).get("dirty_bytes", 0)
        time.sleep(0.02)
        if not self.disk.call("show", HANGS)[0]:  # it ends for lack of memory, the job had just ended
            self.disk.check_end()
            self.restart()
        self.check_guest()
        shown, _ = self.disk.call("show", 10)
        if not shown or shown["uri"] != self.b:
            raise Violation(f"the disk is not on its target: {shown and shown['uri']}")
        self.disk.stop()
        self.check_images()

    def check_guest(self):
        problem = self.guest.end()
        hit = self.control.get()
        if problem:
            raise Violation(problem)
        if self.guest.errors and not (hit["source"] or hit["target"]):
            raise Violation(f"the guest had errors: {[errno.errorcode.get(e, e) for e in self.guest.error_numbers]}")

    def check_images(self):
        with open(self.b, "rb") as f:
            image = f.read()
        problem = self.guest.compare_all(image)
        if problem:
            raise Violation("at the end " + problem)
        if len(image) != SIZE or image[GUEST_BLOCKS * BLOCK:] != self.first[GUEST_BLOCKS * BLOCK:]:
            raise Violation("what the guest never wrote is not what it was")
        if self.recorded() != (self.b, "done"):  # the last step failed: the next process does it again
            self.restart()
            self.disk.stop()
        if self.recorded() != (self.b, "done"):
            raise Violation(f"the record says {self.recorded()}")

    def recorded(self):
        with open(self.dir + "/state/disks/d/record") as f:
            record = json.loads(f.readline())
        return record["uri"], record.get("job", {}).get("state")

    def cleanup(self):
        if self.guest and self.guest.is_alive():
            self.guest.stopping, self.guest.patience = True, 0
        if self.disk:
            self.disk.kill()
            self.disk.log.close()


def restore_interrupted(run):
    """A move whose process was killed; made once for each worker, then put back as it was."""
    saved = run.dir + ".interrupted"
    if not os.path.exists(saved):
        case = {"scenario": "move", "kind": "submit", "k": 0, "error": "EIO", "forever": 0}
        begun = Run(run.build, run.dir, case, 1, 10)
        begun.prepare(first_image())
        try:
            begun.disk.start(begun.a)
            begun.disk.call("relocate", 10, target=begun.b, guest_latency="off", rate=16 << 20)
            time.sleep(0.1)
        finally:
            begun.cleanup()
        subprocess.run(["cp", "-a", run.dir, saved], check=True)
    shutil.rmtree(run.dir)
    subprocess.run(["cp", "-a", saved, run.dir], check=True)
    os.unlink(run.dir + "/log")


@functools.cache
def first_image():
    return random.Random(4711).randbytes(SIZE - (SIZE >> 2)) + bytes(SIZE >> 2)


def attempt(job):
    """In a worker process: what came of one case."""
    build, scratch, case, seed, patience = job
    folder = f"{scratch}/worker{multiprocessing.current_process().pid}"
    run = Run(build, folder, case, seed, patience)
    begin = time.monotonic()
    problem = None
    try:
        run.prepare(first_image())
        run.go()
    except Violation as e:
        problem = str(e)
    except Exception as e:  # the test's own mistakes are violations, too
        problem = f"{type(e).__name__}: {e}"
    hit = run.control.get() if run.control else {"hits": 0, "counts": {}, "where": ""}
    run.cleanup()
    if problem:
        keep = f"{scratch}/kept-{case['scenario']}-{case['kind']}-{case['k']}-{case['error']}-{case['forever']}"
        shutil.rmtree(keep, ignore_errors=True)
        shutil.move(folder, keep)
    return case, problem, hit, {"restarts": run.restarts, "resent": run.resent, "errors": run.guest.errors
                                if run.guest else 0, "took": time.monotonic() - begin}


def counts_of(args, scenario, seed):
    case = {"scenario": scenario, "kind": "submit", "k": 0, "error": "EIO", "forever": 0}
    case, problem, hit, _ = attempt((args.build, args.scratch, case, seed, 10))
    if problem:
        sys.exit(f"without a fault, {scenario}: {problem}")
    return hit["counts"]


def cases_of(args, seed):
    cases = []
    for scenario in args.scenario or SCENARIOS:
        counts = counts_of(args, scenario, seed)
        print(f"# {scenario}: " + " ".join(f"{k} {n}" for k, n in counts.items() if n), flush=True)
        for kind in args.kind or KINDS:
            # What the guest makes of it varies: those that come late may not come at all.
            for k in range(args.first, min(counts[kind], args.last) + 1, args.step):
                for error in ERRORS.get(kind, DISK):
                    for forever in args.forever or (0, 1):
                        cases.append({"scenario": scenario, "kind": kind, "k": k, "error": error,
                                      "forever": forever})
    return cases


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("scratch")
    p.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    p.add_argument("--seconds", type=float, default=0, help="as many, chosen by chance, as that allows")
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--patience", type=float, default=1.0)
    p.add_argument("--kind", action="append")
    p.add_argument("--scenario", action="append")
    p.add_argument("--forever", type=int, action="append", help="0: once; 1: from there on; both")
    p.add_argument("--step", type=int, default=1, help="each such k only")
    p.add_argument("--first", type=int, default=1, help="k begins there")
    p.add_argument("--last", type=int, default=1 << 30, help="and ends there")
    p.add_argument("--only", help="SCENARIO-KIND-K-ERROR-FOREVER")
    args = p.parse_args()
    args.build, args.scratch = os.path.realpath(args.build), os.path.realpath(args.scratch)
    begin = time.monotonic()
    if args.only:
        s, kind, k, error, forever = args.only.split("-")
        cases = [{"scenario": s, "kind": kind, "k": int(k), "error": error, "forever": int(forever)}]
    else:
        cases = cases_of(args, args.seed)
    print(f"# seed {args.seed}, {len(cases)} cases", flush=True)
    if args.seconds:
        random.Random(args.seed).shuffle(cases)
    work = ((args.build, args.scratch, case, args.seed, args.patience) for case in cases)
    totals = {"runs": 0, "reached": 0, "restarts": 0, "resent": 0, "errors": 0, "violations": 0}
    by_kind, longest = {}, 0
    with multiprocessing.Pool(args.jobs) as pool:
        pending = []
        for item in work:
            if args.seconds and time.monotonic() - begin > args.seconds:
                break
            pending.append(pool.apply_async(attempt, (item,)))
            while len(pending) >= args.jobs * 2:
                take(pending, totals, by_kind)
        while pending:
            take(pending, totals, by_kind)
    print("# faults " + " ".join(f"{k} {n}" for k, n in sorted(by_kind.items())))
    print(f"# runs {totals['runs']}, with a fault {totals['reached']}, processes started again "
          f"{totals['restarts']}, bytes sent again {totals['resent']}, errors that the guest's own image had "
          f"{totals['errors']}, violations {totals['violations']}, seed {args.seed}, "
          f"{time.monotonic() - begin:.0f} s")
    return totals["violations"] > 0 or not totals["reached"]


def take(pending, totals, by_kind):
    case, problem, hit, figures = pending.pop(0).get()
    totals["runs"] += 1
    if totals["runs"] % 100 == 0:
        print(f"# {totals['runs']} runs, {totals['violations']} violations", flush=True)
    totals["reached"] += hit["hits"] > 0
    for name in ("restarts", "resent", "errors"):
        totals[name] += figures[name]
    by_kind[case["kind"]] = by_kind.get(case["kind"], 0) + hit["hits"]
    if problem:
        totals["violations"] += 1
        print(f"# VIOLATION {case['scenario']}-{case['kind']}-{case['k']}-{case['error']}-{case['forever']} "
              f"({hit['where']}): {problem}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
