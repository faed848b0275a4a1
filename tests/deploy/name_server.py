"""Runs in its own network namespace: starts a name server on loopback, and a gateway in an empty root. The gateway
knows its upstream by name only. Prints the names that the name server was asked for, and the status of the response."""

import fcntl
import json
import socket
import struct
import sys
import threading
from pathlib import Path

from empty_root import DOMAIN, EmptyRoot, ask

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
TYPE_A = 1


def bring_loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


def answer(question, asked):
    """Resolves every name to 127.0.0.1, and returns no record of any other type (RFC 1035, section 4)."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    asked.append(".".join(labels))
    (kind,) = struct.unpack_from(">H", question, at + 1)
    found = kind == TYPE_A
    head = question[:2] + struct.pack(">HHHHH", 0x8180, 1, int(found), 0, 0)
    record = struct.pack(">HHHIH", 0xC00C, TYPE_A, 1, 60, 4) + socket.inet_aton("127.0.0.1")
    return head + question[12 : at + 5] + (record if found else b"")


def serve_names(listener, asked):
    while True:
        question, asker = listener.recvfrom(512)
        listener.sendto(answer(question, asked), asker)


def main():
    bring_loopback_up()
    # The C library asks this address if there is no /etc/resolv.conf.
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 53))
    asked = []
    threading.Thread(target=serve_names, args=(listener, asked), daemon=True).start()
    root = EmptyRoot(Path(sys.argv[1]))
    try:
        port = root.simulate().rpartition(":")[2]
        _, data, _ = root.serve(f"http://insights.test:{port}")
        status, _ = ask(data, f"{DOMAIN}/Metadata")
        print(json.dumps({"asked": asked, "status": status}))
    finally:
        root.close()


main()
