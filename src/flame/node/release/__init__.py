"""The sealed channel of a run: what leaves and what arrives, numbered, durable, and the same again after a crash."""

from flame.node.release.channel import Channel, Item
from flame.node.release.keys import RunKeys
from flame.node.release.party import Parties, Party

__all__ = ["Channel", "Item", "Parties", "Party", "RunKeys"]
