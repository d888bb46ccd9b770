"""How a node joins a hub: keys made here, a one-time token, a fingerprint that people compare."""

from flame.node.enrolment.init import init

__all__ = ["init"]
