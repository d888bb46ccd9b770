"""``make bench``: our figures beside the goals and the peers'. Medians with min and max, load average beside them.

What is measured is the real thing: hub and nodes as processes, programs in their sandboxes, every payload sealed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

import hub
from figures import MIB, Figure, figure
from flame.lab.federation import Federation, Outcome, Site

ROUNDS = Path(__file__).parent / "programs" / "rounds.py"
PEERS = {
    "scalar round, N=3": "Flower 7.7-9.5 s, NVFlare 2.5 s",
    "scalar round, N=10": "Flower 13.2 s, NVFlare 2.51 s",
    "3 x 40 MB round": "Flower 8.7-10.6 s, NVFlare 3.7 s",
    "10 x 40 MB round": "Flower 19.1 s, NVFlare 11.0 s",
    "peak memory of the aggregator above idle, 10 x 40 MB": "Flower 1.5 GB, NVFlare 1.5 GB",
    "cold start to first result": "Flower 20-27 s, NVFlare 27-36 s",
    "idle node memory": "NVFlare, Flower <= 341 MB",
}


@contextmanager
def federation(hospitals: int) -> Iterator[Federation]:
    with tempfile.TemporaryDirectory(prefix="flame-bench-") as folder:
        up = Federation.up(Path(folder), [Site(f"hospital-{i + 1}", None) for i in range(hospitals)])
        try:
            yield up
        finally:
            up.down()


def submit_rounds(up: Federation, size: int, rounds: int) -> Outcome:
    author = f"""
[analysis]
purpose = "measure rounds"
[resources]
memory_mb = 2048
[[parameters]]
name = "size"
type = "integer"
default = {size}
[[parameters]]
name = "rounds"
type = "integer"
default = {rounds}
[[releases]]
kind = "sum"
max_bytes = {max(4096, size * 8 + 4096)}
rounds_max = 1000
[[releases]]
kind = "object"
max_bytes = {max(4096, size * 8 + 4096)}
rounds_max = 1000
[[releases]]
kind = "final"
release = "auto"
"""
    author = "data = []\n" + author
    files = {"main.py": ROUNDS.read_bytes(), "flame.toml": author.encode()}
    outcome = up.submit(files, entrypoint="main.py", title="rounds")
    if outcome.status != "executed":
        raise SystemExit(f"the run failed: {outcome.reason}")
    return outcome


def round_times(up: Federation, size: int, rounds: int) -> list[float]:
    outcome = submit_rounds(up, size, rounds)
    times = json.loads(outcome.results[0].content)["seconds"]
    return list(times[max(1, rounds // 10) :])  # the first ones warm caches and connections


class Memory:
    """Peak resident memory of processes while something runs, in MB above what they had before."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.idle = {name: self._now(p) for name, p in self._processes.items()}
        self.peak = dict(self.idle)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def above(self, name: str) -> float:
        return self.peak[name] - self.idle[name]

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            for name, process in self._processes.items():
                self.peak[name] = max(self.peak[name], self._now(process))

    @staticmethod
    def _now(process: psutil.Process) -> float:
        return float(process.memory_info().rss) / MIB


def scalar(n: int) -> list[Figure]:
    with federation(n) as up:
        times = round_times(up, 1, 200)
    goal = "<= 15 median, <= 25 p95" if n == 10 else ""
    found = figure(f"scalar round, N={n}", times, "ms", goal, 1000)
    p95 = statistics.quantiles(times, n=20)[-1]
    return [found, figure(f"scalar round, N={n}, p95", [p95], "ms", "<= 25" if n == 10 else "", 1000)]


def vector(n: int) -> list[Figure]:
    with federation(n) as up:
        pids = {"hub": up.hub_pid, "aggregator": up.aggregator.pid}
        with Memory(pids) as memory:
            times = round_times(up, 10_000_000, 6)
    found = [figure(f"{n} x 40 MB round", times, "s", "<= 0.3" if n == 3 else "<= 0.8")]
    if n == 10:
        found.append(figure("peak memory of the hub above idle, 10 x 40 MB", [memory.above("hub")], "MB", "<= 20"))
        found.append(
            figure("peak memory of the aggregator above idle, 10 x 40 MB", [memory.above("aggregator")], "MB", "<= 120")
        )
    return found


def idle() -> list[Figure]:
    with federation(3) as up:
        time.sleep(3)
        nodes = [psutil.Process(node.pid) for node in up.nodes]
        hub = psutil.Process(up.hub_pid)
        before = {p.pid: sum(p.cpu_times()[:2]) for p in [*nodes, hub]}
        seconds = 10.0
        time.sleep(seconds)
        cpu = {p.pid: 100 * (sum(p.cpu_times()[:2]) - before[p.pid]) / seconds for p in [*nodes, hub]}
        return [
            figure("idle node memory", [p.memory_info().rss / MIB for p in nodes], "MB", "<= 45"),
            figure("idle node CPU", [cpu[p.pid] for p in nodes], "% of a core", "<= 0.5"),
            figure("idle hub memory", [hub.memory_info().rss / MIB], "MB", ""),
            figure("idle hub CPU", [cpu[hub.pid]], "% of a core", ""),
        ]


def cold() -> list[Figure]:
    from flame.lab.demo import demo

    times: list[float] = []
    for _ in range(3):
        with tempfile.TemporaryDirectory(prefix="flame-bench-") as folder:
            ended: list[float] = []
            started = time.monotonic()
            demo(out=Path(folder) / "demo", at_result=lambda ended=ended: ended.append(time.monotonic()))
            times.append(ended[0] - started)
    return [figure("cold start to first result", times, "s", "<= 3")]


MEASUREMENTS: dict[str, Callable[[], list[Figure]]] = {
    "cold": cold,
    "idle": idle,
    "scalar3": lambda: scalar(3),
    "scalar10": lambda: scalar(10),
    "vector3": lambda: vector(3),
    "vector10": lambda: vector(10),
    **hub.MEASUREMENTS,
}


def show(found: list[Figure]) -> None:
    for f in found:
        peer = PEERS.get(f.name, "")
        print(
            f"{f.name:<54} {f.value:>9} {f.unit:<12} ({f.min} .. {f.max})  goal {f.goal or '-':<24} {peer}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=list(MEASUREMENTS), default=list(MEASUREMENTS))
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    chosen = parser.parse_args()
    found: list[Figure] = []
    print(
        f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; every payload end-to-end encrypted; loopback without TLS"
    )
    for name in chosen.only:
        figures = MEASUREMENTS[name]()
        show(figures)
        found += figures
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps([asdict(f) for f in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
