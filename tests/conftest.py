"""What all tests share: a PostgreSQL server, and a last line that says on which forms of a port its suite ran."""

from __future__ import annotations

from collections import Counter

import pytest

from postgres_world import postgres

__all__ = ["postgres"]

_ran: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _ran.update(str(value) for name, value in report.user_properties if name == "form")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for form, count in sorted(_ran.items()):
        terminalreporter.write_line(f"{form}: {count} tests passed")
