#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Between a client and QEMU's QMP socket, and once in the way.

    qmp_proxy.py LISTEN SERVER MODE NUMBER

At the NUMBER-th command of all that clients send:
    before   both connections are closed; QEMU has not heard of it
    after    QEMU has carried it out; they are closed instead of the answer
    refuse   the client is told an error; QEMU has not heard of it
    answer   NUMBER is {COMMAND: result, …}: always, instead of QEMU's results
Prints which command that was. What comes later passes. SIGUSR1 closes the connections of now.
"""
import json
import os
import signal
import socket
import sys
import threading


class Proxy:
    def __init__(self, listen, server, mode, number):
        self.server, self.mode = server, mode
        self.lies = json.loads(number) if mode == "answer" else {}
        self.left = 0 if mode == "answer" else int(number)
        self.asked = {}
        self.listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(listen):
            os.unlink(listen)
        self.listener.bind(listen)
        self.listener.listen(8)
        self.now = ()
        signal.signal(signal.SIGUSR1, lambda *_: self.end(*self.now))

    def run(self):
        while True:
            client, _ = self.listener.accept()
            upstream = socket.socket(socket.AF_UNIX)
            try:
                upstream.connect(self.server)
            except OSError:
                client.close()
                continue
            self.serve(client, upstream)

    def serve(self, client, upstream):
        """One after the other, as QEMU has it."""
        self.now = (client, upstream)
        self.lost = None  # id of the command whose answer ends all
        down = threading.Thread(target=self.answers, args=(client, upstream), daemon=True)
        down.start()
        try:
            for line in client.makefile("rb"):
                if not self.command(json.loads(line), client):
                    break
                upstream.sendall(line) if self.passes else None
        except OSError:
            pass
        if self.lost is not None:
            down.join(30)
        self.end(client, upstream)
        down.join(30)

    def command(self, message, client):
        """Whether the connection goes on; self.passes says whether QEMU hears of it."""
        self.left -= 1
        self.passes = True
        self.asked[message.get("id")] = message["execute"]
        if self.left:
            return True
        print(self.mode, message["execute"], flush=True)
        if self.mode == "after":
            self.lost = message["id"]
            return True
        self.passes = False
        if self.mode == "refuse":
            error = {"class": "GenericError", "desc": "refused by the test"}
            client.sendall(json.dumps({"error": error, "id": message["id"]}).encode() + b"\n")
            return True
        return False

    def answers(self, client, upstream):
        try:
            for line in upstream.makefile("rb"):
                if self.lost is not None and json.loads(line).get("id") == self.lost:
                    break
                client.sendall(self.lie(line) if self.lies else line)
        except OSError:
            pass
        self.end(client, upstream)

    def lie(self, line):
        answer = json.loads(line)
        command = self.asked.get(answer.get("id"))
        if command in self.lies:
            answer.pop("error", None)
            answer["return"] = self.lies[command]
        return json.dumps(answer).encode() + b"\n"

    @staticmethod
    def end(*sockets):
        for s in sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


Proxy(*sys.argv[1:]).run()
