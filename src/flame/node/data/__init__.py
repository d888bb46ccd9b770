from flame.node.data.snapshot import ReadLimits, Snapshot, take_snapshot
from flame.node.data.sources import Source, Sources, read_sources, write_sources

__all__ = ["ReadLimits", "Snapshot", "Source", "Sources", "read_sources", "take_snapshot", "write_sources"]
