"""The egress guard: everything a run releases passes here, before it is sealed.

It knows the manifest and the node's policy; the stricter of the two holds. What it lets pass is counted first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from flame.model.errors import Invalid, NotAllowed, ReleaseRefused
from flame.model.manifest import Manifest, Release
from flame.node.egress.policy import Policy
from flame.node.egress.text import CodeText, error_code, error_type, one_line
from flame.privacy.release import ReleaseBook, check_summary
from flame.wire.gateway import Fail
from flame.wire.values import Buffer

WITHHELD: Final = "(text that stays at the node)"
"""What leaves in place of a line that is no literal of the approved code."""
MAX_FRAMES: Final = 50
PROGRESS_STEP: Final = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """Something may leave: under which declaration, and whether a steward sees it first."""

    release: Release
    hold: bool


class Guard:
    """The guard of one run at one node. Safe to use from several threads.

    node: this node's id in the manifest. code: what the approved program says (``flame.node.egress.text.read_code``).
    A refusal is ReleaseRefused with the fields rule, limit, kind and name; nothing was counted then.
    """

    def __init__(
        self,
        manifest: Manifest,
        node: str,
        policy: Policy,
        book: ReleaseBook | None = None,
        code: CodeText | None = None,
    ) -> None:
        me = manifest.participant(node)
        if me is None:
            raise NotAllowed(
                "This node takes no part in the analysis.", next_step="Nothing: another hospital was asked."
            )
        self._manifest = manifest
        self._role = me.role
        self._policy = policy
        self._code = code or CodeText(frozenset(), {})
        self._progress = -1
        self.book = book or ReleaseBook(manifest.releases, caps=policy.caps)

    @property
    def max_body(self) -> int:
        """The largest body that any release of this run may have, in bytes."""
        return self.book.max_body

    def is_literal(self, text: str) -> bool:
        """Whether a text stands in the approved code as it is: the program can only have chosen it, not written it."""
        return text in self._code.literals

    def _is_named(self, column: str) -> bool:
        """Whether the manifest or the code has this name of a column: nobody can have written it at run time."""
        given = [value for p in self._manifest.parameters for value in (p.default, *p.options)]
        texts = [text for value in given for text in (value if isinstance(value, list) else [value])]
        asked = [name for request in self._manifest.data for name in request.columns]
        return self.is_literal(column) or column in asked or column in texts

    def check_sum(self, name: str, round: int, body: Buffer) -> Verdict:
        """A data node's contribution to a sum: declared, once a round, within its caps, finite.

        body: the wire value of a flat dictionary of arrays and numbers. Raises ReleaseRefused, Invalid, Malformed.
        """
        if self._role != "default":
            raise NotAllowed("Only a data node contributes to a sum.")
        self._need_declared("sum", name)
        check_summary(decode_summary(body))
        return self._pass(self.book.charge("sum", name, len(body), round))

    def check_object(self, category: str, body: Buffer) -> Verdict:
        """A message to other participants. The aggregator's go under ``model`` where that is declared."""
        from flame.wire.values import decode

        model = self._role == "aggregator" and self.book.declaration("model", category) is not None
        kind: Any = "model" if model else "object"
        self._need_declared(kind, category)
        decode(body)  # only what our own frame describes may pass, so that no receiver has to guess
        return self._pass(self.book.charge(kind, category, len(body)))

    def check_final(self, name: str, body: Buffer) -> Verdict:
        """A file of the final result; only the aggregator has one. The policy's ``release_final`` decides who waits."""
        if self._role != "aggregator":
            raise NotAllowed("Only the aggregator releases a final result.")
        release = self.book.charge("final", name, len(body))
        setting = self._policy.release_final
        return Verdict(release, release.release == "hold" if setting == "manifest" else setting == "hold")

    def check_log(self, level: str, template: str, *, known: bool = False) -> str | None:
        """The line that may leave; None: nothing, because the run's lines are used up or logs are not declared.

        The template leaves if it is a text literal of the approved code; of any other line only its level and that it
        was written. Values never leave. known: the words are not the program's own, but an SDK's.
        """
        line = one_line(template) if known or template in self._code.literals else WITHHELD
        try:
            self.book.charge_line(len(line.encode()) + len(level))
        except ReleaseRefused:
            return None
        return line

    def check_failure(self, failure: Fail) -> dict[str, Any] | None:
        """What may be said about an error: {type, code, frames: [[file, line], …], column?}; None when no more may be said.

        No text, no names of functions; a type of the standard library or of ours, else ``Exception``; frames only in
        files of the manifest, on lines that exist; a column only if the manifest or the approved code names it.
        """
        said: dict[str, Any] = {
            "type": error_type(failure.error),
            "code": error_code(failure.code),
            "frames": [
                [file, line]
                for file, line in failure.frames[-MAX_FRAMES:]
                if 1 <= line <= self._code.lines.get(file, 0)
            ],
        }
        if self._is_named(failure.column):
            said["column"] = failure.column
        try:
            self.book.charge_error(len(str(said)))
        except ReleaseRefused:
            return None
        return said

    def check_progress(self, percent: int) -> int | None:
        """Progress in steps of five that only rise; None when there is nothing new to say."""
        step = min(max(percent, 0), 100) // PROGRESS_STEP * PROGRESS_STEP
        if step <= self._progress:
            return None
        self._progress = step
        return step

    def _pass(self, release: Release) -> Verdict:
        return Verdict(release, release.release == "hold")

    def _need_declared(self, kind: Any, name: str) -> None:
        """So that an undeclared release is refused for that reason, and its body is not even parsed."""
        if self.book.declaration(kind, name) is None:
            self.book.charge(kind, name, 0)


def decode_summary(body: Buffer) -> dict[str, Any]:
    """The named arrays of a contribution, numbers as 0-d arrays. Raises Invalid or Malformed."""
    from flame.wire.values import decode, named_arrays

    value = decode(body)
    if not isinstance(value, dict):
        raise Invalid(
            "A contribution is a flat dictionary of arrays and numbers.", next_step="Use contribute(name, {...})."
        )
    try:
        return dict(named_arrays(value))
    except OverflowError:
        raise Invalid("A number of the summary does not fit into 64 bits.", next_step="Send it as a float.") from None
