#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A host that speaks another version to other hosts than ours does, by its certificate.

    other_peer.py ADDRESS PORT FOLDER     FOLDER: server-cert.pem, server-key.pem, ca-cert.pem
"""
import json
import socket
import ssl
import sys
import threading


def answer(call):
    text = "host-b (blockmirror 9) speaks versions 7 to 9 to other hosts, the caller %s" % call["params"].get("versions")
    error = {"code": -32000, "message": text, "data": {"code": "E_UNSUPPORTED"}}
    return {"jsonrpc": "2.0", "id": call["id"], "error": error}


def serve(context, connection):
    try:
        with context.wrap_socket(connection, server_side=True) as s, s.makefile("rwb") as f:
            for line in f:
                print(line.decode().strip(), flush=True)
                f.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
                f.flush()
    except OSError as e:
        print("TLS:", e, flush=True)


def main(address, port, folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder + "/server-cert.pem", folder + "/server-key.pem")
    context.load_verify_locations(folder + "/ca-cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    listener = socket.create_server((address, int(port)))
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(context, listener.accept()[0]), daemon=True).start()


main(*sys.argv[1:])
