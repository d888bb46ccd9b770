"""FLAME's own contract between a program and its node: what the original SDK sends, and what it expects back.

A program that was written for FLAME speaks HTTP to ``nginx-$DEPLOYMENT_NAME`` and is spoken to on port 8000. Both ways
pass the run's sockets; a relay inside the sandbox copies the bytes. Everything else (who may, what leaves) is decided
by the same guard, channel and manifest as for programs with our own SDK.
"""

from flame.node.contract.run import ContractRun

__all__ = ["ContractRun"]
