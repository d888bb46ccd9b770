"""The node's connection to the hub. The node dials; nothing dials the node."""

from flame.node.link.bulk import Bulk, Unbroken
from flame.node.link.link import Link

__all__ = ["Bulk", "Link", "Unbroken"]
