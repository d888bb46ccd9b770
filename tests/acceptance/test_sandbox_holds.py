"""A hostile analysis stays in its sandbox: it tries what security.md lists, and the test looks at what it got.

Each attack prints what it could do; the test's own process shows first that the target is there (a listener that
answers, a file that can be read), so that an attack that finds nothing has met the sandbox and not an empty world.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unit.runtime import driver
from unit.runtime.worlds import SOURCES, TESTS, Run, need_bubblewrap, runner, shared_environment

WORLDS = ("process", "process-as-user")


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(world: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(world, tmp_path_factory)


# What every attack begins with: `attempt(name, function)` notes what worked, `finish()` prints it.
PRELUDE = """
import ctypes, errno, json, os, platform, signal, socket, struct, sys, time
world = json.loads(sys.argv[-1])
worked, refused = {}, {}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def attempt(name, function, *arguments):
    try:
        worked[name] = repr(function(*arguments))[:200]
    except OSError as wrong:
        refused[name] = errno.errorcode.get(wrong.errno, str(wrong))
    except Exception as wrong:
        refused[name] = repr(wrong)

def call(number, *arguments):
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if answer < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return answer

def finish():
    print(json.dumps({"worked": worked, "refused": refused}))
"""


def attack(run: Run, program: str, **request: Any) -> dict[str, Any]:
    """Run an attack to its end, and check what must be true whatever it does."""
    done = run(PRELUDE + program, **request)
    assert "failed" not in done, done
    assert done["broken"] == []
    assert_nothing_happened(done)
    return done


def assert_nothing_happened(done: dict[str, Any]) -> None:
    assert done["processes_left"] == []
    assert done["groups_left"] == []
    assert not done["work_left"]
    assert done["data_intact"]
    assert done["gateway_intact"]


def found(done: dict[str, Any]) -> dict[str, dict[str, str]]:
    assert done["exit_code"] == 0, done["tail"]
    return json.loads(done["out"])  # type: ignore[no-any-return]


def test_the_gateway_answers_and_numpy_works(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The positive test: a sandbox in which nothing works would pass all the others."""
    done = attack(
        runner("process", tmp_path_factory),
        """
import numpy, msgspec, flame.model.errors, tempfile
with socket.socket(socket.AF_UNIX) as s:
    s.connect("/run/flame/gateway.sock")
    answer = s.recv(100).decode()
with socket.create_server(("127.0.0.1", 8000)) as server, socket.create_connection(("127.0.0.1", 8000)):
    loopback = True
with tempfile.NamedTemporaryFile() as scratch:
    scratch.write(b"x" * 1000)
product = float(numpy.ones((200, 200)).dot(numpy.ones((200, 200))).sum())
print(json.dumps([answer, loopback, product, socket.gethostbyname("gateway")]))
""",
    )
    assert json.loads(done["out"]) == ["the gateway of own", True, 8_000_000.0, "127.0.0.1"]


def test_nothing_is_reached_over_the_network(run: Run) -> None:
    done = attack(
        run,
        """
def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(3)
        s.connect(address)

def send(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        return s.sendto(b"x", address)

for address, port in world["addresses"]:
    attempt(f"the host's listener at {address}", connect, socket.AF_INET, (address, port))
foreign = ("1.1.1.1", "169.254.169.254", "172.17.0.1", "10.88.0.1", "192.168.0.1", "255.255.255.255", "224.0.0.1")
for address in foreign:
    attempt(f"tcp {address}", connect, socket.AF_INET, (address, 80))
    attempt(f"udp {address}", send, socket.AF_INET, (address, 53))
for address in ("2606:4700:4700::1111", "fd00:ec2::254", "fe80::1%1", "ff02::1"):
    attempt(f"tcp6 {address}", connect, socket.AF_INET6, (address, 80))
    attempt(f"udp6 {address}", send, socket.AF_INET6, (address, 53))
attempt("dns", socket.getaddrinfo, "example.org", 80)
attempt("ping", socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
finish()
""",
    )
    assert found(done)["worked"] == {}


def test_only_three_families_of_sockets_exist(run: Run) -> None:
    done = attack(
        run,
        """
for family in range(0, 64):
    if family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            attempt(f"{family} {kind}", socket.socket, family, kind)
        attempt(f"pair {family}", socket.socketpair, family)
finish()
""",
    )
    result = found(done)
    assert result["worked"] == {}
    assert set(result["refused"].values()) == {"EAFNOSUPPORT"}
    assert "16 3" in result["refused"], "netlink was tried"
    assert "40 1" in result["refused"], "vsock was tried"


def test_no_module_of_another_protocol_is_loaded(run: Run) -> None:
    done = attack(
        run,
        """
for protocol in (1, 2, 33, 115, 132, 136, 262):
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            attempt(f"{family} {kind} {protocol}", socket.socket, family, kind, protocol)
finish()
""",
    )
    result = found(done)
    assert result["worked"] == {}
    assert set(result["refused"].values()) == {"EPROTONOSUPPORT"}


def test_another_runs_socket_is_not_there(run: Run) -> None:
    done = attack(
        run,
        """
def connect(address):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(3)
        s.connect(address)
        return s.recv(100)

attempt("its path", connect, world["other_socket"])
attempt("beside ours", connect, "/run/flame/../other/gateway.sock")
attempt("abstract", connect, "\\0" + world["abstract"])
for path in ("/run/docker.sock", "/run/podman/podman.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"):
    attempt(path, connect, path)
finish()
""",
    )
    assert found(done)["worked"] == {}


def test_no_file_of_the_host_can_be_read(run: Run) -> None:
    done = attack(
        run,
        """
def read(path):
    with open(path, "rb") as file:
        return file.read(200)

paths = ["/etc/shadow", "/etc/machine-id", "/home", "/var", "/boot", "/sys", "/mnt", "/srv", "/usr/sbin", world["home"]]
paths += [world["place"], world["patients"], world["place"] + "/work/stdout", f"/proc/{world['node']}/environ"]
paths += ["/proc/1/root/etc/shadow", "/proc/1/cwd/etc/shadow", "/proc/self/root/" + world["patients"]]
paths += ["/dev/vda", "/dev/mem"]
paths += ["/dev/kmsg", "/proc/kcore", "/proc/1/mem", "/proc/kmsg", "/dev/sda", "/dev/fuse", "/dev/kvm", "/dev/net/tun"]
for path in paths:
    attempt(path, os.listdir if os.path.isdir(path) else read, path)
visible = sorted(os.listdir("/"))
descriptors = sorted(os.listdir("/proc/self/fd"))
users = open("/etc/passwd").read()
print(json.dumps({"worked": worked, "refused": refused, "visible": visible, "fds": descriptors, "users": users}))
""",
    )
    result = found(done)
    assert result["worked"] == {}
    assert set(result["visible"]) <= {"bin", "code", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "tmp", "usr"}
    assert set(result["fds"]) <= {"0", "1", "2", "3"}, "3 is the listing itself"
    assert "root:x:0:0::/:" in result["users"], "the names of the host's users are not shown"
    assert driver.PATIENT not in done["out"]


def test_the_environment_of_the_node_is_not_seen(run: Run) -> None:
    done = attack(
        run,
        """
seen = dict(os.environ)
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        try:
            seen[f"{pid} {name}"] = open(f"/proc/{pid}/{name}", errors="replace").read()
        except OSError:
            pass
print(json.dumps(seen))
""",
    )
    seen = found(done)
    assert any(name.endswith("cmdline") for name in seen), "something of /proc was read"
    own_arguments = [value for name, value in seen.items() if name.endswith("cmdline") and "/code/main.py" in value]
    others = [value for value in seen.values() if value not in own_arguments]
    assert not any(driver.SECRET in value for value in seen.values())
    assert not any("/fl-" in value for value in others), "paths of the host are not on any command line"


def test_other_processes_are_invisible_and_out_of_reach(run: Run) -> None:
    done = attack(
        run,
        """
pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
for number in range(3, 3000):
    try:
        os.kill(number, 0)
        worked[f"signal {number}"] = ""
    except ProcessLookupError:
        pass
attempt("signal the node", os.kill, world["node"], 9) if world["node"] not in pids else None
signal.signal(signal.SIGTERM, signal.SIG_IGN)
try:
    os.kill(1, signal.SIGKILL)
    os.kill(-1, signal.SIGTERM)
except OSError:
    pass
print(json.dumps({"worked": worked, "refused": refused, "pids": pids, "own": os.getpid()}))
""",
    )
    result = found(done)
    assert result["worked"] == {}
    assert set(result["pids"]) <= {1, result["own"]}


def test_nothing_can_be_written_but_the_scratch_space(run: Run) -> None:
    done = attack(
        run,
        """
import beside
def write(path):
    with open(path, "w") as file:
        file.write("poisoned")

library = os.path.dirname(os.__file__)
for path in ("/x", "/code/x.py", "/code/main.py", "/code/beside.py", "/opt/x", "/opt/site/sitecustomize.py",
             "/opt/site/evil.pth", library + "/os.py", library + "/x.py", library + "/__pycache__/os.cpython-311.pyc",
             "/usr/bin/x", "/usr/bin/setpriv", "/bin/x", "/etc/hosts", "/etc/ld.so.preload", "/run/x", "/run/flame/x",
             "/dev/x", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/lib/x"):
    attempt("write " + path, write, path)
attempt("chmod", os.chmod, "/code/main.py", 0o777)
attempt("unlink code", os.unlink, "/code/main.py")
attempt("unlink socket", os.unlink, "/run/flame/gateway.sock")
attempt("rename socket", os.rename, "/run/flame/gateway.sock", "/run/flame/x")
attempt("link over", os.symlink, "/etc/shadow", "/run/flame/x")
attempt("mkdir", os.mkdir, "/code/x")
attempt("hard link", os.link, "/code/main.py", "/tmp/main.py")
attempt("truncate", os.truncate, "/code/main.py", 0)
attempt("times", os.utime, "/code/main.py", (0, 0))
attempt("xattr", os.setxattr, "/code/main.py", "user.x", b"x")
write("/tmp/fine")
write("/dev/shm/fine")
finish()
""",
        files={"beside.py": "VALUE = 1"},
    )
    assert found(done)["worked"] == {}


def test_no_privilege_can_be_gained(run: Run) -> None:
    done = attack(
        run,
        """
machine = platform.machine()
numbers = {
    "x86_64": dict(
        ptrace=101, mount=165, umount2=166, pivot_root=155, chroot=161, unshare=272, setns=308, bpf=321, keyctl=250,
        add_key=248, request_key=249, userfaultfd=323, perf_event_open=298, kexec_load=246, init_module=175,
        finit_module=313, delete_module=176, swapon=167, open_by_handle_at=304, process_vm_readv=310,
        process_vm_writev=311, clone=56, settimeofday=164, sethostname=170, acct=163, iopl=172, ioperm=173,
        quotactl=179, syslog=103, modify_ldt=154, reboot=169),
    "aarch64": dict(
        ptrace=117, mount=40, umount2=39, pivot_root=41, chroot=51, unshare=97, setns=268, bpf=280, keyctl=219,
        add_key=217, request_key=218, userfaultfd=282, perf_event_open=241, kexec_load=104, init_module=105,
        finit_module=273, delete_module=106, swapon=224, open_by_handle_at=265, process_vm_readv=270,
        process_vm_writev=271, clone=220, settimeofday=170, sethostname=161, acct=89, quotactl=60, syslog=116,
        reboot=142),
}[machine]
text = ctypes.c_char_p(b"/tmp")
for name, number in numbers.items():
    if name not in ("clone", "reboot"):
        attempt(name, call, number, 0, 0, 0, 0, 0)
attempt("reboot with wrong numbers", call, numbers["reboot"], 1, 2, 3)
attempt("mount tmpfs", call, numbers["mount"], text, text, ctypes.c_char_p(b"tmpfs"), 0, 0)
attempt("umount /proc", call, numbers["umount2"], ctypes.c_char_p(b"/proc"), 2)
for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    attempt(f"unshare {flag:#x}", call, numbers["unshare"], flag)
    if flag != 0x80:
        attempt(f"clone {flag:#x}", call, numbers["clone"], flag | 17, 0, 0, 0, 0)
newer = dict(
    io_uring_setup=425, open_tree=428, move_mount=429, fsopen=430, fsmount=432, pidfd_getfd=438, mount_setattr=442)
for name, number in newer.items():
    attempt(name, call, number, 1, 0, 0, 0)
attempt("ptrace the init", call, numbers["ptrace"], 16, 1, 0, 0)
for name in ("setuid", "setgid", "seteuid", "setegid"):
    attempt(name, getattr(os, name), 0)
attempt("setgroups", os.setgroups, [0])
attempt("setresuid", os.setresuid, 0, 0, 0)
attempt("chown", os.chown, "/tmp", 0, 0)
attempt("device", os.mknod, "/tmp/disk", 0o60600, os.makedev(254, 0))
attempt("nice", os.nice, -5)
attempt("terminal input", lambda: __import__("fcntl").ioctl(1, 0x5412, b"x"))
attempt("personality", call, {"x86_64": 135, "aarch64": 92}[machine], 0x0040000)
attempt("setreuid", os.setreuid, 0, 0)
try:
    answer = call(435, 0, 0)
    worked["clone3"] = str(answer)
except OSError as wrong:
    refused["clone3"] = errno.errorcode[wrong.errno]
status = open("/proc/self/status").read()
print(json.dumps({"worked": worked, "refused": refused, "uid": os.getresuid(), "status": status}))
""",
    )
    result = found(done)
    assert result["worked"] == {}
    assert result["refused"]["clone3"] == "ENOSYS", "so that libc falls back to clone, whose flags the filter reads"
    for name in ("ptrace", "mount", "unshare", "bpf", "keyctl", "userfaultfd", "perf_event_open", "io_uring_setup"):
        assert result["refused"][name] == "EPERM", name
    assert 0 not in result["uid"]
    assert "NoNewPrivs:\t1" in result["status"]
    assert "CapEff:\t0000000000000000" in result["status"]


def test_setuid_files_of_its_own_give_nothing(run: Run) -> None:
    done = attack(
        run,
        """
import shutil
shutil.copy(sys.executable, "/tmp/python")
attempt("chmod", os.chmod, "/tmp/python", 0o6755)
os.environ["PYTHONHOME"] = sys.base_prefix
import subprocess
answer = subprocess.run(["/tmp/python", "-c", "import os; print(os.geteuid())"], capture_output=True, text=True)
print(json.dumps([answer.stdout, os.geteuid()]))
""",
    )
    assert done["exit_code"] == 0, done["tail"]
    told, own = json.loads(done["out"].strip().splitlines()[-1])
    assert int(told) == own != 0


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86_64 has these other ways into the kernel")
@pytest.mark.parametrize("way", ["x32", "int 0x80"])
def test_another_system_call_table_kills_the_program(run: Run, way: str) -> None:
    done = attack(
        run,
        """
import mmap
if sys.argv[1] == "x32":
    libc.syscall(ctypes.c_long(0x40000000 | 39))
else:
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid in the table of i386); int 0x80; ret
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
print("alive")
""",
        args=[way],
    )
    assert done["signal"] == signal.SIGSYS
    assert "alive" not in done["out"]


def test_a_fork_bomb_stays_within_its_number(run: Run) -> None:
    done = attack(
        run,
        """
made = 0
try:
    while made < 5000:
        if os.fork() == 0:
            while True:
                try:
                    os.fork()
                except OSError:
                    time.sleep(0.2)
        made += 1
except OSError as wrong:
    print(made, errno.errorcode[wrong.errno])
""",
        limits={"processes": 20, "seconds": 30},
    )
    made, why = done["out"].split()
    assert int(made) <= 20
    assert why == "EAGAIN"


def test_twice_its_memory_is_not_given(run: Run, world: str) -> None:
    done = attack(
        run,
        """
blocks = []
for _ in range(16):
    blocks.append(bytearray(16 << 20))
    blocks[-1][::4096] = b"x" * len(blocks[-1][::4096])
print("held")
""",
        limits={"memory_bytes": 128 << 20},
    )
    assert "held" not in done["out"]
    assert done["exit_code"] != 0
    if world == "process":
        assert done["reason"] == "memory"


@pytest.mark.skipif(os.geteuid() != 0, reason="limits on the run as a whole need a control group")
@pytest.mark.parametrize("way", ["children", "files in /tmp", "shared memory"])
def test_memory_is_counted_for_the_run_as_a_whole(tmp_path_factory: pytest.TempPathFactory, way: str) -> None:
    done = attack(
        runner("process", tmp_path_factory),
        """
import mmap
def take(size):
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    return block

held = 0
if sys.argv[1] == "children":
    pids = []
    for _ in range(6):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            block = take(48 << 20)
            os.write(writer, b".")
            time.sleep(60)
        os.close(writer)
        os.read(reader, 1)
        pids.append(pid)
    held = 48 * sum(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in pids)
elif sys.argv[1] == "shared memory":
    block = mmap.mmap(-1, 288 << 20)
    for at in range(0, 288 << 20, 4096):
        block[at] = 1
    held = 288
else:
    with open("/tmp/x", "wb") as file:
        for _ in range(288):
            file.write(b"x" * (1 << 20))
            held += 1
print("held", held)
""",
        args=[way],
        limits={"memory_bytes": 128 << 20, "disk_bytes": 512 << 20, "file_bytes": 1 << 30},
    )
    held = int(done["out"].split()[1]) if done["out"] else 0
    assert held <= 128


def test_the_disk_cannot_be_filled(run: Run) -> None:
    done = attack(
        run,
        """
def fill(folder):
    written = 0
    try:
        for number in range(10_000):
            with open(f"{folder}/{number}", "wb", buffering=0) as file:
                while True:
                    size = file.write(b"x" * 65536)
                    written += size
                    if file.tell() >= 4 << 20:
                        break
    except OSError as wrong:
        refused[folder] = errno.errorcode[wrong.errno]
    worked[folder] = written

for folder in ("/tmp", "/dev/shm"):
    fill(folder)
finish()
""",
        limits={"disk_bytes": 16 << 20},
    )
    result = found(done)
    assert result["refused"] == {"/tmp": "ENOSPC", "/dev/shm": "ENOSPC"}
    assert int(result["worked"]["/tmp"]) <= 16 << 20
    assert int(result["worked"]["/dev/shm"]) <= 16 << 20


def test_a_single_file_and_open_files_are_limited(run: Run) -> None:
    done = attack(
        run,
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
attempt("large file", lambda: open("/tmp/large", "wb", buffering=0).write(b"x" * (3 << 20)) > 2 << 20 or 1 / 0)
kept = []
def open_many():
    for _ in range(1000):
        kept.append(os.open("/dev/null", os.O_RDONLY))
attempt("many", open_many)
del kept[10:]
finish()
""",
        limits={"file_bytes": 1 << 20, "open_files": 64},
    )
    assert done["exit_code"] == 0 or "Too many open files" in done["err"]
    if done["exit_code"] == 0:
        assert found(done)["worked"] == {}


def test_limits_cannot_be_raised(run: Run) -> None:
    done = attack(
        run,
        """
import resource
for name in ("RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE"):
    soft, hard = resource.getrlimit(getattr(resource, name))
    attempt(name, resource.setrlimit, getattr(resource, name), (hard + 1, hard + 1))
finish()
""",
    )
    assert found(done)["worked"] == {}


@pytest.mark.parametrize("stream", [1, 2])
def test_endless_output_ends_the_run_and_not_the_disk(run: Run, stream: int) -> None:
    done = attack(
        run,
        "block = b'x' * (1 << 20)\nwhile True: os.write(int(sys.argv[1]), block)",
        args=[str(stream)],
        limits={"output_bytes": 300_000},
    )
    assert done["reason"] == "output"
    assert len(done["out"]) + len(done["err"]) == 300_000


def test_grandchildren_that_hide_end_with_the_run(run: Run) -> None:
    done = attack(
        run,
        """
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            os.close(1); os.close(2)
            while True:
                time.sleep(100)
        os._exit(0)
time.sleep(0.3)
print("left")
""",
    )
    assert done["out"] == "left\n"
    assert (done["exit_code"], done["reason"]) == (0, "exited")


def test_grandchildren_that_hold_the_output_do_not_hold_the_run(run: Run) -> None:
    done = attack(run, "if os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\nprint('left', flush=True)")
    assert (done["out"], done["reason"]) == ("left\n", "exited")


def test_sigterm_may_be_ignored_but_not_the_end(run: Run) -> None:
    done = attack(
        run,
        """
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)
for _ in range(5):
    os.fork()
    break
print("ready", flush=True)
while True:
    time.sleep(1)
""",
        stop_when="ready",
        grace=0.2,
    )
    assert done["broken_while_running"] == []
    assert (done["reason"], done["signal"]) == ("stopped", 9)


def test_links_lead_nowhere(run: Run) -> None:
    """In the code as it was uploaded, and where the program may write: neither it nor the node follows them outside."""
    done = attack(
        run,
        """
def read(path):
    with open(path, "rb") as file:
        return file.read(100)

attempt("shadow in the code", read, "/code/shadow")
attempt("up in the code", read, "/code/up")
for target in ("/etc/shadow", world["patients"], "../../../../../../etc/shadow", "/proc/1/root" + world["patients"]):
    os.symlink(target, "/tmp/link")
    attempt("link to " + target, read, "/tmp/link")
    os.unlink("/tmp/link")
for name in ("stdout", "stderr", "work"):
    attempt("link in place of output " + name, os.symlink, world["patients"], f"/run/flame/{name}")
finish()
""",
        links={"shadow": "/etc/shadow", "up": "../data/patients.csv"},
    )
    assert found(done)["worked"] == {}


def test_the_environment_cannot_be_poisoned(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two runs after one another: the second meets what was approved (the driver checks every file after each run)."""
    run = runner("process", tmp_path_factory)
    first = attack(
        run,
        """
import numpy, py_compile, importlib.util
sys.dont_write_bytecode = False
for module in (os, json, numpy):
    attempt("module " + module.__name__, lambda: open(module.__file__, "a"))
    compiled = importlib.util.cache_from_source(module.__file__)
    attempt("bytecode " + module.__name__, lambda: open(compiled, "r+b"))
    attempt("recompile " + module.__name__, lambda: py_compile.compile(module.__file__, cfile=compiled, doraise=True))
attempt("startup", lambda: open("/opt/site/usercustomize.py", "w"))
os.makedirs("/tmp/.local/lib", exist_ok=True)
open("/tmp/sitecustomize.py", "w").write("print('poisoned')")
finish()
""",
    )
    assert found(first)["worked"] == {}
    second = attack(run, "print(json.dumps({'tmp': os.listdir('/tmp')}))")
    assert found(second) == {"tmp": []}


def test_variables_do_not_act_before_the_gate(run: Run) -> None:
    """What is given to the program takes effect in it alone: setpriv, which still holds capabilities, never sees it."""
    done = attack(
        run,
        "print(os.environ['LD_PRELOAD'], os.getuid() != 0)",
        variables={"LD_PRELOAD": "/code/evil.so", "PYTHONSTARTUP": "/code/evil.py", "PYTHONINSPECT": ""},
        files={"evil.py": "raise SystemExit(99)"},
    )
    assert done["broken"] == []
    assert "True" in done["out"]


def test_a_run_ends_with_its_node(tmp_path_factory: pytest.TempPathFactory) -> None:
    """kill -9 of the node: no process of the run outlives it."""
    need_bubblewrap()
    environment = shared_environment(tmp_path_factory)
    program = f"""
import asyncio, os, sys, tempfile
from pathlib import Path
from flame.lab.environment import ensure_environment
from flame.runtime import RunSpec
from flame.runtime.process import ProcessSandbox

async def main():
    place = Path(tempfile.mkdtemp())
    for name in ("code", "gateway"):
        (place / name).mkdir(mode=0o755)
    (place / "code/main.py").write_text("import os, time\\nos.fork()\\ntime.sleep(1000)")
    sandbox = ProcessSandbox(slots=place / "slots")
    environment = ensure_environment(Path({str(environment.record.parents[2])!r}))
    command = ("/code/main.py",)
    run = await sandbox.start(RunSpec("run", environment, place / "code", place / "gateway", command, place / "work"))
    assert await run.verify() == []
    await run.release()
    print(os.readlink(f"/proc/{{run.pid}}/ns/pid"), place, flush=True)
    await run.wait()

asyncio.run(main())
"""
    variables = {"PYTHONPATH": f"{SOURCES}:{TESTS}", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=variables, text=True) as node:
        assert node.stdout is not None
        namespace, place = node.stdout.readline().split()
        living = driver._inside(namespace)
        handles = [os.pidfd_open(pid) for pid in living]
        node.kill()
    assert len(living) >= 2
    for handle in handles:
        assert select.select([handle], [], [], 60)[0], "a process of the run is still there"
        os.close(handle)
    assert driver._inside(namespace) == []
    subprocess.run(["rm", "-rf", place], check=True)
    if os.geteuid() == 0:
        from flame.runtime.process import ProcessSandbox

        ProcessSandbox(slots=Path(place) / "slots")
        assert not list(Path("/sys/fs/cgroup").glob(f"**/flame-{node.pid}-*"))
