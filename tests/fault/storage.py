# SPDX-License-Identifier: BSD-3-Clause
"""Storage that loses its power: file systems that are shut down beneath their files (the log written
out before or not), and disks with a volatile cache (fixtures/powerfs.c), with or without a file
system on them.

A supply is what loses its power together: cut(), then its users are killed, then drop() (nobody's
request hangs any more, nothing is mounted), then restore().
"""
import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess

from lab import BUILD, Violation, wait_for

GOING_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN
FLUSH_LOG, LEAVE_LOG = 1, 2
SIZES = {"xfs": 320 << 20, "ext4": 64 << 20}  # mkfs.xfs makes none that is smaller
MKFS = {"xfs": ["mkfs.xfs", "-q", "-K"],
        "ext4": ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"]}
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

libc = ctypes.CDLL(None, use_errno=True)


def run(*argv):
    """Status and what was said."""
    done = subprocess.run(argv, env=dict(os.environ, PATH=PATH), stdin=subprocess.DEVNULL, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout.strip()


def must(*argv):
    status, said = run(*argv)
    if status:
        raise RuntimeError(f"{' '.join(argv)}: {said}")
    return said


def own_mounts():
    """What is mounted from here on nobody else sees. Somebody's copy of the mounts, made in passing for
    a namespace of his own, would keep a file system alive that was unmounted here, and its old state
    would be written over the new one. A powerfs must be older than this: it would be the last one in
    here, and wait at its end for what is mounted on its own disks."""
    if libc.unshare(0x20000):  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    must("mount", "--make-rprivate", "/")


def unmount_all(folder):
    """Whatever is mounted beneath it."""
    with open("/proc/mounts", encoding="utf-8") as f:
        found = [line.split()[1] for line in f]
    for path in reversed(found):
        if path.startswith(folder + "/"):
            run("umount", "-l", path)


def make_templates(folder):
    for kind, size in SIZES.items():
        path = os.path.join(folder, kind)
        with open(path, "wb") as f:
            f.truncate(size)
        must(*MKFS[kind], path)
        must("cp", "--sparse=always", path, path + ".thin")
        os.rename(path + ".thin", path)


def copy_data(source, target):
    """All but the holes; the target is new, and reads as zeros."""
    with open(source, "rb") as f, open(target, "r+b") as g:
        at, size = 0, os.fstat(f.fileno()).st_size
        with contextlib.suppress(OSError):  # behind the last data
            while at < size:
                start = os.lseek(f.fileno(), at, os.SEEK_DATA)
                at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
                os.pwrite(g.fileno(), os.pread(f.fileno(), at - start, start), start)
        os.fsync(g.fileno())


class Power:
    """The disks of one powerfs."""

    def __init__(self, lab, name, disks):
        self.folder = os.path.join(lab.dir, name)
        os.mkdir(self.folder)
        self.ctl = os.path.join(self.folder, "ctl")
        self.process = lab.spawn([os.path.join(BUILD, "fixtures/powerfs"), self.folder,
                                  str(lab.random.randrange(1 << 30)),
                                  *(f"{disk}:{size}" for disk, size in disks.items())], "powerfs.log")
        wait_for(lambda: os.path.exists(self.ctl), 10, "powerfs is mounted")

    def path(self, disk):
        return os.path.join(self.folder, disk)

    def tell(self, line):
        with open(self.ctl, "w", encoding="ascii") as f:
            f.write(line)

    def ask(self):
        with open(self.ctl, encoding="ascii") as f:
            words = f.read().split()
        return words[0], dict(zip(words[1::2], map(int, words[2::2])))


def loop_device(path, direct):
    """A descriptor and the name of one that is gone when nobody uses it any more."""
    flags = 4 | (16 if direct else 0)  # LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO
    disk, control = os.open(path, os.O_RDWR), os.open("/dev/loop-control", os.O_RDWR)
    try:
        for _ in range(50):  # others may take the one that was free
            name = f"/dev/loop{fcntl.ioctl(control, 0x4C82)}"  # LOOP_CTL_GET_FREE
            loop = os.open(name, os.O_RDWR)
            config = bytearray(struct.pack("II40xIIII", disk, 0, 0, 0, 0, flags).ljust(304, b"\0"))
            try:
                fcntl.ioctl(loop, 0x4C0A, config)  # LOOP_CONFIGURE
                return loop, name
            except OSError as e:
                os.close(loop)
                if e.errno != errno.EBUSY:
                    raise
        raise RuntimeError("no loop device is free")
    finally:
        os.close(disk)
        os.close(control)


class Filesystem:
    """On a file, or on a disk of a Power."""

    def __init__(self, lab, name, kind, template, disk=None):
        self.lab, self.kind, self.disk = lab, kind, disk
        self.folder = os.path.join(lab.dir, name)
        os.mkdir(self.folder)
        if not disk:
            self.disk = self.folder + ".fs"
            with open(self.disk, "wb") as f:
                f.truncate(SIZES[kind])
        copy_data(template, self.disk)
        self.mount()

    def mount(self):
        """The loop device writes through its own cache, or around it."""
        loop, path = loop_device(self.disk, self.lab.random.random() < 0.5)
        self.loop = os.path.basename(path)
        options = b"nouuid" if self.kind == "xfs" else b""  # all have the identity of their template
        try:
            if libc.mount(path.encode(), self.folder.encode(), self.kind.encode(), 0, options):
                raise Violation(f"{self.kind} cannot be mounted: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(loop)

    def shut_down(self, flags):
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, GOING_DOWN, flags.to_bytes(4, "little"))
        finally:
            os.close(fd)

    def unmount(self):
        """Nobody has it any more, and nothing of it will be written."""
        wait_for(lambda: not libc.umount2(self.folder.encode(), 0), 60, f"unmounting {self.folder}")
        wait_for(lambda: not os.path.exists(f"/sys/block/{self.loop}/loop/backing_file") or
                 self.is_reused(), 60, f"{self.loop} is free")

    def is_reused(self):
        with contextlib.suppress(OSError):
            with open(f"/sys/block/{self.loop}/loop/backing_file", encoding="utf-8") as f:
                return f.read().strip() != self.disk
        return True


class Supply:
    """File systems, and with POWER the disks beneath and beside them."""

    def __init__(self, lab, power=None):
        self.lab, self.power, self.filesystems = lab, power, []
        self.kept = self.lost = 0  # sectors that were not flushed at a cut

    def cut(self):
        """KEEP of what a volatile cache held is stable all the same. Says what was done."""
        r = self.lab.random
        if self.power:
            keep = r.choice((0, 0, 10, 50, 90, 100))
            self.power.tell(f"cut {keep}")
            return f"kept {keep} %"
        flags = r.choice((FLUSH_LOG, LEAVE_LOG, LEAVE_LOG))
        for fs in r.sample(self.filesystems, len(self.filesystems)):
            fs.shut_down(flags)
        return "log flushed" if flags == FLUSH_LOG else "log dropped"

    def arm(self, what, number):
        """A cut in the middle of a request that is still to come."""
        self.power.tell(f"cut {self.lab.random.choice((0, 0, 50, 100))} {what} {number}")

    def was_cut(self):
        return self.power.ask()[0] == "cut"

    def drop(self):
        if self.power:
            self.power.tell("off")
        for fs in self.filesystems:
            fs.unmount()

    def restore(self):
        if self.power:
            self.power.tell("on")
        for fs in self.filesystems:
            fs.mount()

    def end(self):
        """Nobody uses it any more, or is about to die. A powerfs that ended before what is mounted on
        its disks could leave that waiting for ever."""
        if self.power:
            with contextlib.suppress(OSError):
                told = self.power.ask()[1]
                self.kept, self.lost = told["kept"], told["lost"]
                self.power.tell("off")
        for fs in self.filesystems:
            run("umount", fs.folder)
            run("umount", "-l", fs.folder)
        if self.power:
            run("umount", "-l", self.power.folder)


def possible():
    """None, or what is missing."""
    if os.geteuid():
        return "root mounts file systems"
    for path in ("/dev/loop-control", "/dev/fuse"):
        if not os.path.exists(path):
            return f"{path} is missing"
    for program in ("mkfs.xfs", "mkfs.ext4", "qemu-nbd"):
        if not shutil.which(program, path=PATH):
            return f"{program} is missing"
    if run("unshare", "-m", "true")[0]:
        return "no mount namespace can be made"
    return None
