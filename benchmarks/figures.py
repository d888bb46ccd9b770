"""A figure of a benchmark: the median of what was measured, its range, and the goal."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

MIB = 1 << 20


@dataclass
class Figure:
    name: str
    value: float
    min: float
    max: float
    unit: str
    goal: str


def figure(name: str, values: list[float], unit: str, goal: str, scale: float = 1.0) -> Figure:
    scaled = [value * scale for value in values]
    return Figure(name, round(statistics.median(scaled), 2), round(min(scaled), 2), round(max(scaled), 2), unit, goal)
