# SPDX-License-Identifier: BSD-3-Clause
"""The folder with a disk's record dies: state.py BUILD-DIR SCRATCH-DIR CASE | --list

It is full, read-only, answers nothing but errors, or does not answer at all. The guest must not notice;
new jobs are refused with a sentence, a switch waits; when the folder is well again the switch is made.
"""
import os
import random
import shutil
import subprocess
import sys
import time

from guest import Guest
from kth import Control
from process import Disk, Violation, clean_up_on_sigterm

SIZE = 4 << 20
SLACK = float(os.environ.get("SLACK", 4.0))  # s that any request of the guest may take
CASES = ["full", "read-only", "errors", "hangs"]


class Case:
    def __init__(self, build, folder, how):
        self.dir, self.how, self.ballast = folder, how, folder + "/state/ballast"
        self.a, self.b, self.c = (f"{folder}/{name}.img" for name in "abc")
        self.state = folder + "/state"
        os.mkdir(self.state)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", self.state], check=True)
        data = random.Random(1).randbytes(SIZE)
        with open(self.a, "wb") as f:
            f.write(data)
        self.control = Control(folder + "/kth")
        self.disk = Disk(build, folder)
        self.environment = how in ("errors", "hangs") and {"LD_PRELOAD": build + "/fixtures/kth.so", "KTH_FILE": self.control.path}
        self.guest = Guest(folder + "/run/disks/d.nbd", "d", SIZE // 4096, 1, data)

    def die(self):
        if self.how == "full":
            with open(self.ballast, "wb", buffering=0) as f:
                try:
                    while f.write(bytes(4096)) == 4096:
                        pass
                except OSError:
                    pass
        elif self.how == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", self.state], check=True)
        else:
            kind, delay = ("any", 0) if self.how == "errors" else ("fsync", 600000)
            self.control.set(kind, 1, "EIO" if self.how == "errors" else "short", 1, 0, "", "", "/state", delay)
            self.control.arm()

    def heal(self):
        if self.how == "full":
            os.unlink(self.ballast)
        elif self.how == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", self.state], check=True)
        else:
            self.control.disarm()

    def phase(self):
        job, _ = self.disk.call("job.show", 5)
        return job and (job["state"], job["phase"])

    def uri(self):
        shown, _ = self.disk.call("show", 5)
        return shown and shown["uri"]

    def wait_for(self, what, seconds, is_so):
        end = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > end:
                raise Violation(f"{what}: {self.phase()}")
            time.sleep(0.02)

    def goes_on(self):
        """The guest does."""
        before = self.guest.requests
        self.wait_for("the guest stands still", SLACK, lambda: self.guest.requests > before + 5)

    def new_job(self):
        """It comes to nothing, with a sentence; one that hangs may be taken back."""
        begun, error = self.disk.begin(1 if self.how == "hangs" else 10, target=self.c)
        if begun:
            raise Violation("a job began without a record of it")
        if self.how != "hangs" and not error:
            raise Violation("no word about it")
        self.goes_on()
        return error

    def go(self):
        if not self.disk.start(self.a, self.environment):
            raise Violation("it does not start")
        self.guest.start()
        self.goes_on()
        self.die()
        error = self.new_job()
        self.heal()
        if self.how == "hangs":
            self.wait_for("what hung goes on", 20, lambda: self.phase() == ("done", "ended"))
            self.a, self.c = self.c, self.a
            os.unlink(self.c)
        elif os.path.exists(self.c):
            raise Violation("the target of the refused job is still there")
        self.switch()
        self.kill()
        print(f"{self.how}: {error['data']['code'] + ': ' + error['message'] if error else 'waited'}; guest requests "
              f"{self.guest.requests}, longest {self.guest.longest * 1000:.0f} ms")

    def switch(self):
        """In sync when it dies: the switch waits, and is made when it can be recorded."""
        begun, error = self.disk.begin(10, target=self.b, manual=True, guest_latency="off")
        if not begun:
            raise Violation(f"it does not move: {error}")
        self.wait_for("in sync", 20, lambda: self.phase() == ("running", "in-sync"))
        self.die()
        self.disk.call("switch", 1)
        for _ in range(5):
            time.sleep(0.1)
            self.goes_on()
        if self.uri() != self.a or self.phase()[0] != "running":
            raise Violation(f"it switched without a record: {self.uri()}, {self.phase()}")
        self.heal()
        self.wait_for("the switch", 60, lambda: self.phase() == ("done", "ended"))
        if self.uri() != self.b:
            raise Violation(f"the disk is on {self.uri()}")
        self.goes_on()

    def kill(self):
        """A process that starts on what it cannot write to serves all the same."""
        served = self.how in ("full", "read-only")
        if served:
            self.die()
        self.disk.kill()
        if not self.disk.start():
            raise Violation("it is not served again: " + self.disk.said(0)[-300:])
        self.goes_on()
        if served:
            self.heal()
        time.sleep(0.1)
        problem = self.guest.end()
        if problem or self.guest.errors:
            raise Violation(problem or f"the guest had errors: {self.guest.error_numbers}")
        if self.guest.longest > SLACK:
            raise Violation(f"the guest waited for {self.guest.longest:.1f} s")
        self.disk.stop()
        with open(self.b, "rb") as f:
            problem = self.guest.compare_all(f.read())
        if problem:
            raise Violation("at the end " + problem)

    def close(self):
        self.guest.stopping, self.guest.patience = True, 0
        self.control.disarm()
        self.disk.kill()
        self.disk.log.close()
        subprocess.run(["umount", "-l", self.state], check=False)


def main():
    if sys.argv[1] == "--list":
        print("\n".join(CASES))
        return 0
    clean_up_on_sigterm()
    build, scratch, how = os.path.realpath(sys.argv[1]), os.path.realpath(sys.argv[2]), sys.argv[3]
    folder = f"{scratch}/{how}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    case = Case(build, folder, how)
    try:
        case.go()
        return 0
    except Violation as e:
        print(f"{how}: {e}\n" + case.disk.said(0)[-2000:])
        return 1
    finally:
        case.close()


if __name__ == "__main__":
    sys.exit(main())
