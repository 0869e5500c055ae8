#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Moves one machine (fixtures/tinyvm) to and fro, N times, with harm at random: nothing, a cancel, a
rehearsal, the relay cut, the mover or either VMM killed, in any phase, at once or a little later.

    native_campaign.py --moves N --seed S --dir DIR --disk URI --tinyvm PATH

After each: at most one machine runs, and it is the one that the mover's log says; exactly one when
no VMM was killed; RAM that arrived has the hash that it had at the source; no machine has ended by
itself (it does when its memory, or the disk against it, is wrong: tinyvm.h); it goes on. A machine
that was killed is powered on again where it was, from what is on the disk."""
import argparse, os, random, signal, subprocess, sys, time
import nbd
from native_move import Log
from native_vm import Bad, Vm

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS = ['begin', 'incoming', 'started', 'copying0', 'copying1', 'copying2', 'copying3', 'converged',
         'pausing2', 'pausing3', 'paused2', 'paused3', 'loaded', 'released', 'decided', 'runs']
HARMS = ['none', 'none', 'cancel', 'rehearse', 'cut', 'die', 'source', 'target']
TRACKERS = ['async', 'sync', '']

class Campaign:
    def __init__(self, options):
        self.o, self.random = options, random.Random(options.seed)
        self.count, self.what = {}, ''
        self.host, self.source, self.target = 1, None, None

    def bad(self, text):
        for vm in self.source, self.target:
            if vm:
                print(f'# {vm.log}:', *vm.text().splitlines()[-12:], sep='\n#   ')
        print(f'VIOLATED seed {self.o.seed} {self.what}: {text}', flush=True)
        for vm in self.source, self.target:
            if vm:
                vm.end()
        sys.exit(1)

    def power_on(self, host, incoming):
        return Vm(self.o, host, incoming, '--tracker', self.random.choice(TRACKERS), '--slow',
                  str(self.random.choice([0, 0, 5])))

    def add(self, name):
        self.count[name] = self.count.get(name, 0) + 1

    def highest(self):
        h = nbd.NBD()
        h.connect_uri(self.o.disk)
        data = h.pread(2048 * 512, 0)
        h.shutdown()
        return max(int.from_bytes(data[at:at + 8], 'little') for at in range(0, len(data), 512))

    def mover(self, *more):
        o = self.o
        return subprocess.run(
            [sys.executable, f'{HERE}/native_move.py', '--source', self.source.control, '--target',
             self.target.control, '--log', f'{o.dir}/log', '--move', self.move, '--dir', o.dir,
             *more], capture_output=True, text=True, timeout=60)

    def choose(self):
        r = self.random
        harm, step = r.choice(HARMS), r.choice(STEPS)
        delay = r.choice([0, 0, r.random() * 0.01, r.random() * 0.1])
        more = ['--connections', str(r.randint(1, 4))]
        if harm == 'rehearse':
            more.append('--rehearse')
        elif harm != 'none':
            do = harm
            if harm in ('source', 'target'):
                do = f'kill:{getattr(self, harm).process.pid}'
            more += ['--at', step, '--do', do, '--delay', f'{delay:.4f}']
        self.what = f'move {self.move}: {harm} at {step} after {delay * 1000:.1f} ms'
        return harm, more

    def dead(self, vm, harmed):
        """Whether it has ended; only by our hand, or because it was told to."""
        status = vm.process.poll()
        if status is None or status == 0 or (harmed and status == -signal.SIGKILL):
            return status is not None
        self.bad(f'{vm.log} ended with {status}')

    def look(self, harm, said):
        """Who runs, and who is to run."""
        moved = Log(f'{self.o.dir}/log').decided(self.move)
        states = self.source.state(), self.target.state()
        runs = [s == 'running' for s in states]
        self.dead(self.source, harm == 'source'), self.dead(self.target, harm == 'target')
        if moved and ((runs[0]) or states[0] not in (None, 'released') or
                      not (runs[1] or (states[1] is None and harm == 'target'))):
            self.bad(f'moved, and the states are {states}\n{said}')
        if not moved and (states[1] not in (None, 'waiting') or
                          not (runs[0] or (states[0] is None and harm == 'source'))):
            self.bad(f'not moved, and the states are {states}\n{said}')
        paused, loaded = self.source.hashes('paused'), self.target.hashes('loaded')[self.loads:]
        if loaded and (not paused or loaded[-1] != paused[-1]):
            self.bad(f'paused {paused[-1:]}, loaded {loaded[-1:]}')
        ran = self.target.hashes('running')[:1]
        if moved and ran != loaded[-1:] and (ran or harm != 'target'):
            self.bad('it did not go on where it was')
        return moved

    def settle(self, moved):
        """The machine that is to run becomes the source; both sides are whole again."""
        if moved:
            self.source, self.target, self.host = self.target, self.source, self.host + 1
            self.target.end()
        for vm in self.source, self.target:
            vm.killed = vm.process.poll() is not None
        if self.source.killed:
            self.add('powered on again')
            self.source = self.power_on(self.host, False)
        if self.target.killed or self.random.random() < 0.3:
            self.target.end()
            self.target = self.power_on(self.host + 1, True)

    def goes_on(self):
        before, end = self.highest(), time.monotonic() + 10
        while self.highest() <= before:
            if time.monotonic() > end:
                self.bad('the machine stands still')
            time.sleep(0.01)

    def one(self, n):
        self.move = f'm{n}'
        harm, more = self.choose()
        self.loads = len(self.target.hashes('loaded'))
        said = self.mover(*more)
        # A busy host may be silent for as long as a dead one.
        silent = 'said nothing for' in said.stdout
        if silent:
            self.add('silence')
        if harm == 'none' and said.returncode and not silent:
            self.bad(f'without harm it ends with {said.returncode}: {said.stdout}{said.stderr}')
        if said.returncode not in (0, 5, -9):
            self.bad(f'the mover ended with {said.returncode}: {said.stdout}{said.stderr}')
        if said.returncode == -9:
            self.mover('--recover')
        moved = self.look(harm, said.stdout + said.stderr)
        self.add('moved' if moved else 'stayed')
        self.add(harm + ('' if harm in ('none', 'rehearse') or 'harm' in said.stdout else ', too late'))
        self.settle(moved)
        self.goes_on()

    def run(self):
        self.source, self.target = self.power_on(1, False), self.power_on(2, True)
        for n in range(self.o.moves):
            try:
                self.one(n)
            except Bad as e:
                self.bad(e)
        self.source.end(), self.target.end()
        if self.count.get('silence', 0) * 2 > self.o.moves:
            self.bad('most moves end in silence')
        print(f'{self.o.moves} moves:', ', '.join(f'{k} {v}' for k, v in sorted(self.count.items())))

p = argparse.ArgumentParser()
p.add_argument('--moves', type=int, required=True)
p.add_argument('--seed', type=int, required=True)
p.add_argument('--dir', required=True)
p.add_argument('--disk', required=True)
p.add_argument('--tinyvm', required=True)
Campaign(p.parse_args()).run()
