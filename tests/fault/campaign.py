# SPDX-License-Identifier: BSD-3-Clause
"""Campaigns: many runs with a seed each, some at a time, and their figures.

PROGRAM [--runs N] [--jobs N] [--seed N] [--keep DIR] [--results FILE]
PROGRAM --figures FILE...

The seed of the first run is printed, and each one after it is one more; --runs 1 with the seed of a
run repeats it. --keep keeps the folder of a run that violated something; --until-violation ends with it. --results adds a line of JSON
for each run to a file; --figures adds up such files. SIGTERM: those that ended count. $HOLD: while that
file exists no run begins.
"""
import argparse
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback

from lab import Violation, become_reaper, end_all


class Campaign:
    """Runs of ONE(figures, past, folder): figures has the seed, and gets what is to be told; past has
    those of the runs that ended."""

    def __init__(self, one, options):
        self.one, self.options = one, options
        self.dir = tempfile.mkdtemp(prefix="bm-fault.", dir=os.environ.get("TMPDIR", "/var/tmp"))
        self.running, self.results = {}, []

    def begin(self, seed):
        folder = os.path.join(self.dir, str(seed))
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with os.fdopen(write, "w") as out:
                json.dump(self.carry_out(seed, folder), out)
            os._exit(0)
        os.close(write)
        self.running[pid] = (seed, read, folder)

    def carry_out(self, seed, folder):
        """In a process of its own, which has adopted all that the run begins, and ends it."""
        become_reaper()
        figures = {"seed": seed}
        try:
            self.one(figures, self.results, folder)
        except Violation as e:
            figures["violation"] = str(e)
        except Exception:  # pylint: disable=broad-except
            figures["violation"] = " ".join(traceback.format_exc(limit=-3).split())
        finally:
            end_all()
        figures["cpu"] = sum(sum(resource.getrusage(who)[:2]) for who in
                             (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return figures

    def finish_one(self):
        pid, status = os.wait()
        if pid not in self.running:
            return
        seed, read, folder = self.running.pop(pid)
        with os.fdopen(read) as said:
            text = said.read()
        figures = json.loads(text) if text else {"seed": seed, "violation": f"it ended with {status}"}
        if "violation" in figures:
            print(f"# violation: seed {seed}: {figures['violation']}", flush=True)
            if self.options.keep:
                os.makedirs(self.options.keep, exist_ok=True)
                shutil.copytree(folder, os.path.join(self.options.keep, str(seed)),
                                dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.s", "*.sock", "*.nbd", ".adopt"))
        shutil.rmtree(folder, ignore_errors=True)
        self.results.append(figures)
        if self.options.results:
            with open(self.options.results, "a", encoding="utf-8") as f:
                print(json.dumps(figures), file=f)

    def go_through(self, seeds):
        become_reaper()
        signal.signal(signal.SIGTERM, self.stop)
        for seed in seeds:
            while os.path.exists(os.environ.get("HOLD", "/nonexistent")):
                time.sleep(1)
            while len(self.running) >= self.options.jobs:
                self.finish_one()
            if self.options.until_violation and any("violation" in f for f in self.results):
                raise KeyboardInterrupt
            self.begin(seed)
        while self.running:
            self.finish_one()

    def stop(self, *_):
        """Runs that have not ended do not count."""
        raise KeyboardInterrupt

    def all(self):
        """Their figures."""
        first = self.options.seed
        print(f"# seed {first}", flush=True)
        try:
            self.go_through(range(first, first + self.options.runs))
        except KeyboardInterrupt:
            end_all()
        shutil.rmtree(self.dir, ignore_errors=True)
        return self.results


def middle(numbers):
    return sorted(numbers)[(len(numbers) - 1) // 2] if numbers else 0


def counted(things):
    count = {}
    for thing in things:
        count[thing] = count.get(thing, 0) + 1
    return ", ".join(f"{k} {v}" for k, v in sorted(count.items(), key=lambda i: -i[1]))


def options(about):
    """Of the command line."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1000000000))
    parser.add_argument("--keep")
    parser.add_argument("--until-violation", action="store_true")
    parser.add_argument("--results")
    parser.add_argument("--figures", nargs="+")
    return parser.parse_args()


def run(about, one, report):
    """The main function of a campaign: its exit status."""
    asked = options(about)
    if asked.figures:
        results = []
        for name in asked.figures:
            with open(name, encoding="utf-8") as f:
                results += [json.loads(line) for line in f]
    else:
        results = Campaign(one, asked).all()
    report(results)
    return report_violations(results)


def report_violations(results):
    violated = [f["seed"] for f in results if "violation" in f]
    if violated:
        print(f"# violations: {len(violated)}, seeds {' '.join(map(str, violated))}")
    else:
        print(f"# violations: 0; with 95 % confidence fewer than {min(300 / max(len(results), 1), 100):.3g} % of such "
              f"runs violate")
    return bool(violated)
