#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Orders to native machines, one case at a time: native_orders.py DIR DISK-URI TINYVM CASE"""
import os, signal, socket, subprocess, sys, time, types
from native_move import Gone, Machine, Refused, Relay
from native_vm import Bad, Vm

setup = types.SimpleNamespace(dir=sys.argv[1], disk=sys.argv[2], tinyvm=sys.argv[3])
MS = 1000000
vms = []

def vm(host, incoming, *more):
    vms.append(Vm(setup, host, incoming, *more))
    return vms[-1]

def must(true, what):
    if not true:
        raise Bad(what)

def refused(code, machine, order, **params):
    try:
        machine.call(order, **params)
    except Refused as e:
        must(e.code == code, f'{order}: {e.code} {e}; {code} expected')
        return str(e)
    raise Bad(f'{order} was not refused')

class Pair:
    """Two machines and a move that has begun."""
    def __init__(self, source=(), target=(), records=16, move='m', works=0, **start):
        """works: seconds that the guest has before, to write to its RAM."""
        self.a = vm(1, False, '--records', str(records), *source)
        time.sleep(works)
        self.b = vm(2, True, '--records', str(records), *target)
        self.source, self.target, self.move = self.a.connect(), self.b.connect(), move
        self.begin(**start)

    def begin(self, **start):
        self.relay = Relay(setup.dir)
        self.target.call('incoming', move=self.move, connect=self.relay.paths[1])
        self.source.call('start', move=self.move, connect=self.relay.paths[0], **start)

    def until(self, true, seconds=20):
        end = time.monotonic() + seconds
        while not true(self.source.status):
            must(time.monotonic() < end, f'not within {seconds} s: {self.source.status}')
            self.source.event(0.05)
        return self.source.status

    def abort(self):
        self.target.call('abort', move=self.move)
        self.source.call('abort', move=self.move)

    def load(self, **params):
        self.until(lambda s: s['converged'])
        self.source.call('pause', move=self.move, **params)
        self.until(lambda s: s['loaded'] or s['state'] == 'running')
        must(self.source.status['loaded'], self.source.status['why'])

    def comes_back(self, seconds):
        """The source runs within so many seconds; returns how many it took."""
        begin = time.monotonic()
        while self.a.state() != 'running':
            must(time.monotonic() < begin + seconds, f'{self.a.state()} after {seconds} s')
            time.sleep(0.002)
        return time.monotonic() - begin

def hash_is_the_same(pair):
    must(pair.b.hashes('loaded')[-1] == pair.a.hashes('paused')[-1], 'other RAM has arrived')

def paused_runs_on_when_its_mover_goes():
    p = Pair()
    p.load()
    p.source.socket.close()
    took = p.comes_back(1)
    print(f'it runs after {took * 1000:.1f} ms')
    status = p.a.status()
    must(status['code'] == 'E_UNREACHABLE' and 'control' in status['why'], status)
    must(p.b.state() == 'loaded', f'the target is {p.b.state()}')
    refused('E_NOT_READY', p.a.connect(), 'release', move='m')
    p.b.connect().call('abort', move='m')
    must(p.b.state() == 'waiting', 'the target does not wait')

def paused_runs_on_when_its_ram_cannot_go():
    p = Pair(source=['--slow', '300'])
    p.until(lambda s: s['converged'])
    p.source.call('pause', move='m')
    p.until(lambda s: s['state'] == 'pausing')
    p.relay.cut()
    p.until(lambda s: s['state'] == 'running', 2)
    must(p.a.hashes('paused') and p.source.status['code'] == 'E_UNREACHABLE', p.source.status)
    p.comes_back(1)

def paused_ends_by_itself():
    p = Pair(pause_limit=400 * MS)
    p.load()
    refused('E_BUSY', p.source, 'start', move='n', connect='x')
    p.until(lambda s: s['state'] == 'running', 3)
    must(p.source.status['code'] == 'E_BUDGET', p.source.status)
    refused('E_NOT_READY', p.source, 'release', move='m')

def released_stays():
    p = Pair()
    refused('E_NOT_READY', p.source, 'release', move='m')
    p.load()
    refused('E_NOT_FOUND', p.source, 'release', move='other')
    p.source.call('release', move='m')
    number = p.a.hashes('released')[-1]
    p.source.socket.close(), p.target.socket.close(), p.relay.cut()
    time.sleep(1.5)
    source, target = p.a.connect(), p.b.connect()
    must(source.call('status')['state'] == 'released', 'it does not stay')
    must(target.call('status')['state'] == 'loaded', 'the target does not stay')
    refused('E_BUSY', source, 'abort', move='m')
    refused('E_BUSY', source, 'start', move='n', connect='x')
    refused('E_NOT_READY', source, 'run', move='m')
    must(source.call('release', move='m')['state'] == 'released', 'asked again')
    target.call('abort', move='m')
    refused('E_NOT_READY', target, 'run', move='m')
    source.call('resume', move='m')
    must(source.call('resume', move='m')['state'] == 'running', 'asked again')
    must(p.a.hashes('running')[-1] == number, 'it did not go on where it was')
    hash_is_the_same(p)

def released_only_when_loaded():
    """A target that hangs has not loaded, whatever was sent to it."""
    p = Pair()
    p.until(lambda s: s['converged'])
    os.kill(p.b.process.pid, signal.SIGSTOP)
    try:
        p.source.call('pause', move='m', force=True)
        p.until(lambda s: s['state'] == 'paused', 1)
        refused('E_NOT_READY', p.source, 'release', move='m')
    finally:
        os.kill(p.b.process.pid, signal.SIGCONT)
    p.until(lambda s: s['loaded'])
    p.source.call('release', move='m')

def a_target_that_hangs_is_left():
    """The connections' silence of 1.5 s ends the pause, before pause_limit does."""
    p = Pair()
    p.until(lambda s: s['converged'])
    os.kill(p.b.process.pid, signal.SIGSTOP)
    try:
        p.source.call('pause', move='m', force=True)
        p.until(lambda s: s['state'] == 'running', 3)
    finally:
        os.kill(p.b.process.pid, signal.SIGCONT)
    must('said nothing' in p.source.status['why'], p.source.status)

def moved_and_moved_again():
    p = Pair()
    p.load()
    p.source.call('release', move='m')
    p.target.call('run', move='m')
    must(p.target.call('run', move='m')['state'] == 'running', 'asked again')
    refused('E_FINISHED', p.target, 'abort', move='m')
    refused('E_NOT_READY', p.target, 'resume', move='m')
    p.source.call('quit', move='m')
    must(p.a.process.wait(5) == 0, 'it did not quit')
    p.a, p.b, p.move = p.b, vm(3, True, '--records', '16'), 'n'
    p.source, p.target = p.a.connect(), p.b.connect()
    p.begin()
    p.load()
    p.source.call('release', move='n')
    p.target.call('run', move='n')
    hash_is_the_same(p)

def too_short_a_pause_is_refused_by_policy():
    p = Pair(budget=1, policy='cancel', auto=True)
    p.until(lambda s: s['state'] == 'running')
    must(p.source.status['code'] == 'E_BUDGET' and not p.a.hashes('paused'), p.source.status)
    p.begin(budget=1, policy='wait', timeout=700 * MS, auto=True)
    p.until(lambda s: s['state'] == 'running', 3)
    must('time is up' in p.source.status['why'] and not p.a.hashes('paused'), p.source.status)
    p.begin(budget=1, policy='force', auto=True)
    p.until(lambda s: s['loaded'])
    p.abort()
    must(p.a.state() == 'running', 'it does not run after abort')
    p.begin(budget=1, policy='wait')
    p.until(lambda s: len(s['rounds']) > 4)
    p.source.call('pause', move='m', force=True)
    p.until(lambda s: s['loaded'])
    hash_is_the_same(p)

def throttled_until_it_fits():
    p = Pair(budget=1, policy='throttle', auto=True)
    p.until(lambda s: s['throttle'] >= 40)
    must(p.a.text().index('throttle 20') < p.a.text().index('throttle 30'), 'no step by step')
    p.source.call('update', move='m', budget=300 * MS)
    p.until(lambda s: s['loaded'])
    p.abort()
    p.a.wait('throttle 0')
    before = int(p.a.hashes('running')[-1][0])
    must(p.a.status()['throttle'] == 0, 'it is slowed down still')
    p.begin()
    p.load()
    must(int(p.a.hashes('paused')[-1][0]) > before, 'it stood still')

def a_pause_that_would_overrun_is_left():
    p = Pair(source=['--slow', '100'], budget=40 * MS, fixed=0, auto=True)
    p.until(lambda s: s['retreats'])
    time.sleep(0.5)
    p.source.call('status')
    must(p.source.status['state'] != 'running' and p.source.status['retreats'] <= 3,
         'it is stopped again and again, though it takes too long')
    p.source.call('update', move='m', budget=400 * MS)
    p.until(lambda s: s['loaded'])
    p.source.call('release', move='m')
    p.target.call('run', move='m')

def disks_have_their_part():
    p = Pair(residue=1 << 40)
    p.until(lambda s: len(s['rounds']) > 5)
    must(not p.source.status['converged'], 'a terabyte is not sent in 300 ms')
    p.source.call('update', move='m', residue=0)
    p.load()

def not_the_same_machine():
    for source, target, why in ((['--ram', '2097152'], [], 'of 2097152 bytes there'),
                                (['--version', '3'], ['--version', '2'], 'version 3 there'),
                                (['--version', '1'], [], 'version 1 there')):
        p = Pair(source, target)
        p.until(lambda s: s['state'] == 'running')
        must(p.source.status['code'] == 'E_UNSUPPORTED' and why in p.source.status['why'],
             p.source.status)
        must(not p.a.hashes('paused'), 'it was stopped for nothing')
        p.a.end(), p.b.end()
    p = Pair(['--version', '2'], ['--version', '3'])
    p.load()

def words_that_make_no_sense():
    p = Pair()
    p.load()
    for order, params in (('pause', {}), ('release', {}), ('nonsense', {}),
                          ('update', {'move': 'm', 'policy': 'hope'}),
                          ('update', {'move': 'm', 'budget': -1}),
                          ('update', {'move': 'm', 'budget': 'long'})):
        try:
            p.source.call(order, **params)
        except Refused as e:
            must(e.code in ('E_USAGE', 'E_NOT_FOUND'), f'{order} {params}: {e.code}')
            continue
        raise Bad(f'{order} {params}')
    p.source.call('abort', move='m')
    for params in ({}, {'move': 'a b', 'connect': 'x'}, {'move': 'x' * 64, 'connect': 'x'},
                   {'move': 'n', 'connect': 'x', 'connections': 17},
                   {'move': 'n', 'connect': 'x', 'connections': 0},
                   {'move': 'n', 'connect': 'x' * 200}, {'move': 'n', 'connect': 5}):
        refused('E_USAGE', p.source, 'start', **params)
    refused('E_NOT_FOUND', p.source, 'start', move='n', connect=setup.dir + '/nobody')
    must(p.a.state() == 'running', 'it does not run')
    p.move = 'n'
    p.target.call('abort', move='m')
    p.begin()
    p.load()


def an_order_outlives_the_connection_of_the_one_before():
    """That one ends in the same moment in which the next order comes by another."""
    a, door = vm(1, False, '--records', '16'), socket.socket(socket.AF_UNIX)
    door.bind(setup.dir + '/door')
    door.listen(200)
    other = a.connect()
    for i in range(60):
        first = a.connect()
        first.call('start', move=f'm{i}', connect=setup.dir + '/door')
        other.call('abort', move=f'm{i}')
        end = time.monotonic() + 5
        while other.call('status')['state'] != 'running' and time.monotonic() < end:
            time.sleep(0.001)
        a.process.send_signal(signal.SIGSTOP) # so that it finds both at once
        first.socket.close()
        other.send('start', move=f'n{i}', connect=setup.dir + '/door')
        a.process.send_signal(signal.SIGCONT)
        other.answer()
        time.sleep(0.005)
        status = other.call('status')
        must(status['state'] != 'running', f'{status["move"]} has ended: {status}')
        other.call('abort', move=f'n{i}')

def the_cap_is_kept():
    """The host may send 48 KiB/s, of what is compressed: the first round takes as long as that."""
    rate = 48 << 10
    blockmirror = os.path.join(os.path.dirname(setup.tinyvm), '..', 'blockmirror')
    run = os.environ['BLOCKMIRROR_RUN_DIR']
    subprocess.run([blockmirror, 'rate', str(rate)], check=True, stdout=subprocess.DEVNULL)
    try:
        ram = ('--ram', str(32 << 20))
        p = Pair(records=4096, source=ram, target=ram, works=2, run=run)
        p.until(lambda s: s['rounds'])
    finally:
        subprocess.run([blockmirror, 'rate', 'off'], check=True, stdout=subprocess.DEVNULL)
    first = p.source.status['rounds'][0]
    print(f'{first["wire"]} bytes in {first["ns"] / 1e9:.2f} s')
    must(first['wire'] * 1e9 / first['ns'] < 1.3 * rate, 'faster than the cap allows')
    p.load()

cases = {name: case for name, case in globals().items() if callable(case) and
         getattr(case, '__module__', '') == '__main__' and name not in
         ('vm', 'must', 'refused', 'Pair', 'hash_is_the_same')}
if __name__ == '__main__':
    if len(sys.argv) < 5:
        print(*cases, sep='\n')
        sys.exit()
    try:
        cases[sys.argv[4]]()
        for machine in vms:
            must(machine.killed or machine.process.poll() in (None, 0), f'{machine.log} has ended')
    except (Bad, Gone, Refused) as e:
        print('bad:', type(e).__name__, e)
        for machine in vms:
            print(machine.text())
        sys.exit(1)
    finally:
        for machine in vms:
            machine.end()
