#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""QMP for tests.

    qmp.py SOCKET COMMAND [ARGUMENTS-AS-JSON]     prints what it returns
    qmp.py --fake SOCKET MAJOR MINOR              a QEMU that greets as that version, and does nothing
    qmp.py --events SOCKET                        prints the name of each event, and when it was, until QEMU ends;
                                                  waits until there is one
    qmp.py --hold SOCKET                          keeps the socket taken, and says "taken" when it is
"""
import json
import os
import socket
import sys
import time


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    s.settimeout(30)
    f = s.makefile("rwb")
    json.loads(f.readline())
    return f


def call(f, command, arguments=None):
    message = {"execute": command}
    if arguments:
        message["arguments"] = arguments
    f.write(json.dumps(message).encode() + b"\n")
    f.flush()
    while True:
        answer = json.loads(f.readline())
        if "event" not in answer:
            return answer


def fake(path, major, minor):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(5)
    while True:
        connection, _ = listener.accept()
        f = connection.makefile("rwb")
        version = {"qemu": {"major": int(major), "minor": int(minor), "micro": 0}, "package": ""}
        f.write(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\n")
        f.flush()
        for line in f:
            f.write(json.dumps({"return": {}, "id": json.loads(line).get("id")}).encode() + b"\n")
            f.flush()


def events(path):
    s = socket.socket(socket.AF_UNIX)
    while True:
        try:
            s.connect(path)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.02)
    f = s.makefile("rwb")
    f.readline()
    call(f, "qmp_capabilities")
    print("connected", flush=True)
    for line in f:
        event = json.loads(line)
        if "event" in event:
            at = event["timestamp"]
            print(event["event"], flush=True)
            print(event["event"], "at", at["seconds"] * 1000000000 + at["microseconds"] * 1000, flush=True)


def main():
    if sys.argv[1] == "--events":
        return events(sys.argv[2])
    if sys.argv[1] == "--fake":
        fake(*sys.argv[2:])
    if sys.argv[1] == "--hold":
        held = connect(sys.argv[2])
        print("taken", flush=True)
        time.sleep(600)
        held.close()
    f = connect(sys.argv[1])
    call(f, "qmp_capabilities")
    answer = call(f, sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else None)
    print(json.dumps(answer.get("return", answer)))
    sys.exit("error" in answer)


try:
    main()
except BrokenPipeError:
    os._exit(1)
