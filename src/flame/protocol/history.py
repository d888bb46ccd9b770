"""What a log tells: who approved what, what ran, what left, and where something is missing.

Fed with events in their order (`verify_export(each=…)`); keeps a few words for each analysis, not the events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from flame.protocol.documents import Event

_SHORT: Final = 12
MAX_GAPS: Final = 1000
_DECIDED: Final = {"approved": "approved", "rejected": "rejected", "none": "withdrawn"}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened."""

    index: int
    time: str
    words: str


@dataclass(slots=True)
class RunHistory:
    id: str
    ordered: int | None = None
    """The entry of the start order."""
    started: dict[str, str] = field(default_factory=dict)
    """Signer -> manifest"""
    ended: set[str] = field(default_factory=set)
    lines: list[Line] = field(default_factory=list)


@dataclass(slots=True)
class AnalysisHistory:
    id: str
    lines: list[Line] = field(default_factory=list)
    runs: dict[str, RunHistory] = field(default_factory=dict)


class History:
    """Take every event with `take`; then read `analyses`, `projects`, `counts` and `gaps()`."""

    def __init__(self) -> None:
        self.analyses: dict[str, AnalysisHistory] = {}
        self.projects: dict[str, list[Line]] = {}
        self.counts: Counter[str] = Counter()
        self._node_of: dict[str, str] = {}
        """Fingerprint -> node, as the hub has enrolled them."""
        self._runs: dict[str, RunHistory] = {}
        self._approved: set[tuple[str, str]] = set()
        """(manifest, node) of signed approvals"""

    def take(self, index: int, event: Event) -> None:
        self.counts[event.type] += 1
        facts = event.facts
        match event.type:
            case "enrolment":
                self._node_of[_text(facts, "fingerprint")] = event.subject
            case "rotation":
                before = self._node_of.get(_text(facts, "previous"))
                if before is not None:
                    self._node_of[_text(facts, "key")] = before
            case "approval":
                self._approval(index, event)
            case "start":
                self._start(index, event)
            case "run-started" | "run-ended" | "refusal" | "release" | "result" | "stop":
                self._run_event(index, event)
            case "proposal" | "comment" | "project-ended" | "project-deleted":
                self._project(event.subject).append(Line(index, event.time, self._said_of_project(event)))
            case "submission" | "signature" | "build" | "distribution" | "unlock":
                self._analysis(event.subject).lines.append(Line(index, event.time, _said_of_analysis(event)))

    def gaps(self) -> Iterator[str]:
        """What should stand in a whole log, and does not."""
        for run in self._runs.values():
            short = run.id[:_SHORT]
            if run.started and run.ordered is None:
                yield f"Run {short} was started, and no order for it stands in the log."
            if run.ordered is not None and not run.started and not run.ended:
                yield f"Run {short} was ordered (entry {run.ordered}); no node has logged that it started or refused it."
            for signer, manifest in run.started.items():
                node = self._node_of.get(signer)
                if node is None:
                    yield f"Run {short} was started by {signer[:16]}…, whose enrolment does not stand in the log."
                elif (manifest, node) not in self._approved:
                    yield f"Run {short} was started at node {node} without its signed approval in the log."
                if signer not in run.ended:
                    yield f"Run {short} was started at {self._name(signer)}, and no end of it is logged there."

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "analyses": [
                {
                    "id": analysis.id,
                    "events": [_shown(line) for line in analysis.lines],
                    "runs": [
                        {"id": run.id, "orderedAt": run.ordered, "events": [_shown(line) for line in run.lines]}
                        for run in analysis.runs.values()
                    ],
                }
                for analysis in self.analyses.values()
            ],
            "projects": [
                {"id": key, "events": [_shown(line) for line in lines]} for key, lines in self.projects.items()
            ],
            "counts": dict(sorted(self.counts.items())),
            "gaps": [gap for gap, _ in zip(self.gaps(), range(MAX_GAPS), strict=False)],
        }

    def text(self, only: str = "") -> Iterator[str]:
        """For people, line by line; `only`: one analysis."""
        for key, lines in () if only else self.projects.items():
            yield f"Project {key}"
            yield from _indented(lines, "  ")
            yield ""
        for analysis in self.analyses.values():
            if only and analysis.id != only:
                continue
            yield f"Analysis {analysis.id}"
            yield from _indented(analysis.lines, "  ")
            for run in analysis.runs.values():
                yield f"  Run {run.id[:_SHORT]}…"
                yield from _indented(run.lines, "    ")
            yield ""

    def _approval(self, index: int, event: Event) -> None:
        facts = event.facts
        node, signed = _text(facts, "node"), facts.get("signed") is True
        decision = _DECIDED.get(_text(facts, "decision"), _text(facts, "decision"))
        how = "signed by the node" if signed else f"at the hub, by {_text(facts, 'by')}"
        line = Line(index, event.time, f"{decision} for node {node}, {how}: {_text(facts, 'digest')[:_SHORT]}…")
        if _text(facts, "subject") == "project":
            self._project(event.subject).append(line)
            return
        self._analysis(event.subject).lines.append(line)
        if signed and decision == "approved":
            self._approved.add((_text(facts, "digest"), node))

    def _project(self, key: str) -> list[Line]:
        return self.projects.setdefault(key, [])

    def _said_of_project(self, event: Event) -> str:
        facts = event.facts
        match event.type:
            case "proposal":
                return f"proposed by {_text(facts, 'by')}: {_text(facts, 'digest')[:_SHORT]}…"
            case "comment":
                return f"comment for node {_text(facts, 'node')}"
            case "project-ended":
                return f"ended by {_text(facts, 'by')}"
            case _:
                return f"what it had left was deleted at {self._name(event.signer)}"

    def _start(self, index: int, event: Event) -> None:
        run = self._run(_text(event.facts, "run"), self._analysis(event.subject))
        run.ordered = index
        words = f"ordered by the researcher: run number {event.facts.get('number')} of {_text(event.facts, 'manifest')[:_SHORT]}…"
        run.lines.append(Line(index, event.time, words))

    def _run_event(self, index: int, event: Event) -> None:
        facts, run = event.facts, self._run(event.subject)
        name = self._name(event.signer)
        match event.type:
            case "run-started":
                run.started[event.signer] = _text(facts, "manifest")
                words = f"started at {name}"
            case "run-ended" if "analysis" in facts:
                words = f"ended everywhere, as the hub counts: {_text(facts, 'status')}"
            case "run-ended":
                run.ended.add(event.signer)
                words = f"{_text(facts, 'state')} at {name}{_reason(facts)}"
                if left := _left(facts):
                    words += f"; left: {left}"
            case "refusal":
                run.ended.add(event.signer)
                words = f"refused at {name}{_reason(facts)}"
            case "release":
                ordinal = facts.get("ordinal")
                size = f", {facts['bytes']} bytes" if "bytes" in facts else ""
                words = f"result {ordinal} {_text(facts, 'decision')} at {name}{size}"
            case "result":
                words = (
                    f"result {facts.get('ordinal')} handed over by {name}: {facts.get('bytes')} bytes sealed, "
                    f"SHA-256 {_text(facts, 'sha256')[:_SHORT]}…"
                )
            case _:
                words = f"stop asked by {_text(facts, 'by')}"
        run.lines.append(Line(index, event.time, words))

    def _analysis(self, key: str) -> AnalysisHistory:
        return self.analyses.setdefault(key, AnalysisHistory(key))

    def _run(self, key: str, analysis: AnalysisHistory | None = None) -> RunHistory:
        run = self._runs.setdefault(key, RunHistory(key))
        if analysis is not None:
            analysis.runs[key] = run
        return run

    def _name(self, signer: str) -> str:
        node = self._node_of.get(signer)
        return f"node {node}" if node else f"{signer[:16]}… (not enrolled in this log)"


def _said_of_analysis(event: Event) -> str:
    facts = event.facts
    match event.type:
        case "submission":
            digest = _text(facts, "manifest")
            return f"locked by {_text(facts, 'by')}: " + (
                f"manifest {digest[:_SHORT]}…" if digest else "no manifest yet"
            )
        case "signature":
            return f"signed by the researcher's key {_text(facts, 'key')[:16]}…: {_text(facts, 'manifest')[:_SHORT]}…"
        case "build":
            return "built" if facts.get("ok") else "the build failed"
        case "distribution":
            return "distributed"
        case _:
            return f"unlocked by {_text(facts, 'by')}: every approval is void"


def _reason(facts: dict[str, Any]) -> str:
    code = _text(facts, "code")
    return f" ({code})" if code else ""


def _left(facts: dict[str, Any]) -> str:
    """What the node let out during the run, from `left`: [kind, times, bytes, last round] each."""
    rows = facts.get("left")
    if not isinstance(rows, list):
        return ""
    known = [row for row in rows if isinstance(row, list) and len(row) == 4]
    return "; ".join(f"{kind} ×{times}, {size} bytes" for kind, times, size, _ in known)


def _text(facts: dict[str, Any], name: str) -> str:
    value = facts.get(name)
    return value if isinstance(value, str) else ""


def _shown(line: Line) -> dict[str, Any]:
    return {"index": line.index, "time": line.time, "what": line.words}


def _indented(lines: list[Line], indent: str) -> Iterator[str]:
    width = max((len(str(line.index)) for line in lines), default=1)
    for line in lines:
        yield f"{indent}{line.time}  #{str(line.index).ljust(width)}  {line.words}"
