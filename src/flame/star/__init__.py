"""The star pattern: analyzers beside the data, one aggregator in the middle."""

from flame.star.pattern import StarAggregator, StarAnalyzer, StarLocalDPModel, StarModel
from flame.star.tester import StarModelTester

__all__ = ["StarAggregator", "StarAnalyzer", "StarLocalDPModel", "StarModel", "StarModelTester"]
