"""The gate: what stands between a sandbox that is ready and the first instruction of the program.

    bwrap (namespaces, mounts) -> [setpriv: user, capabilities] -> this gate -> execve of the program

`SOURCE` runs in the environment's own interpreter, isolated and without site (nothing of the program and nothing of
site-packages is imported). It writes one byte to say that it waits, then reads what to execute: command and variables
come over the pipe only at the release, so neither is visible or effective in any step before, where a capability is
still held (an LD_PRELOAD would be). If the pipe ends early, because the node died or refused, nothing is executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["SOURCE", "message"]

_END: Final = b"\0\0begin"

SOURCE: Final = """\
import os, sys
ready, gate = int(sys.argv[1]), int(sys.argv[2])
os.write(ready, b'.')
os.close(ready)
told = b''
while True:
    part = os.read(gate, 65536)
    if not part:
        break
    told += part
os.close(gate)
if not told.endswith(b'\\0\\0begin'):
    os._exit(125)
command, _, variables = told[:-7].partition(b'\\0\\0')
command = [part[1:] for part in command.split(b'\\0')]
pairs = [part[1:].partition(b'=') for part in variables.split(b'\\0') if part]
try:
    os.execve(command[0], command, {name: value for name, _, value in pairs})
except OSError as wrong:
    os.write(2, ('the program cannot be executed: %s\\n' % wrong).encode())
    os._exit(126)
"""


def message(command: Sequence[str], variables: Mapping[str, str]) -> bytes:
    """What the gate is told at the release. Each part is marked, so that an empty one does not look like an end."""
    parts = b"\0".join(b"+" + part.encode() for part in command)
    pairs = b"\0".join(b"+" + f"{name}={value}".encode() for name, value in variables.items())
    return parts + b"\0\0" + pairs + _END
