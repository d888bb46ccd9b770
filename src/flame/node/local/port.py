"""What the local interface asks of the node."""

from __future__ import annotations

from typing import Any, Protocol

Document = dict[str, Any]


class NodeService(Protocol):
    """The running node, as stewards and administrators meet it. Every method may raise FlameError.

    steward: the name of the account that asks; the interface has checked it and its role.
    """

    async def status(self) -> Document: ...

    async def analyses(self) -> list[Document]: ...

    async def analysis(self, id: str) -> Document: ...

    async def code(self, id: str) -> list[Document]:
        """path, size, sha256 and text (None where it is not UTF-8) of each file, as the hub has them at this moment.

        Raises DoesNotMatchApproval for a file that is not the manifest's.
        """
        ...

    async def decide(
        self,
        analysis: str,
        decision: str,
        steward: str,
        comment: str,
        days: int | None,
        confirm_unsigned: bool,
        seen_digest: str,
        conditions: Document,
    ) -> Document:
        """decision: approved or rejected. days: how long an approval holds; None: the default. conditions: narrow it.

        seen_digest: the manifest that the steward has looked at; when the hub shows another one by now, it is refused.
        """
        ...

    async def start(self, analysis: str, steward: str) -> Document: ...

    async def projects(self) -> list[Document]: ...

    async def project(self, id: str) -> Document:
        """The proposal, its digest and what was decided here."""
        ...

    async def decide_project(
        self, project: str, decision: str, steward: str, comment: str, seen_digest: str, days: int | None
    ) -> Document: ...

    async def comment_project(self, project: str, comment: str) -> Document: ...

    async def members(self) -> list[Document]: ...

    async def confirm(self, fingerprint: str, kind: str, name: str, steward: str) -> Document:
        """kind: node, researcher or result; empty: what the hub calls it, which the steward is shown."""
        ...

    async def revoke(self, member: str, reason: str, steward: str) -> Document: ...

    async def keys(self) -> Document: ...

    async def rotate_key(self, steward: str) -> Document: ...

    async def runs(self) -> list[Document]: ...

    async def run(self, id: str) -> Document: ...

    async def stop(self, run: str, steward: str, reason: str) -> Document: ...

    async def output(self, run: str) -> str: ...

    async def releases(self) -> list[Document]: ...

    async def release(self, id: str, decision: str, steward: str) -> Document:
        """decision: released or rejected."""
        ...
