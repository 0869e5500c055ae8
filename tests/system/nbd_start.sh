#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# How blockmirror-nbd is started by others: a command to run, in the background, with sockets that
# were passed, by a service manager.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
have nbdcopy nbdinfo python3 || { skip "starting" "libnbd-bin, python3"; exit; }
server=$BUILD/blockmirror-nbd image=$dir/disk.img
head -c 8M /dev/urandom >"$image"
export TMPDIR=$dir/tmp
mkdir "$TMPDIR"

# --run

# shellcheck disable=SC2016 # what is quoted is the command's
{
	check "--run: the command finds its server" "$server" --read-only \
		--run 'nbdcopy "$uri" - | cmp - '"$image"' && test -S "$unixsocket"' "$image"
	check_fails "its exit status is passed on" 42 "" "$server" --run 'exit 42' mem:1M
	check_fails "and its death by a signal" 137 "" "$server" --run 'kill -KILL $$' mem:1M
	check "with --listen" "$server" --listen 127.0.0.1:0 --run 'nbdinfo --size "$uri"' "$image"
	grep -qx 8388608 "$dir/out"
	result $? "which says the size, and nothing else is printed" "$dir/out"
	check "with --unix" "$server" --unix "$dir/own.sock" \
		--run 'test "$unixsocket" = '"$dir/own.sock"' && nbdinfo "$uri"' "$image"
	check "it is no command's business what the server was passed" "$server" \
		--run 'test -z "$LISTEN_FDS$LISTEN_PID$NOTIFY_SOCKET"' mem:1M
	check "with an image that is made for it" "$server" --create 8M --run \
		'nbdcopy '"$image"' "$uri"' "$dir/second.img"
}
check "and what it copied is there" cmp "$image" "$dir/second.img"
spawn "$server" --run 'trap "touch '"$dir"'/ended; exit 7" TERM; touch '"$dir"'/begun; while :; do sleep 0.05; done' mem:1M
wait_for 10 test -e "$dir/begun"
kill -TERM "$pid"
wait "$pid"
[ $? -eq 7 ] && [ -e "$dir/ended" ]
result $? "SIGTERM ends the command, and then the server"
lib_forget "$pid"
rm "$dir/begun"
spawn "$server" --run 'trap "" TERM; touch '"$dir"'/begun; sleep 1.5' mem:1M
wait_for 10 test -e "$dir/begun"
start=$SECONDS
kill -TERM "$pid"
sleep 0.3
kill -TERM "$pid"
wait "$pid"
[ $? -eq 143 ] && [ $((SECONDS - start)) -le 1 ]
result $? "sent again it does not wait for the command"
lib_forget "$pid"
[ -z "$(ls "$TMPDIR")" ]
result $? "no folder is left behind"
check_fails "--run with --stdio is a mistake" 2 "could not connect" "$server" --run true --stdio mem:1M

# --fork

check "--fork returns" "$server" --fork --pid-file "$dir/pid" --unix "$dir/fork.sock" "$image"
pid=$(cat "$dir/pid") # no child of ours
lib_pids+=("$pid")
check "and clients may connect at once" nbdinfo "$(nbd_uri "$dir/fork.sock")"
[ "$(ps -o sid= -p "$pid" | tr -d ' ')" = "$pid" ]
result $? "it is in a session of its own"
check_fails "a second one has an error's status" 3 "another process" \
	"$server" --fork --pid-file "$dir/pid2" --unix "$dir/fork2.sock" "$image"
[ ! -e "$dir/pid2" ] && [ ! -e "$dir/fork2.sock" ]
result $? "and leaves nothing behind"
timeout 10 bash -c "\"$server\" --fork --unix \"$dir/pipe.sock\" --pid-file \"$dir/pid3\" mem:1M | cat" >"$dir/out"
result $? "who reads its output does not wait for its end" "$dir/out"
kill "$(cat "$dir/pid3")"
kill "$pid"
wait_for 5 lib_gone "$pid"
lib_forget "$pid"
[ ! -e "$dir/pid" ] && [ ! -e "$dir/fork.sock" ]
result $? "SIGTERM ends it, pid file and socket are gone"
check_fails "--fork with --stdio is a mistake" 2 "neither" "$server" --fork --stdio mem:1M

# Passed sockets, and the service manager

cat >"$dir/manager.py" <<'END'
import os, signal, socket, subprocess, sys
server, image, folder, kind = sys.argv[1:]

# Two sockets, from descriptor 3 on; what they are does not matter.
unix = socket.socket(socket.AF_UNIX)
unix.bind(folder + "/passed.sock")
tcp = socket.socket()
tcp.bind(("127.0.0.1", 0))
for s in unix, tcp:
    s.listen()
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name = {"path": folder + "/notify", "abstract": "\0blockmirror-test-%d" % os.getpid()}[kind]
notify.bind(name)
notify.settimeout(10)

def child(pid_offset):
    pid = os.fork()
    if pid:
        return pid
    fds = [os.dup(s.fileno()) for s in (unix, tcp)]  # numbers that are in nobody's way
    for n, fd in enumerate(fds):
        os.dup2(fd, 3 + n)
    os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid() + pid_offset),
                      NOTIFY_SOCKET=name.replace("\0", "@"))
    os.execv(server, [server, image])

def told(*words):
    lines = notify.recv(4096).decode().split("\n")
    for word in words:
        assert any(line.startswith(word) for line in lines), lines

# Connected before it even runs.
early = subprocess.Popen(["nbdinfo", "--size", "nbd+unix:///?socket=" + folder + "/passed.sock"],
                         stdout=subprocess.PIPE)
pid = child(0)
told("READY=1", f"MAINPID={pid}")
assert early.communicate()[0].strip() == b"8388608"
for uri in "nbd+unix:///?socket=" + folder + "/passed.sock", "nbd://127.0.0.1:%d/" % tcp.getsockname()[1]:
    assert subprocess.check_output(["nbdinfo", "--size", uri]).strip() == b"8388608", uri
os.kill(pid, signal.SIGHUP)
told("RELOADING=1", "MONOTONIC_USEC=")
told("READY=1")
os.kill(pid, signal.SIGTERM)
told("STOPPING=1")
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert os.path.exists(folder + "/passed.sock")  # it is the manager's

# Not meant for this process: as if nothing had been passed.
pid = child(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
END
check "sockets are passed, and the manager is told" python3 "$dir/manager.py" "$server" "$image" "$dir" path
rm -f "$dir/passed.sock"
check "at an address in the abstract namespace, too" python3 "$dir/manager.py" "$server" "$image" "$dir" abstract
check "nbdcopy starts the server itself" nbdcopy "$image" -- [ "$server" --create 8M "$dir/third.img" ]
check "and what it wrote is there" cmp "$image" "$dir/third.img"
check "nbdinfo does, too" nbdinfo -- [ "$server" --read-only "$image" ]
