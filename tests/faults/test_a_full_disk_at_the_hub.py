"""The hub's disk is really full: a device without a free byte, in the middle of a run and at a submission."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from federation_world import AGES, AGES_PROGRAM, Researcher, eventually, federation_in, program, run_state
from flame.lab.federation import Federation, Outcome
from flame.model.errors import Exhausted, FlameError

DEVICE_MB = 64


@contextmanager
def on_a_device_of_its_own(federation: Federation) -> Iterator[None]:
    """The hub goes on with its files on a small file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = federation.directory / "hub"
    federation.stop("hub")
    kept = place.rename(place.with_name("hub-before"))
    place.mkdir(mode=0o700)
    if libc.mount(b"none", bytes(place), b"tmpfs", 0, f"size={DEVICE_MB}m,mode=700".encode()) != 0:
        why = f"a small device cannot be mounted here: {os.strerror(ctypes.get_errno())}"
        (pytest.fail if os.geteuid() == 0 and os.environ.get("REQUIRE_BACKENDS") else pytest.skip)(why)
    try:
        shutil.copytree(kept, place, dirs_exist_ok=True)
        federation.restart("hub")
        yield
    finally:
        federation.stop("hub")
        libc.umount2(bytes(place), 2)


@contextmanager
def full(place: Path) -> Iterator[None]:
    """Not one block is left on the device meanwhile."""
    ballast = place / "ballast"
    try:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        assert os.statvfs(place).f_bavail == 0
        yield
    finally:
        ballast.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation_in(tmp_path_factory.mktemp("full")) as found, on_a_device_of_its_own(found):
        yield found


def assert_right(outcome: Outcome) -> None:
    assert outcome.status == "executed", outcome.reason
    ages = [age for rows in AGES.values() for age in rows]
    (result,) = outcome.results
    assert json.loads(result.content)["mean"] == pytest.approx(sum(ages) / len(ages), abs=1e-12)


def test_a_submission_to_a_full_disk_is_refused_and_nothing_is_broken(federation: Federation) -> None:
    researcher = Researcher(federation)
    with full(federation.directory / "hub"), pytest.raises(FlameError, match="disk is full") as said:
        federation.session.submit(
            federation.project, program(), entrypoint="main.py", title="Full", image=federation.image,
            environment=federation.environment, nodes=federation.known_nodes,
        )  # fmt: skip
    assert isinstance(said.value, Exhausted)
    assert "Ask the hub's operator for space" in said.value.next_step
    assert_right(researcher.run(program(), "After"))


def test_a_run_that_meets_a_full_disk_waits_and_goes_on_when_there_is_space(federation: Federation) -> None:
    researcher = Researcher(federation)
    slow = AGES_PROGRAM.replace(
        b'        ages = federation.data().numbers("age")\n',
        b'        ages = federation.data().numbers("age")\n        import time\n        time.sleep(4)\n',
    )
    submission = researcher.started(program(slow, padding=40_000), "In the middle")
    for name in AGES:
        eventually(
            lambda name=name: (run_state(federation, name, submission.run) or {}).get("state") == "running", name
        )  # type: ignore[misc]
    with full(federation.directory / "hub"):
        time.sleep(8)  # the hospitals' parts come, and find no room
        assert all((run_state(federation, name, submission.run) or {})["state"] == "running" for name in AGES)
    assert_right(researcher.finish(submission))
