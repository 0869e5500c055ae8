# SPDX-License-Identifier: BSD-3-Clause
"""A fixtures/tinyvm as a process, for tests: its control socket, its log, its end."""
import os, re, subprocess, time
from native_move import Gone, Machine

class Bad(Exception):
    """Something is not as it has to be."""

class Vm:
    number = 0

    def __init__(self, setup, host, incoming, *more):
        """setup: .dir, .disk (URI), .tinyvm (path)"""
        Vm.number += 1
        name = f'{setup.dir}/vm{os.getpid()}-{Vm.number}'
        self.control, self.log, self.killed = f'{name}.sock', f'{name}.log', False
        self.process = subprocess.Popen(
            [setup.tinyvm, '--control', self.control, '--disk', setup.disk, '--host', str(host),
             *more] + (['--incoming'] if incoming else []), stdout=open(self.log, 'w'),
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.wait('ready')

    def text(self):
        return open(self.log).read()

    def wait(self, word, seconds=20):
        end = time.monotonic() + seconds
        while not re.search(word, self.text(), re.M):
            if time.monotonic() > end or self.process.poll() is not None:
                time.sleep(0.05)
                if re.search(word, self.text(), re.M):
                    return
                raise Bad(f'{self.log}: no "{word}": {self.text()[-300:]}')
            time.sleep(0.01)

    def connect(self):
        return Machine(self.control)

    def status(self):
        """None: it is dead."""
        if self.process.poll() is not None:
            return None
        try:
            return self.connect().call('status')
        except Gone:
            self.process.wait(10)
            return None

    def state(self):
        status = self.status()
        return status and status['state']

    def hashes(self, word):
        return re.findall(rf'^{word} number (\d+) hash (\w+)', self.text(), re.M)

    def end(self):
        self.killed = True
        self.process.kill()
        self.process.wait()
