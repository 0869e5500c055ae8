# SPDX-License-Identifier: BSD-3-Clause
"""The process of a disk, and its control socket, for tests that start thousands of them."""
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time


HANGS = 60  # s: what has not come by then does not come


class Violation(Exception):
    """What must not be."""


class Disk:
    """The process, and its control socket."""

    def __init__(self, build, folder, prefix=()):
        self.build, self.dir, self.process = build, folder, None
        self.prefix = list(prefix)  # of the command
        self.log = open(folder + "/log", "ab")

    def start(self, image=None, environment=None):
        """Whether it came to serve; else it has ended, and said why."""
        env = dict(os.environ, **(environment or {}))
        begin = self.log.tell()
        self.process = subprocess.Popen(
            self.prefix + [self.build + "/blockmirror-disk", "--name", "d", "--run-dir", self.dir + "/run", "--state-dir",
             self.dir + "/state"] + ([image] if image else []),
            stdout=subprocess.PIPE, stderr=self.log, env=env, stdin=subprocess.DEVNULL,
            cwd=self.dir)  # where it may leave a core
        ready, _ = wait_readable(self.process.stdout, HANGS)
        if not ready:
            self.kill()
            raise Violation("it neither serves nor ends")
        if self.process.stdout.readline().startswith(b"ready "):
            return True
        status = self.process.wait(HANGS)
        said = self.said(begin)
        if status <= 0 or "E_" not in said:
            raise Violation(f"it ended at start with {status}, and said: {said.strip()[-300:]}")
        return False

    def said(self, begin):
        with open(self.dir + "/log", "rb") as f:
            f.seek(begin)
            return f.read().decode(errors="replace")

    def call(self, method, timeout, **params):
        """(result, error); None, None when there is no answer in time, or it has ended."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(timeout)
            end = time.monotonic() + timeout
            try:
                s.connect(self.dir + "/run/disks/d.sock")
                s.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() +
                          b"\n")
                data = b""
                while not data.endswith(b"\n"):
                    s.settimeout(max(0.001, end - time.monotonic()))
                    part = s.recv(1 << 16)
                    if not part:
                        return None, None
                    data += part
            except OSError:
                return None, None
        answer = json.loads(data.splitlines()[-1])
        return answer.get("result"), answer.get("error")

    def begin(self, timeout, **params):
        """(whether a move has begun, error)"""
        result, error = self.call("relocate", timeout, **params)
        if error and not (error.get("message") and error["data"]["code"].startswith("E_")):
            raise Violation(f"refused without a word: {error}")
        return result is not None, error

    def job(self, timeout):
        """The job when it has ended; None: it has not, there is none, or nobody answers."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and not self.ended():
            result, error = self.call("job.wait", end - time.monotonic())
            if result and result.get("phase") == "ended":
                return result
            if error and error["data"]["code"] == "E_NOT_FOUND":
                return None
            time.sleep(0.02)
        return None

    def ended(self):
        return self.process.poll() is not None

    def check_end(self):
        """Of its own will, and with a word."""
        status = self.process.wait()
        if status < 0:
            raise Violation(f"it was ended by {signal.Signals(-status).name}")
        if status and not os.path.getsize(self.dir + "/log"):
            raise Violation(f"it ended with {status}, and without a word")

    def stop(self):
        """In good order."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(HANGS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Violation("it does not end on SIGTERM") from None
        self.check_end()

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait()
            self.process.stdout.close()


def clean_up_on_sigterm():
    """Who ends a test early lets its `finally` run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def wait_readable(file, timeout):
    with selectors.DefaultSelector() as s:
        s.register(file, selectors.EVENT_READ)
        return s.select(timeout), None
