"""An analysis' program, fetched from the hub and checked against its manifest: what a run executes and a steward reads."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from flame.model.errors import DoesNotMatchApproval, Malformed, NotFound, Refused
from flame.model.manifest import MAX_FILES, CodeFile, Manifest

if TYPE_CHECKING:
    from flame.node.link import Link

MAX_SHOWN: Final = 32 << 20
"""Bytes of a program that are shown: all of them pass through memory at once."""


async def fetch_program(link: Link, manifest: Manifest) -> AsyncIterator[tuple[CodeFile, bytes]]:
    """Each file of the manifest and its bytes, in the manifest's order.

    Raises NotFound for a file that the hub has not got, DoesNotMatchApproval (or Refused, for more bytes than the
    manifest names) for one that is another than the manifest's, Unavailable without a hub.
    """
    stored = await _stored_files(link, manifest)
    for file in manifest.code:
        if file.path not in stored:
            raise NotFound(
                f"The hub has no file '{file.path}' of the manifest's code.",
                next_step="The researcher submits the analysis again.",
            )
        content = await link.download(f"/storage/bucket-files/{stored[file.path]}/stream", file.size)
        _check_file(file, content)
        yield file, content


async def show_program(link: Link, manifest: Manifest) -> list[dict[str, Any]]:
    """For a steward: path, size (bytes), sha256 (hex) and text of each file; text is None where it is not UTF-8.

    Raises what ``fetch_program`` raises, and Refused for a program of more than ``MAX_SHOWN`` bytes.
    """
    total = sum(file.size for file in manifest.code)
    if total > MAX_SHOWN:
        raise Refused(
            f"The program has {total} bytes; the node shows at most {MAX_SHOWN}.",
            next_step="Ask the researcher for a smaller program, or for the files, and compare their SHA-256 with the manifest.",
        )
    return [
        {"path": file.path, "size": file.size, "sha256": file.sha256, "text": _text(content)}
        async for file, content in fetch_program(link, manifest)
    ]


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


async def _stored_files(link: Link, manifest: Manifest) -> dict[str, str]:
    """Path -> id of the hub's files; which of them are the approved ones is checked when they have come."""
    stored: dict[str, str] = {}
    asked = 0
    while asked <= 2 * MAX_FILES:  # code and results; a hub that never ends its list does not keep the node busy
        answer = await link.request(
            "GET",
            f"/core/analysis-bucket-files?filter[analysisId]={manifest.analysis}&include=analysisBucket&page[limit]=50&page[offset]={asked}",
        )
        try:
            rows, total = list(answer["data"]), int(answer["meta"]["total"])
            stored.update(
                (str(row["path"]), str(row["bucketFileId"]))
                for row in rows
                if (row.get("analysisBucket") or {}).get("type", "CODE") == "CODE"
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Malformed(
                "The hub's list of the analysis' files cannot be read.", next_step="Tell the hub's operator."
            ) from None
        asked += len(rows)
        if not rows or asked >= total:
            break
    return stored


def _check_file(file: CodeFile, content: bytes) -> None:
    if len(content) != file.size or hashlib.sha256(content).hexdigest() != file.sha256:
        raise DoesNotMatchApproval(
            f"The file '{file.path}' that the hub gives is not the one that the manifest names (size or SHA-256 differ).",
            next_step="Nothing has run. Tell the hub's operator; the researcher submits the analysis again.",
        )
