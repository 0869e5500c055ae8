# SPDX-License-Identifier: BSD-3-Clause
"""A disk is moved to, or from, a server that lies: lies.py BUILD-DIR SCRATCH-DIR LIE | --list

Always: the disk's process lives, the guest has no error, reads what it wrote, and waits no longer
than the deadline; once the server is honest the copy is equal, or the job has ended with a sentence.
And the lie is noticed, in one of the ways that LIES names.
"""
import os
import random
import shutil
import sys
import time

from guest import Guest
from liar import Liar
from process import Disk, Violation, clean_up_on_sigterm

SIZE = 8 << 20
GUEST_BLOCKS = 1024
DEADLINE = 2.0  # of the mirror, for a target that does not answer
SLACK = float(os.environ.get("SLACK", 4.0))  # of a machine that has much to do

# How a lie of the target may show: "refused" before anything is written; "lost": the mirror gives
# the session up, and begins another; "differs": --verify, or verify, finds it; an error code: the
# job ends with it; "harmless": the protocol allows it, or no harm is done.
TARGET = {
    "greeting-magic": {"refused"}, "greeting-silence": {"refused"}, "greeting-half": {"refused"},
    "option-magic": {"refused"}, "option-huge": {"refused"}, "no-size": {"refused"},
    "size-huge": {"refused"}, "size-zero": {"refused"},
    "flush-error": {"lost"}, "never": {"lost"}, "odd-errors": {"lost"},
    "answer-half": {"lost"}, "answer-magic": {"lost"}, "cookie-unknown": {"lost"}, "cookie-twice": {"lost"},
    "chunk-for-write": {"lost"},
    # No flush, no switch; how long one may take nobody knows.
    "flush-never": {"harmless"}, "out-of-order": {"harmless"}, "block-sizes": {"harmless"},
    "write-nothing": {"differs"}, "write-elsewhere": {"differs"}, "zero-nothing": {"differs"},
    "flush-nothing": {"differs", "E_FOREIGN"}, "shrunk": {"E_TOO_SMALL", "E_FOREIGN"},
    "read-only": {"E_ACCESS", "lost"},
    # --verify reads the target, and nobody else does.
    "read-missing": {"lost", "differs"}, "read-overlap": {"lost", "harmless"}, "read-outside": {"lost", "differs"},
    "read-short": {"lost", "differs"}, "read-empty": {"lost", "differs"}, "read-changed": {"differs"},
}
# Lies of the source about what it holds: they reach the copy, and the comparison finds them.
SOURCE = {
    "status-zero": {"differs"}, "status-short": {"harmless"}, "status-beyond": {"harmless"},
    "status-nothing": {"harmless"}, "status-empty": {"harmless", "lost"}, "status-foreign": {"harmless"},
    "status-odd": {"harmless", "lost"}, "status-error": {"harmless"},
}
# The authority itself is lost, each time it is asked: its guest waits until it is honest.
AUTHORITY_LOST = {"source-status-empty", "source-status-odd"}
# These lie in later sessions only, or after one.
AFTER_A_CUT = {"shrunk", "read-only", "flush-nothing"}


class Case:
    def __init__(self, build, folder, lie, role, seed):
        self.dir, self.lie, self.role = folder, lie, role
        self.local, self.exported = folder + "/local.img", folder + "/exported.img"
        first = random.Random(seed)
        data = first.randbytes(SIZE // 2) + bytes(SIZE // 4) + first.randbytes(SIZE // 4)
        other = first.randbytes(SIZE)
        for path, content in (self.local, data if role == "target" else other), \
                (self.exported, other if role == "target" else data):
            with open(path, "wb") as f:
                f.write(content)
        self.liar = Liar(folder + "/liar.sock", self.exported, lie, seed)
        self.uri = f"nbd+unix:///?socket={folder}/liar.sock"
        self.disk = Disk(build, folder)
        self.guest = Guest(folder + "/run/disks/d.nbd", "d", GUEST_BLOCKS, seed, data)

    def begin(self):
        source, target = (self.local, self.uri) if self.role == "target" else (self.uri, self.local)
        if not self.disk.start(source):
            raise Violation("the disk is not served: " + self.disk.said(0))
        self.guest.start()
        # A switch would make the server the authority: whom else should one believe then?
        return self.disk.begin(30, target=target, overwrite=True, verify=True, manual=True,
                               guest_latency="off")

    def job(self):
        job, _ = self.disk.call("job.show", 5)
        if not job:
            raise Violation("nobody answers" if not self.disk.ended() else "the process has ended")
        return job

    def until(self, seconds, *wanted):
        """Until the job is in one of these states; returns which, and the job."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            job = self.job()
            if job["phase"] == "ended":
                return job["error"]["code"] if job.get("error") else job["state"], job
            if "lost" in wanted and job["progress"]["target_losses"] and self.liar.told:
                return "lost", job
            if "in-sync" in wanted and job["phase"] == "in-sync" and job["progress"]["target"] == "in-sync":
                return "in-sync", job
            time.sleep(0.02)
        return "nothing", job

    def outcome(self, expected):
        begun, error = self.begin()
        if not begun:
            if error is None:
                raise Violation("relocate has no answer")
            self.sentence = f"{error['data']['code']}: {error['message']}"
            return "refused"
        how, job = self.until(15, "lost", "in-sync")
        if how == "in-sync" and self.lie in AFTER_A_CUT:
            how, job = self.after_a_cut()
        elif how == "in-sync" and (not self.liar.told or "lost" in expected):
            how, job = self.until(10, "lost")
        self.sentence = (self.job().get("error") or {}).get("message", "")
        if how.startswith("E_"):
            if not self.sentence:
                raise Violation("the job ended without a word")
            return "differs" if how == "E_DIFFERED" else how
        if how == "nothing" and job["progress"]["target"] != "in-sync":
            return "lost"
        return "harmless" if how in ("in-sync", "nothing") else how

    def after_a_cut(self):
        end = time.monotonic() + 15
        while self.lie == "flush-nothing" and not self.liar.told and time.monotonic() < end:
            time.sleep(0.02)
        self.liar.cut()
        return self.resync() if self.lie == "flush-nothing" else self.until(4, "none")

    def resync(self):
        time.sleep(0.1)
        how, job = self.until(10, "in-sync")
        if how != "in-sync":
            return how, job
        result, error = self.disk.call("verify", 20)
        if error:
            raise Violation(f"it does not compare: {error['message']}")
        return "in-sync" if result["equal"] else "differs", job

    def go(self, expected):
        how = self.outcome(expected)
        told = self.liar.told
        self.liar.honest = True
        if not told:
            raise Violation("the lie was never told")
        job, _ = self.disk.call("job.show", 5)
        if job and job["phase"] != "ended":
            back, job = self.until(30, "in-sync")
            if back != "in-sync":
                raise Violation(f"with an honest server it is {back}: {job.get('error')}")
        self.check_guest()
        if job and job["phase"] != "ended":
            self.check_equal()
            self.disk.call("job.cancel", 10)
        if how not in expected:
            raise Violation(f"it came to {how}, and not to {' or '.join(expected)}: {self.sentence}")
        self.disk.stop()
        losses = job["progress"]["target_losses"] if job else 0
        print(f"{how}: told {told} times, sessions lost {losses}, guest requests {self.guest.requests}, longest "
              f"{self.guest.longest * 1000:.0f} ms. {self.sentence}")

    def check_guest(self):
        time.sleep(0.1)
        problem = self.guest.end()
        if problem:
            raise Violation(problem)
        if self.guest.errors:
            raise Violation(f"the guest had errors: {self.guest.error_numbers}")
        if self.guest.reconnects or self.guest.requests < 10:
            raise Violation(f"the guest had {self.guest.requests} requests, {self.guest.reconnects} connections")
        if self.guest.longest > DEADLINE + SLACK and f"{self.role}-{self.lie}" not in AUTHORITY_LOST:
            raise Violation(f"the guest waited for {self.guest.longest:.1f} s")

    def check_equal(self):
        how, job = self.until(20, "in-sync")
        if how != "in-sync":
            raise Violation(f"it does not come into sync: {how}")
        with open(self.local, "rb") as f:
            local = f.read()
        exported = self.liar.read(0, SIZE)
        authority, copy = (local, exported) if self.role == "target" else (exported, local)
        problem = self.guest.compare_all(authority)
        if problem:
            raise Violation("at the end " + problem)
        if authority != copy:
            at = next(i for i in range(SIZE) if authority[i] != copy[i])
            raise Violation(f"in sync, and not equal at {at}")

    def close(self):
        self.guest.stopping, self.guest.patience = True, 0
        self.disk.kill()
        self.liar.close()


def main():
    if sys.argv[1] == "--list":
        print("\n".join([f"target-{lie}" for lie in TARGET] + [f"source-{lie}" for lie in SOURCE]))
        return 0
    clean_up_on_sigterm()
    build, scratch, name = sys.argv[1:4]
    role, lie = name.split("-", 1)
    seed = int(os.environ.get("SEED", random.randrange(1 << 31)))
    folder = f"{scratch}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    case = Case(os.path.realpath(build), os.path.realpath(folder), lie, role, seed)
    try:
        case.go((TARGET if role == "target" else SOURCE)[lie])
        status = 0
    except Violation as e:
        print(f"{name}: {e} (seed {seed})\n" + case.disk.said(0)[-2000:])
        status = 1
    finally:
        case.close()
    sys.stdout.flush()
    os._exit(status)  # threads of the server may still wait for somebody


if __name__ == "__main__":
    sys.exit(main())
