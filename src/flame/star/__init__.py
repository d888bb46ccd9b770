"""The star pattern: analyzers beside the data, one aggregator in the middle."""

from flame.star.pattern import StarAggregator, StarAnalyzer, StarModel

__all__ = ["StarAggregator", "StarAnalyzer", "StarModel"]
