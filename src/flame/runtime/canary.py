"""The canary: a program that tries to get out, run at the start of a node to find its isolation level."""

from __future__ import annotations

import json
import secrets
import tempfile
from pathlib import Path
from typing import Final

from flame.model.errors import FlameError
from flame.runtime.environments import HostEnvironment
from flame.runtime.sandbox import Broken, Limits, Promise, RunSpec, Sandbox

__all__ = ["try_to_get_out"]

# Prints {promise: what it could do}. Reads of the host name files that exist on every Linux.
_PROGRAM: Final = """
import ctypes, json, os, socket, sys
out = {}
libc = ctypes.CDLL(None, use_errno=True)

def reaches(family, address):
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.connect(address)
        return True
    except OSError:
        return False

for family, address in ((socket.AF_INET, ("192.0.2.1", 9)), (socket.AF_INET6, ("2001:db8::1", 9))):
    if reaches(family, address):
        out["no-network"] = "a route leads to %s" % address[0]
interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev")][2:]
if interfaces not in ([], ["lo"]):
    out["no-network"] = "there are interfaces besides the loopback"
for path in ("/etc/shadow", "/home", "/var", "/boot", "/sys", sys.argv[1]):
    if os.path.lexists(path):
        out["own-files"] = "%s exists" % path
for path in ("/canary", "/code/canary", "/opt/site/canary", "/etc/canary", "/run/flame/canary"):
    try:
        open(path, "w").close()
        out["own-files"] = "%s can be written" % path
    except OSError:
        pass
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]
if others:
    out["no-other-processes"] = "%d other processes are visible" % len(others)
for what in (os.setuid, os.setgid):
    if os.getuid() != 0:
        try:
            what(0)
            out["no-capabilities"] = "%s(0) succeeds" % what.__name__
        except OSError:
            pass
if libc.unshare(0x10000000) == 0 or libc.unshare(0x20000) == 0:
    out["seccomp"] = "a namespace can be made"
if libc.ptrace(0, 0, 0, 0) == 0:
    out["seccomp"] = "ptrace is answered"
try:
    socket.socket(16, socket.SOCK_RAW, 0).close()
    out["seccomp"] = "netlink sockets can be made"
except OSError:
    pass
print(json.dumps(out))
"""
_LIMITS: Final = Limits(
    memory_bytes=256 << 20, processes=16, disk_bytes=8 << 20, file_bytes=8 << 20, seconds=60, output_bytes=64 << 10
)


async def try_to_get_out(sandbox: Sandbox, environment: HostEnvironment) -> list[Broken]:
    """Run the canary and return every promise it, or the look from outside, found broken.

    A canary that does not come back with an answer breaks them all.
    """
    with tempfile.TemporaryDirectory(prefix="flame-canary-") as scratch:
        place = Path(scratch)
        for name in ("code", "gateway"):
            (place / name).mkdir(mode=0o755)
            (place / name).chmod(0o755)
        (place / "code" / "main.py").write_text(_PROGRAM)
        (place / "code" / "main.py").chmod(0o644)
        spec = RunSpec(
            run=f"canary-{secrets.token_hex(8)}",
            environment=environment,
            code=place / "code",
            gateway=place / "gateway",
            command=("/code/main.py", scratch),
            work=place / "work",
            limits=_LIMITS,
        )
        try:
            return await _fly(sandbox, spec)
        finally:
            await sandbox.cleanup(spec.run)


async def _fly(sandbox: Sandbox, spec: RunSpec) -> list[Broken]:
    try:
        running = await sandbox.start(spec)
        broken = await running.verify()
        if broken:
            return broken
        await running.release()
    except FlameError as wrong:
        return [Broken(promise, f"the canary could not be started: {wrong}") for promise in Promise]
    ended = await running.wait()
    try:
        if ended.exit_code != 0:
            raise ValueError(f"exit code {ended.exit_code}")
        found = json.loads(running.tail())
        return [Broken(Promise(promise), str(detail)) for promise, detail in found.items()]
    except ValueError as wrong:
        said = running.tail(300).decode(errors="replace")
        return [Broken(promise, f"the canary gave no answer ({wrong}): {said}") for promise in Promise]
