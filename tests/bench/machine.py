#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A machine's move by QEMU alone, for tests/bench/machine.sh: mirrors to NBD, then migrate.

    machine.py SOURCE-QMP TARGET-QMP TARGET-ADDRESS DOWNTIME-MS DISK=NODE...

    machine.py --cpu NETWORK-NAMESPACE...

Until SIGTERM: the seconds of processor that all processes in there have used since, also those that ended.

Both QEMUs run, the target with -incoming defer -S; its nodes have the same names. Prints one line of JSON:
what it took, and the pause in parts, in ns, by the times that QEMU gives its events.
"""
import json
import os
import signal
import socket
import sys
import time


class Qmp:
    def __init__(self, path):
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        s.settimeout(300)
        self.file = s.makefile("rwb")
        self.events = []
        self.read()
        self.call("qmp_capabilities")

    def read(self):
        line = self.file.readline()
        if not line:
            sys.exit("QEMU has ended")
        return json.loads(line)

    def call(self, command, **arguments):
        message = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self.file.write(json.dumps(message).encode() + b"\n")
        self.file.flush()
        while True:
            answer = self.read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                sys.exit(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def event(self, name, **data):
        """Waits for it; returns when it was, in ns. Each is returned once."""
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name and all(event["data"].get(k) == v for k, v in data.items()):
                    del self.events[i]
                    at = event["timestamp"]
                    return at["seconds"] * 10**9 + at["microseconds"] * 1000
            answer = self.read()
            if "event" in answer:
                self.events.append(answer)


def capabilities(qmp, *names):
    qmp.call("migrate-set-capabilities", capabilities=[{"capability": n, "state": True} for n in names])


def used(spaces):
    """By process: the ticks that it has used."""
    now = {}
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/ns/net") in spaces:
                with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as f:
                    fields = f.read().rsplit(")", 1)[1].split()
                now[name] = int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return now


def cpu(spaces):
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(1))
    spaces = {os.readlink(s) for s in spaces}
    first = used(spaces)
    last = dict(first)
    print("counting", flush=True)
    while not over:
        time.sleep(0.05)
        last.update(used(spaces))
    print(round((sum(last.values()) - sum(first.values())) / os.sysconf("SC_CLK_TCK"), 2))


def main():
    if sys.argv[1] == "--cpu":
        cpu(sys.argv[2:])
        return
    source, target = Qmp(sys.argv[1]), Qmp(sys.argv[2])
    address, downtime, nodes = sys.argv[3], int(sys.argv[4]), sys.argv[5:]
    begun = time.time_ns()
    capabilities(target, "events", "return-path", "late-block-activate")
    capabilities(source, "events", "return-path", "pause-before-switchover")
    where = {"host": address, "port": "10809"}
    target.call("nbd-server-start", addr={"type": "inet", "data": where})
    for node in nodes:
        target.call("block-export-add", type="nbd", id=node, node_name=node, name=node, writable=True)
        source.call("blockdev-add", driver="nbd", node_name="to-" + node, server={"type": "inet", **where},
                    export=node, discard="unmap")
        source.call("blockdev-mirror", job_id=node, device=node, target="to-" + node, sync="full",
                    copy_mode="write-blocking", auto_dismiss=False)
    for node in nodes:
        source.event("BLOCK_JOB_READY", device=node)
    mirrored = time.time_ns()
    target.call("migrate-incoming", uri=f"tcp:{address}:10810")
    source.call("migrate-set-parameters", downtime_limit=downtime, max_bandwidth=1 << 40)
    source.call("migrate", uri=f"tcp:{address}:10810")
    stopped = source.event("STOP")
    source.event("MIGRATION", status="pre-switchover")
    switching = time.time_ns()
    for node in nodes:
        source.call("block-job-cancel", device=node)
    for node in nodes:
        source.event("BLOCK_JOB_COMPLETED", device=node)
    mirrors_ended = time.time_ns()
    source.call("migrate-continue", state="pre-switchover")
    target.event("MIGRATION", status="completed")
    loaded = time.time_ns()
    target.call("nbd-server-stop")
    target.call("cont")
    resumed = target.event("RESUME")
    ended = time.time_ns()
    source.event("MIGRATION", status="completed")
    ram = source.call("query-migrate")["ram"]
    print(json.dumps({"took_ns": ended - begun, "mirror_ns": mirrored - begun, "pause_ns": resumed - stopped,
                      "disks_ns": mirrors_ended - switching, "memory_ns": loaded - mirrors_ended,
                      "start_ns": resumed - loaded, "ram_bytes": ram["transferred"]}))


if __name__ == "__main__":
    main()
