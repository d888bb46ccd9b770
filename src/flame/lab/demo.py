"""``flame demo``: a federation from nothing to a published table, beside the fit of the pooled data.

What stands here is the story; the federation itself is ``flame.lab.federation``, the program that runs at the
hospitals is ``flame.methods.programs.logistic_regression``, unchanged.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from flame.lab import datasets
from flame.lab.elsewhere import Elsewhere
from flame.lab.federation import Federation, Outcome, Site
from flame.lab.plot import INTERCEPT, Drawing, draw_elsewhere, drawn
from flame.lab.pooled import Request, largest_deviation, pooled_fit, pooled_result
from flame.lab.processes import end
from flame.model.errors import Conflict, Invalid, IsolationTooLow, NotFound, RunFailed, Unavailable
from flame.researcher.session import Progress
from flame.runtime import Level

ENTRYPOINT: Final = "main.py"
FEDERATION: Final = "federation"
SHOWN: Final = ("name", "estimate", "se", "ci_low", "ci_high", "p", "odds_ratio")
NO_BUBBLEWRAP: Final = "sudo apt-get install --no-install-recommends bubblewrap"

Show = Callable[[Progress], None]


@dataclass(frozen=True)
class Wish:
    """What the user asked for. Without ``sites``: the breast cancer data, divided over ``hospitals``."""

    out: Path
    hospitals: int = 3
    sites: tuple[Site, ...] = ()
    outcome: str = ""
    covariates: tuple[str, ...] = ()
    standardise: bool | None = None
    """None: yes for the breast cancer data, no for the user's own."""
    keep: bool = False


@dataclass(frozen=True)
class Study:
    """A wish made definite: every site has its file."""

    title: str
    sites: tuple[Site, ...]
    outcome: str
    covariates: tuple[str, ...]
    standardise: bool
    public: bool

    @property
    def reference(self) -> Request:
        return Request(tuple(str(site.path) for site in self.sites), self.outcome, self.covariates, self.standardise)


@dataclass
class Shown:
    """Everything there is to show. ``document()`` is what ``--json`` prints."""

    study: Study
    result: Mapping[str, Any]
    """What the researcher opened: the program's own result."""
    pooled: Mapping[str, Any]
    seconds: dict[str, float]
    hub: Mapping[str, int] = field(default_factory=dict)
    log_verified: bool = False
    isolation: str = "unknown"
    plot: Path | None = None

    @property
    def coefficients(self) -> list[dict[str, Any]]:
        return [{key: row[key] for key in SHOWN} for row in self.result["coefficients"]]

    @property
    def max_abs_deviation(self) -> float:
        return largest_deviation(self.coefficients, self.pooled["coefficients"])

    def document(self) -> dict[str, Any]:
        return {
            "coefficients": self.coefficients,
            "log_likelihood": self.result["log_likelihood"],
            "pooled": [{key: row[key] for key in SHOWN} for row in self.pooled["coefficients"]],
            "max_abs_deviation": self.max_abs_deviation,
            "rounds": self.result["rounds"],
            "hospitals": len(self.study.sites),
            "seconds": self.seconds,
            "hub": dict(self.hub),
            "log_verified": self.log_verified,
            "isolation": self.isolation,
            "plot": str(self.plot),
        }


class Demo:
    """One demonstration. ``show`` hears what happens; ``result`` is told the numbers before the log is
    verified and the picture drawn.

    Leaves nothing running and nothing but ``wish.out`` behind, however it ends; with ``wish.keep`` the federation goes
    on in ``wish.out/federation``.
    """

    def __init__(self, wish: Wish, show: Show, result: Callable[[Shown], None] = lambda shown: None) -> None:
        self._wish, self._show, self._result = wish, show, result
        self._began = time.monotonic()
        self.federation: Federation | None = None

    def run(self) -> Shown:
        """Raises Invalid, NotFound, Conflict for what was asked for; RunFailed saying where and why."""
        with ExitStack() as stack:
            stack.enter_context(_directory(self._wish.out))
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="flame-demo-")))
            study = plan(self._wish, folder)
            refuse_unprotected(study)
            stack.enter_context(self._nothing_left())
            reference = stack.enter_context(pooled_fit(study.reference))
            federation = self.federation = self._started(study)
            shown = self._play(federation, study, reference)
            drawing = stack.enter_context(draw_elsewhere(_drawing(shown), self._wish.out.absolute() / "forest"))
            self._look_around(federation, shown)
            if not self._wish.keep:
                federation.down()
            shown.plot = drawn(drawing)
        return shown

    @contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """Takes the federation away, also one that is half started: always without ``keep``; with it when somebody
        said stop or when it never came up. After another failure a kept one stays, so that its logs can be read."""
        stay = False
        try:
            yield
            stay = self._wish.keep
        except Exception:
            stay = self._wish.keep and self.federation is not None
            raise
        finally:
            if not stay:
                clear_away(self._wish.out / FEDERATION)

    def _play(self, federation: Federation, study: Study, reference: Elsewhere) -> Shown:
        seconds = {"federation": self._elapsed()}
        outcome = self._submit(federation, study)
        seconds.update({**outcome.seconds, "result": self._elapsed()})
        self._tell("compare", "waiting for the pooled fit")
        shown = Shown(study, _opened(outcome), pooled_result(reference), seconds)
        self._result(shown)
        return shown

    def _look_around(self, federation: Federation, shown: Shown) -> None:
        shown.hub = federation.hub_counts()
        shown.log_verified = federation.log_verified()
        shown.isolation = lowest(federation.isolation().values())

    def _started(self, study: Study) -> Federation:
        return Federation.up(
            self._wish.out / FEDERATION, study.sites, public_data=study.public, record=True, progress=self._tell
        )

    def _submit(self, federation: Federation, study: Study) -> Outcome:
        outcome = federation.submit(program(study), entrypoint=ENTRYPOINT, title=study.title, progress=self._show)
        if outcome.status != "executed":
            raise RunFailed(
                f"The analysis {outcome.status}: {outcome.reason}",
                next_step="" if self._wish.keep else "Repeat with --keep: then each node's log stays.",
            )
        return outcome

    def _tell(self, stage: str, text: str) -> None:
        self._show(Progress(stage, None, 0, text))

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._began, 3)


def demo(out: Path, at_result: Callable[[], None] = lambda: None) -> Shown:
    """The demonstration as it is without options; ``at_result`` is called when its table could be read."""
    return Demo(Wish(out), lambda step: None, lambda shown: at_result()).run()


def plan(wish: Wish, folder: Path) -> Study:
    """Settle data and model; the breast cancer data are divided into files in ``folder``.

    Raises Invalid or NotFound naming site and column before anything is started.
    """
    if wish.sites:
        return _own_study(wish)
    cohort = datasets.breast_cancer()
    outcome, covariates = wish.outcome or datasets.OUTCOME, wish.covariates or datasets.COVARIATES
    _check_columns("the breast cancer data", list(cohort.columns), (outcome, *covariates))
    names = datasets.hospital_names(wish.hospitals)
    chosen = cohort.chosen((outcome, *covariates))
    sites = []
    for name, patients in zip(names, datasets.uneven_shares(len(chosen.rows), len(names)), strict=True):
        path = folder / f"{name}.csv"
        chosen.part(patients).write(path)
        sites.append(Site(name, path))
    standard = outcome == datasets.OUTCOME
    title = "Malignancy of breast tumours" if standard else _title(outcome, covariates)
    return Study(title, tuple(sites), outcome, tuple(covariates), wish.standardise is not False, public=True)


def _own_study(wish: Wish) -> Study:
    if not wish.outcome or not wish.covariates:
        raise Invalid(
            "The model for your own data is not given.",
            next_step="Add --outcome COLUMN and --covariates A,B,C: names of columns that every file has.",
        )
    for site in wish.sites:
        assert site.path is not None
        _check_columns(f"{site.path} ({site.name})", datasets.columns_of(site.path), (wish.outcome, *wish.covariates))
    title = _title(wish.outcome, wish.covariates)
    return Study(title, wish.sites, wish.outcome, wish.covariates, wish.standardise is True, public=False)


def _check_columns(where: str, found: list[str], wanted: Sequence[str]) -> None:
    if len(set(wanted)) != len(wanted):
        raise Invalid("The outcome and the covariates must be different columns.", next_step="Name each column once.")
    for name in wanted:
        if name not in found:
            shown = ", ".join(found[:40]) or "none"
            raise NotFound(f"{where} has no column '{name}'.", next_step=f"Its columns: {shown}.", column=name)


def _title(outcome: str, covariates: Sequence[str]) -> str:
    return f"{outcome} on {', '.join(covariates)}"[:120]


def refuse_unprotected(study: Study) -> None:
    """Real data do not run without a sandbox. Raises IsolationTooLow."""
    if not study.public and not has_bubblewrap():
        raise IsolationTooLow(
            "bubblewrap is missing: without it a program would not be locked away from your data.",
            next_step=f"Install it with `{NO_BUBBLEWRAP}`. (Without --site the demo runs on public data anyway.)",
        )


def has_bubblewrap() -> bool:
    """As a node looks for it: in the system's own places."""
    from flame.runtime.process import bubblewrap

    try:
        bubblewrap()
    except Unavailable:
        return False
    return True


def program(study: Study) -> dict[str, bytes]:
    """The files that are submitted: the ready program, unchanged, and the author's file that says what it may do."""
    source = files("flame.methods.programs").joinpath("logistic_regression.py").read_bytes()
    return {ENTRYPOINT: source, "flame.toml": _author_file(study).encode()}


def _author_file(study: Study) -> str:
    """All columns, caps and parameters of this one study. The final result leaves by itself: it is a table of
    coefficients over all hospitals, and the person who runs the demo is every hospital's steward."""
    text, listed = _quoted, _quoted_list
    return f"""\
[analysis]
purpose = {text(f"Which of the covariates go with {study.outcome}, and how strongly?")}
days = 1
runs_max = 1

[[data]]
source = "data"
columns = {listed((study.outcome, *study.covariates))}

[[parameters]]
name = "outcome"
type = "text"
default = {text(study.outcome)}

[[parameters]]
name = "covariates"
type = "list"
default = {listed(study.covariates)}

[[parameters]]
name = "standardise"
type = "flag"
default = {"true" if study.standardise else "false"}

# What may leave a hospital: sums over its patients. What comes back: the next question. Nothing else.
[[releases]]
name = "sum"
kind = "sum"
max_bytes = 65536
rounds_max = 100

[[releases]]
name = "question"
kind = "model"
max_bytes = 65536
rounds_max = 100

[[releases]]
kind = "log"
max_bytes = 65536
rounds_max = 100

[[releases]]
name = "result.json"
kind = "final"
max_bytes = 1048576
rounds_max = 1
release = "auto"

[resources]
cpu = 1
memory_mb = 512
disk_mb = 64
processes = 32
runtime_minutes = 10
"""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)  # JSON's strings are TOML's


def _quoted_list(texts: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quoted, texts)) + "]"


def _opened(outcome: Outcome) -> dict[str, Any]:
    for file in outcome.results:
        if file.name == "result.json":
            result: dict[str, Any] = json.loads(file.content)
            return result
    raise RunFailed(
        "The analysis ended without a result.", next_step="Repeat with --keep and look at the aggregator's log."
    )


def lowest(levels: Any) -> str:
    """The weakest of several isolation levels, by name; ``none`` where one is not known."""
    order = [level.title for level in sorted(Level)]
    return min(levels, key=lambda name: order.index(name) if name in order else -1, default=order[0])


def _drawing(shown: Shown) -> Drawing:
    study, result = shown.study, shown.result
    per = "standard deviation" if study.standardise else "unit of the covariate"
    return Drawing(
        title=study.title,
        subtitle=f"Logistic regression over {count(len(study.sites), 'hospital')}, {result['n']} patients; "
        f"odds ratios per {per}",
        footer=f"Federated: no patient's data left a hospital. "
        f"Largest difference from the pooled fit: {shown.max_abs_deviation:.1e}.",
        axis="Odds ratio (log scale)",
        coefficients=tuple(row for row in shown.coefficients if row["name"] != INTERCEPT),
    )


def count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """The output directory; taken away again when nothing was put into it."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise Conflict(f"The output directory {path} is not empty.", next_step="Name a new one with --out DIR.")
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            path.rmdir()


def how_to_end(federation: Federation) -> str:
    """The command that ends a federation which was left running."""
    return f"flame dev down --dir {shlex.quote(str(federation.directory))}"


def clear_away(directory: Path) -> None:
    """End every process of the federation in ``directory`` and remove its files: keys, databases, copies of data.

    Looks at what runs and not at what was noted: an interruption comes also between a start and its note. Further
    interruptions wait until it is done. Raises RunFailed where something stays.
    """
    directory = directory.absolute().resolve()
    with _uninterrupted():
        for _ in range(5):
            for pid in processes_in(directory):
                end(pid, 5.0)
            _remove(directory)
            if not directory.exists() and not processes_in(directory):
                return
            time.sleep(0.1)
    raise RunFailed(
        f"The federation in {directory} could not be removed; it holds private keys and copies of the data.",
        next_step="Remove this directory yourself.",
    )


def processes_in(directory: Path) -> list[int]:
    """The hub and the nodes that run in a federation's directory, by their command lines."""
    place = os.fsencode(directory) + b"/"
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                module = words[words.index(b"-m") + 1 :] if b"-m" in words else []
                if module[:1] in ([b"flame.hub"], [b"flame.node"]) and any(w.startswith(place) for w in module):
                    found.append(int(entry.name))
    return found


def _remove(directory: Path) -> None:
    for folder, _, _ in os.walk(directory):
        with suppress(OSError):
            Path(folder).chmod(0o700)  # a folder that nobody may write to would keep what is in it
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, action in former.items():
            signal.signal(number, action)
