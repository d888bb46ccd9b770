"""Hooks by which tests break a promise on purpose, to see that it is noticed. In production there are none.

A hook needs ``FLAME_TEST_HOOKS=1`` and a variable of its own, and a node whose policy says that it holds public data
only. It is said as an alarm in the node's log; a node with patients' data refuses to go on with one.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from flame.model.errors import Refused

HOOKS: Final = "FLAME_TEST_HOOKS"
UNSEALED: Final = "FLAME_TEST_UNSEALED"
"""``1``: what is sealed is handed to the hub in clear as well (``flame.node.release.channel``)."""
WEAKEN: Final = "FLAME_TEST_WEAKEN"
"""A promise of the sandbox, which is then not kept (``flame.node.service``)."""

_log = logging.getLogger("flame.node")


def hook(variable: str, *, public_data: bool) -> str:
    """The hook's value, "" when it is not set. Raises Refused where anything but public data could be touched."""
    value = os.environ.get(variable, "")
    if not value or os.environ.get(HOOKS) != "1":
        return ""
    if not public_data:
        raise Refused(
            f"The test hook {variable} is set at a node that may hold patients' data.",
            next_step=f"Take {HOOKS} and {variable} out of the node's environment.",
        )
    _log.critical(
        "ALARM: the test hook %s=%s breaks a promise on purpose; this node must hold no real data", variable, value
    )
    return value
