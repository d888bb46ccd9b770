"""Log lines that the original SDK writes by itself: their words are known, so they may leave as the approved code's do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

LINES: Final = frozenset(
    {
        "Starting FlameCoreSDK",
        "Extracting node config",
        "Connecting to nginx...success",
        "Connecting to MessageBroker...success",
        "Connecting to PO service...success",
        "Connecting to ResultService...success",
        "Connecting to DataApi...success",
        "Starting FlameApi thread...success",
        "FlameCoreSDK ready",
        "Analyzer started",
        "Aggregator started",
        "Awaiting contact with aggregator node...",
        "Awaiting contact with aggregator node...success",
        "Awaiting contact with analyzer nodes...",
        "Awaiting contact with analyzer nodes...success",
        "sending intermediate result",
        "Node finished successfully",
        "Analysis finished!",
    }
)
_FROM: Final = re.compile(r"received message from ([0-9a-f-]{36})")


def is_own_line(text: str, participants: Sequence[str]) -> bool:
    line = text.strip()
    found = _FROM.fullmatch(line)
    return line in LINES or (found is not None and found.group(1) in participants)
