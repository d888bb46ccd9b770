"""The system call filter of a run: a classic BPF program, assembled here.

What is denied is what has no place in an analysis and has been the way out of sandboxes before: tracing and writing
into other processes, mounts, new namespaces, the kernel's key rings, bpf, io_uring, userfaultfd, modules, clocks,
handles of files. What is left (files, memory, threads, unix sockets, loopback) is what Python and its numerical
libraries need.

`setpriv` runs under the filter too (bubblewrap loads it just before it executes the command), so changing the user and
dropping capabilities stay allowed here; they are made useless by the empty capability sets and by no_new_privs.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from flame.model.errors import IsolationTooLow

__all__ = ["Machine", "assemble", "this_machine"]

# classic BPF: linux/bpf_common.h
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

# linux/seccomp.h; offsets in struct seccomp_data (little-endian machines only: the low half of an argument comes first)
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = (16, 24, 32)

# CLONE_NEWTIME | NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET. NEWTIME (0x80) overlaps the exit
# signal in clone(2) and is only possible through clone3 and unshare, which are denied as a whole.
_NEW_NAMESPACES: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_TERMINAL_INPUT: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into the terminal of whoever started the node
_X32: Final = 0x40000000
_PROTOCOLS: Final = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)

_SAME_EVERYWHERE: Final = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "process_mrelease": 448, "statmount": 457,
    "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461,
    "open_tree_attr": 467,
}  # fmt: skip

_X86_64: Final = {
    **_SAME_EVERYWHERE,
    "ioctl": 16, "socket": 41, "socketpair": 53, "clone": 56, "ptrace": 101, "syslog": 103, "uselib": 134,
    "personality": 135, "ustat": 136, "sysfs": 139, "vhangup": 153, "modify_ldt": 154, "pivot_root": 155,
    "_sysctl": 156, "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
    "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
    "create_module": 174, "init_module": 175, "delete_module": 176, "get_kernel_syms": 177, "query_module": 178,
    "quotactl": 179, "nfsservctl": 180, "lookup_dcookie": 212, "clock_settime": 227, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "migrate_pages": 256, "unshare": 272, "move_pages": 279,
    "perf_event_open": 298, "fanotify_init": 300, "fanotify_mark": 301, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
    "kcmp": 312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
}  # fmt: skip

_AARCH64: Final = {
    **_SAME_EVERYWHERE,
    "lookup_dcookie": 18, "ioctl": 29, "umount2": 39, "mount": 40, "pivot_root": 41, "nfsservctl": 42, "chroot": 51,
    "vhangup": 58, "quotactl": 60, "acct": 89, "personality": 92, "unshare": 97, "kexec_load": 104, "init_module": 105,
    "delete_module": 106, "clock_settime": 112, "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161,
    "setdomainname": 162, "settimeofday": 170, "adjtimex": 171, "socket": 198, "socketpair": 199, "add_key": 217,
    "request_key": 218, "keyctl": 219, "clone": 220, "swapon": 224, "swapoff": 225, "migrate_pages": 238,
    "move_pages": 239, "perf_event_open": 241, "fanotify_init": 262, "fanotify_mark": 263, "name_to_handle_at": 264,
    "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271,
    "kcmp": 272, "finit_module": 273, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
}  # fmt: skip

# Looked at by their arguments, or answered with another error than EPERM.
_SPECIAL: Final = frozenset({"clone", "clone3", "socket", "socketpair", "ioctl", "personality"})


@dataclass(frozen=True)
class Machine:
    """The numbers of one processor architecture (linux/audit.h and its system call table)."""

    name: str
    audit: int
    calls: dict[str, int]


_MACHINES: Final = {
    "x86_64": Machine("x86_64", 0xC000003E, _X86_64),
    "aarch64": Machine("aarch64", 0xC00000B7, _AARCH64),
}


def this_machine() -> Machine:
    """The machine this process runs on. Raises IsolationTooLow where no filter is known for it."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise IsolationTooLow(
            f"No system call filter is known for the processor architecture {platform.machine()!r}.",
            next_step="Run the node on x86_64 or aarch64.",
        )
    return machine


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _load(offset: int) -> bytes:
    return _step(_LOAD, offset)


def _give(value: int) -> bytes:
    return _step(_RETURN, value)


def _refuse(number: int) -> bytes:
    return _give(_ERRNO | number)


def _for_call(number: int, body: Iterable[bytes]) -> Iterator[bytes]:
    """`body` for this system call, which must end in a return; otherwise jump over it with the number still loaded."""
    steps = list(body)
    yield _step(_IF_EQUAL, number, 0, len(steps))
    yield from steps


def _one_of(argument: int, allowed: tuple[int, ...], otherwise: int) -> Iterator[bytes]:
    """Go on behind these steps if the argument is one of the values; refuse with this error number if not."""
    yield _load(_ARGUMENTS[argument])
    for position, value in enumerate(allowed):
        yield _step(_IF_EQUAL, value, len(allowed) - position, 0)
    yield _refuse(otherwise)


def _sockets(families: tuple[int, ...]) -> Iterator[bytes]:
    yield from _one_of(0, families, errno.EAFNOSUPPORT)
    # asking for another protocol makes the kernel load its module: SCTP, DCCP and the like
    yield from _one_of(2, _PROTOCOLS, errno.EPROTONOSUPPORT)
    yield _give(_ALLOW)


def _clone() -> Iterator[bytes]:
    yield _load(_ARGUMENTS[0])
    yield _step(_IF_ANY_BIT, _NEW_NAMESPACES, 0, 1)
    yield _refuse(errno.EPERM)
    yield _give(_ALLOW)


def _ioctl() -> Iterator[bytes]:
    yield _load(_ARGUMENTS[1])
    yield _step(_IF_EQUAL, _TERMINAL_INPUT[0], 1, 0)
    yield _step(_IF_EQUAL, _TERMINAL_INPUT[1], 0, 1)
    yield _refuse(errno.EPERM)
    yield _give(_ALLOW)


def _personality() -> Iterator[bytes]:
    """Only the ordinary personality (0) or the question which it is (0xffffffff)."""
    yield from _one_of(0, (0, 0xFFFFFFFF), errno.EPERM)
    yield _give(_ALLOW)


def assemble(machine: Machine, *, internet: bool = True) -> bytes:
    """The filter as an array of struct sock_filter, as bubblewrap's --seccomp reads it.

    internet: whether AF_INET and AF_INET6 sockets may be made. True only inside a network namespace of the run's own,
    which has nothing but loopback; AF_UNIX is always allowed, every other family never.
    """
    calls = machine.calls
    families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) if internet else (socket.AF_UNIX,)
    steps = [
        _load(_ARCHITECTURE),
        _step(_IF_EQUAL, machine.audit, 1, 0),
        _give(_KILL_PROCESS),
        _load(_NUMBER),
    ]
    if machine.name == "x86_64":
        steps += [_step(_IF_AT_LEAST, _X32, 0, 1), _give(_KILL_PROCESS)]
    for number in sorted(number for name, number in calls.items() if name not in _SPECIAL):
        steps += _for_call(number, [_refuse(errno.EPERM)])
    # libc falls back to clone(2), whose flags can be read, when clone3 does not exist
    steps += _for_call(calls["clone3"], [_refuse(errno.ENOSYS)])
    steps += _for_call(calls["clone"], _clone())
    steps += _for_call(calls["socket"], _sockets(tuple(int(family) for family in families)))
    steps += _for_call(calls["socketpair"], _sockets((int(socket.AF_UNIX),)))
    steps += _for_call(calls["ioctl"], _ioctl())
    steps += _for_call(calls["personality"], _personality())
    steps.append(_give(_ALLOW))
    return b"".join(steps)
