"""The entries. Adding a method here makes it known to the hub's pages, the CLI and the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ParameterType = Literal["number", "integer", "text", "flag", "list"]
Family = Literal["descriptive", "tests", "regression", "survival", "evaluation", "multivariate", "learning"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """``type`` is one of the manifest's. ``default`` is None for a parameter that must be given."""

    name: str
    type: ParameterType
    description: str
    required: bool = False
    default: bool | int | float | str | tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    title: str
    family: Family
    description: str
    parameters: tuple[Parameter, ...]
    program: str
    """Module whose source is the ready program."""
    sums: tuple[str, ...]
    """Names of the sums it takes."""
    messages: tuple[str, ...]
    """Categories of the messages that the aggregator sends to the data nodes."""


_LOGISTIC = Entry(
    name="logistic",
    title="Logistic regression",
    family="regression",
    description=(
        "Maximum-likelihood logistic regression by Fisher scoring over the sums of all hospitals: the coefficients, "
        "standard errors and log-likelihood of the pooled data."
    ),
    parameters=(
        Parameter(
            "outcome", "text", "The column that holds the outcome: 0 and 1, or two levels of text.", required=True
        ),
        Parameter("covariates", "list", "The columns that explain it: numbers.", required=True),
        Parameter("levels", "list", "For an outcome of text: its two levels, first without, then with the event."),
        Parameter(
            "standardise",
            "flag",
            "Give each covariate mean 0 and standard deviation 1 over all hospitals; two rounds more.",
            default=False,
        ),
    ),
    program="flame.methods.programs.logistic_regression",
    sums=("sum",),
    messages=("question",),
)

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in (_LOGISTIC,)}
