#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A thin mover of native machines: the orders of docs/precopy.md in the order of the one-pause
protocol, both hosts in one process, a relay between them, one durable decision.

    native_move.py --source SOCK --target SOCK --log FILE --move NAME --dir DIR [options]
    native_move.py --recover ... the same: ends what a mover before left, by the log

It prints each step. --at STEP --do WHAT [--delay S] does harm: die (of itself, SIGKILL), cut (the
relay), cancel, kill:PID. Exit: 0 moved, 5 not moved, the machine runs at the source; 1 neither."""
import argparse, json, os, select, signal, socket, sys, threading, time

class Gone(Exception):
    pass

class Refused(Exception):
    def __init__(self, error):
        super().__init__(error['message'])
        self.code = error['data']['code']

class Machine:
    """A VMM's control socket. status holds the last event or answer."""
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(path)
        except OSError as e:
            raise Gone(f'{path}: {e}')
        self.data, self.next, self.status = b'', 0, {}

    def line(self, until=None):
        while b'\n' not in self.data:
            wait = None if until is None else max(0, until - time.monotonic())
            if not select.select([self.socket], [], [], wait)[0]:
                return None
            try:
                more = self.socket.recv(1 << 16)
            except OSError as e:
                raise Gone(str(e))
            if not more:
                raise Gone('the control connection ended')
            self.data += more
        text, self.data = self.data.split(b'\n', 1)
        return json.loads(text)

    def call(self, method, **params):
        self.send(method, **params)
        return self.answer(method)

    def send(self, method, **params):
        self.next += 1
        try:
            self.socket.sendall(json.dumps({'jsonrpc': '2.0', 'id': self.next, 'method': method,
                                            'params': params}).encode() + b'\n')
        except OSError as e:
            raise Gone(str(e))

    def answer(self, method='order'):
        end = time.monotonic() + 20
        while True:
            answer = self.line(end)
            if answer is None:
                raise Gone(f'{method}: no answer for 20 s')
            if answer.get('method') == 'precopy':
                self.status = answer['params']
            elif answer.get('id') == self.next:
                if 'error' in answer:
                    raise Refused(answer['error'])
                self.status = answer['result']
                return self.status

    def event(self, seconds):
        """The next event within so many seconds, or None."""
        answer = self.line(time.monotonic() + seconds)
        if answer:
            self.status = answer['params']
        return answer and self.status

class Relay:
    """Pairs of connections between two unix sockets; may be cut."""
    made = 0

    def __init__(self, folder):
        Relay.made += 1
        self.paths, self.listeners, self.ends, self.is_cut = [], [], [], False
        for side in 'source', 'target':
            path = f'{folder}/relay-{side}-{os.getpid()}-{Relay.made}.sock'
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen(16)
            self.paths.append(path)
            self.listeners.append(listener)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            pair = [l.accept()[0] for l in reversed(self.listeners)]
            self.ends += pair
            for a, b in pair, reversed(pair):
                threading.Thread(target=self.pump, args=(a, b), daemon=True).start()
            if self.is_cut:
                self.cut()

    def pump(self, a, b):
        try:
            while True:
                data = a.recv(1 << 18)
                if not data:
                    break
                b.sendall(data)
        except OSError:
            pass
        for end in a, b:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        self.is_cut = True
        for end in self.ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        for path in self.paths:
            os.unlink(path)

class Log:
    """What is decided is one line that is on the disk."""
    def __init__(self, path):
        self.path = path

    def decide(self, move):
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, f'commit {move}\n'.encode())
        os.fdatasync(fd)
        os.close(fd)

    def decided(self, move):
        try:
            return f'commit {move}\n' in open(self.path).readlines()
        except FileNotFoundError:
            return False

class Mover:
    def __init__(self, options):
        self.o, self.log, self.cancelled, self.relay = options, Log(options.log), False, None

    def step(self, name):
        print('step', name, flush=True)
        if name == self.o.at:
            if self.o.delay:
                threading.Timer(self.o.delay, self.harm).start()
            else:
                self.harm()
        if self.cancelled:
            raise Refused({'message': 'cancelled', 'data': {'code': 'E_CANCELLED'}})

    def harm(self):
        what = self.o.do
        print('harm', what, flush=True)
        if what == 'die':
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == 'cut':
            self.relay.cut()
        elif what == 'cancel':
            self.cancelled = True
        elif what.startswith('kill:'):
            os.kill(int(what[5:]), signal.SIGKILL)

    def wait(self, true):
        """For a state of the source, telling what comes by."""
        seen, end = None, time.monotonic() + self.o.limit
        while not true(self.source.status):
            status = self.source.status
            if status['state'] == 'running':
                raise Refused({'message': status['why'], 'data': {'code': status['code']}})
            now = (status['state'], min(len(status['rounds']), 3), status['converged'])
            if now != seen:
                self.step(f'{now[0]}{now[1]}')
                seen = now
            if self.cancelled:
                self.step('cancelled')
            if time.monotonic() > end:
                raise Refused({'message': 'it takes too long', 'data': {'code': 'E_BUDGET'}})
            self.source.event(0.05)

    def move(self):
        o = self.o
        self.source, self.target = Machine(o.source), Machine(o.target)
        self.relay = Relay(o.dir)
        self.step('begin')
        way = {'move': o.move, 'connections': o.connections}
        self.target.call('incoming', connect=self.relay.paths[1], **way)
        self.step('incoming')
        self.source.call('start', connect=self.relay.paths[0], policy=o.policy, budget=o.budget,
                         **way)
        self.step('started')
        self.wait(lambda s: s['converged'])
        self.step('converged')
        self.source.call('pause', move=o.move)
        self.wait(lambda s: s['loaded'])
        self.report = self.source.status
        self.step('loaded')
        if o.rehearse:
            self.cancelled = True
            self.step('rehearsed')
        self.source.call('release', move=o.move)
        self.step('released')
        self.log.decide(o.move)
        self.step('decided')
        self.finish(self.source, self.target)

    def finish(self, source, target):
        """After the decision: there is no way but this, however often."""
        if target:
            target.call('run', move=self.o.move)
        self.step('runs')
        if source and source.call('status')['state'] == 'released':
            source.call('quit', move=self.o.move)
        self.step('quit')

    def give_up(self, source, target):
        """Undecided: nobody can have started it at the target."""
        for machine in target, source:
            if not machine:
                continue
            try:
                state = machine.call('status')
                if state['move'] == self.o.move:
                    machine.call('resume' if state['state'] == 'released' else 'abort',
                                 move=self.o.move)
            except Gone:
                pass

    def reach(self, path):
        try:
            return Machine(path)
        except Gone:
            return None

    def recover(self):
        source, target = self.reach(self.o.source), self.reach(self.o.target)
        if self.log.decided(self.o.move):
            try:
                self.finish(source, target)
            except Gone as e:
                print('gone', e)
            return 0
        self.give_up(source, target)
        return 5

    def run(self):
        try:
            self.move()
            print('report', json.dumps(self.report))
            return 0
        except (Gone, Refused) as e:
            print('ended', type(e).__name__, getattr(e, 'code', ''), e)
            self.o.at = ''
            self.cancelled = False
            if self.relay:
                self.relay.cut()
            return self.recover()
        finally:
            if self.relay:
                self.relay.close()

def main():
    p = argparse.ArgumentParser()
    for name in 'source', 'target', 'log', 'move', 'dir':
        p.add_argument('--' + name, required=True)
    p.add_argument('--recover', action='store_true')
    p.add_argument('--rehearse', action='store_true')
    p.add_argument('--connections', type=int, default=2)
    p.add_argument('--policy', default='wait')
    p.add_argument('--budget', type=int, default=300000000)
    p.add_argument('--limit', type=float, default=20)
    p.add_argument('--at', default='')
    p.add_argument('--do', default='')
    p.add_argument('--delay', type=float, default=0)
    mover = Mover(p.parse_args())
    return mover.recover() if mover.o.recover else mover.run()

if __name__ == '__main__':
    sys.stdout.flush()
    status = main()
    sys.stdout.flush()
    os._exit(status)
