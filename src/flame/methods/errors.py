"""What can be wrong with a model: errors of the one family, with the column that a person must look at.

Invalid
├── Singular    the covariates do not determine the coefficients
└── Separated   the covariates predict the outcome perfectly: there is no finite estimate
"""

from __future__ import annotations

from flame.model.errors import Invalid


class Singular(Invalid):
    """``fields["column"]``: the first column that the ones before it determine."""

    code = "singular"

    def __init__(self, column: str) -> None:
        super().__init__(
            f"The column '{column}' is constant, or follows from the other columns.",
            next_step="Leave it out: its coefficient is not determined.",
            column=column,
        )


class Separated(Invalid):
    """``fields["column"]``: the column with the most weight in the direction that separates the outcomes."""

    code = "separated"

    def __init__(self, column: str) -> None:
        super().__init__(
            f"The outcome is separated perfectly, most of all by '{column}': the likelihood has no maximum.",
            next_step=f"Look for a coding of the outcome in '{column}', join rare levels, or use a penalised method.",
            column=column,
        )
