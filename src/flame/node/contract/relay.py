"""What runs in the sandbox beside a program that speaks HTTP: bytes between loopback and the run's two sockets.

    program -> 127.0.0.1:3128 (HTTP_PROXY) -> gateway.sock -> node
    node -> program.sock -> 127.0.0.1:8000 -> program

The sandbox sees the sockets' folder read-only, so both are dialled from inside: towards the program, the relay keeps a
few connections ready, and the node speaks into one of them when it has something to say.

``SOURCE`` is executed by the environment's interpreter behind the gate, isolated and without site. It listens, sends
the relay into the background and becomes the program: the process that was verified is the process that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PROXY_PORT: Final = 3128
PROGRAM_PORT: Final = 8000
PROGRAM_SOCKET: Final = "program.sock"
READY: Final = 4
"""Connections that wait for the node to say something."""

SOURCE: Final = """\
import os, selectors, socket, sys
folder, proxy, port, ready = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
command = sys.argv[5:]
door = socket.socket()
door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
door.bind(('127.0.0.1', proxy))
door.listen(64)
if os.fork():
    os.wait()
    door.close()
    os.execv(sys.executable, [sys.executable] + command)
if os.fork():
    os._exit(0)
os.setsid()
nothing = os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(nothing, number)
watch = selectors.DefaultSelector()

class Way:
    # one direction: what was read from one end and waits to be written to the other
    def __init__(self, source, target):
        self.source, self.target, self.held, self.over = source, target, b'', False

class Pair:
    def __init__(self, a, b):
        self.ways = [Way(a, b), Way(b, a)]
        self.ends = [a, b]
        for end in self.ends:
            end.setblocking(False)
        self.look()
    def look(self):
        for end in self.ends:
            wanted = 0
            for way in self.ways:
                if way.source is end and not way.held and not way.over:
                    wanted |= selectors.EVENT_READ
                if way.target is end and way.held:
                    wanted |= selectors.EVENT_WRITE
            known = watch.get_map().get(end.fileno())
            if wanted and known:
                watch.modify(end, wanted, self)
            elif wanted:
                watch.register(end, wanted, self)
            elif known:
                watch.unregister(end)
    def close(self):
        for end in self.ends:
            if end.fileno() >= 0 and watch.get_map().get(end.fileno()):
                watch.unregister(end)
            end.close()
    def turn(self, end, events):
        try:
            for way in self.ways:
                if way.source is end and events & selectors.EVENT_READ and not way.held and not way.over:
                    way.held = end.recv(262144)
                    if not way.held:
                        way.over = True
                        way.target.shutdown(socket.SHUT_WR)
                if way.held and (way.target is end or way.source is end):
                    try:
                        way.held = way.held[way.target.send(way.held):]
                    except BlockingIOError:
                        pass
        except BlockingIOError:
            pass
        except OSError:
            return self.close()
        if all(way.over for way in self.ways):
            return self.close()
        self.look()

class Waiting:
    # a connection to the node over which nothing has been said yet
    def __init__(self):
        self.end = socket.socket(socket.AF_UNIX)
        self.end.connect(folder + '/program.sock')
        watch.register(self.end, selectors.EVENT_READ, self)
    def turn(self, end, events):
        watch.unregister(end)
        try:
            first = end.recv(1, socket.MSG_PEEK)
        except OSError:
            first = b''
        inside = socket.socket()
        try:
            if not first:
                raise ConnectionError
            inside.connect(('127.0.0.1', port))
        except OSError:
            inside.close()
            end.close()
        else:
            Pair(end, inside)
        keep_ready(first)

class Door:
    def turn(self, end, events):
        inside, _ = end.accept()
        outside = socket.socket(socket.AF_UNIX)
        try:
            outside.connect(folder + '/gateway.sock')
        except OSError:
            inside.close()
            outside.close()
        else:
            Pair(inside, outside)

def keep_ready(first):
    while sum(1 for key in watch.get_map().values() if isinstance(key.data, Waiting)) < ready:
        try:
            Waiting()
        except OSError:
            if not first:
                os._exit(0)
            return

door.setblocking(False)
watch.register(door, selectors.EVENT_READ, Door())
keep_ready(b'.')
while True:
    for key, events in watch.select():
        if key.fileobj.fileno() >= 0:
            key.data.turn(key.fileobj, events)
"""


def command(gateway: str, program: Sequence[str]) -> tuple[str, ...]:
    """Arguments of the interpreter: the relay, then the program. ``gateway``: where the sockets are in the sandbox."""
    numbers = (str(PROXY_PORT), str(PROGRAM_PORT), str(READY))
    return ("-I", "-S", "-c", SOURCE, gateway, *numbers, *program)
