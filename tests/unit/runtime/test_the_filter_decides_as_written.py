"""The seccomp program, interpreted here for both architectures (the hostile suite runs it in the kernel for this one)."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from flame.runtime.seccomp import _AARCH64, _MACHINES, Machine, assemble

ALLOW, KILL = 0x7FFF0000, 0x80000000


def decide(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """The answer of a classic BPF program to one system call, as the kernel's interpreter gives it."""
    data = struct.pack("<iIQ6Q", number, audit, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    steps = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x45:
                at += if_true if accumulator & value else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def refused(number: int) -> int:
    return 0x00050000 | number


@pytest.fixture(params=sorted(_MACHINES))
def machine(request: pytest.FixtureRequest) -> Machine:
    return _MACHINES[str(request.param)]


def test_ordinary_calls_pass(machine: Machine) -> None:
    program = assemble(machine)
    denied = set(machine.calls.values())
    for number in range(500):
        if number not in denied:
            assert decide(program, machine.audit, number) == ALLOW, number


def test_listed_calls_are_refused(machine: Machine) -> None:
    program = assemble(machine)
    special = {"clone", "clone3", "socket", "socketpair", "ioctl", "personality"}
    for name, number in machine.calls.items():
        if name not in special:
            assert decide(program, machine.audit, number) == refused(errno.EPERM), name
    assert decide(program, machine.audit, machine.calls["clone3"]) == refused(errno.ENOSYS)


@pytest.mark.parametrize("internet", [True, False])
def test_families_of_sockets(machine: Machine, internet: bool) -> None:
    program = assemble(machine, internet=internet)
    allowed = {int(socket.AF_UNIX)} | ({int(socket.AF_INET), int(socket.AF_INET6)} if internet else set())
    for family in range(64):
        expected = ALLOW if family in allowed else refused(errno.EAFNOSUPPORT)
        assert decide(program, machine.audit, machine.calls["socket"], family) == expected, family
        # the kernel reads an int: what stands in the upper half changes nothing
        assert decide(program, machine.audit, machine.calls["socket"], family | 1 << 32) == expected
        pair = ALLOW if family == socket.AF_UNIX else refused(errno.EAFNOSUPPORT)
        assert decide(program, machine.audit, machine.calls["socketpair"], family) == pair


def test_only_the_protocols_of_every_day(machine: Machine) -> None:
    program = assemble(machine)
    for protocol in range(300):
        answer = decide(program, machine.audit, machine.calls["socket"], socket.AF_INET, socket.SOCK_STREAM, protocol)
        assert answer == (ALLOW if protocol in (0, 6, 17) else refused(errno.EPROTONOSUPPORT)), protocol


def test_threads_pass_and_namespaces_do_not(machine: Machine) -> None:
    program = assemble(machine)
    clone = machine.calls["clone"]
    assert decide(program, machine.audit, clone, 0x3D0F00) == ALLOW, "pthread_create"
    assert decide(program, machine.audit, clone, 0x1200011) == ALLOW, "fork"
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(program, machine.audit, clone, flag | 17) == refused(errno.EPERM)


def test_terminal_input_and_personalities(machine: Machine) -> None:
    program = assemble(machine)
    ioctl, personality = machine.calls["ioctl"], machine.calls["personality"]
    assert decide(program, machine.audit, ioctl, 0, 0x5401) == ALLOW
    assert decide(program, machine.audit, ioctl, 0, 0x5412) == refused(errno.EPERM)
    assert decide(program, machine.audit, ioctl, 0, 0x541C) == refused(errno.EPERM)
    assert decide(program, machine.audit, personality, 0) == ALLOW
    assert decide(program, machine.audit, personality, 0xFFFFFFFF) == ALLOW
    assert decide(program, machine.audit, personality, 0x40000) == refused(errno.EPERM)


def test_another_architecture_is_killed(machine: Machine) -> None:
    program = assemble(machine)
    for audit in (0x40000003, 0x40000028, 0xC000003E, 0xC00000B7):
        if audit != machine.audit:
            assert decide(program, audit, 1) == KILL
    if machine.name == "x86_64":
        assert decide(program, machine.audit, 0x40000000 | 1) == KILL


def test_both_tables_name_the_same_dangers() -> None:
    """What aarch64 never had (its table is younger) is all that may be missing there."""
    only_old = {"uselib", "ustat", "sysfs", "modify_ldt", "_sysctl", "iopl", "ioperm", "create_module"}
    only_old |= {"get_kernel_syms", "query_module"}
    assert _MACHINES["x86_64"].calls.keys() - _AARCH64.keys() == only_old
    assert _AARCH64.keys() <= _MACHINES["x86_64"].calls.keys()
