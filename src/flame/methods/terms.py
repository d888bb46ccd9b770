"""The columns of a model: from a list of covariates, or from a formula such as ``died ~ age + C(sex) + bmi``.

A formula is data that a manifest names, so nothing of it is executed as it stands: each of its factors is a column,
``C(column)``, or arithmetic and a few functions over columns, and anything else is refused before it reaches
formulaic, which then makes the columns. What a function of a column gives must follow from the row alone: functions
that look at the whole column first (``center``, ``scale``, ``bs``) would do so at each hospital for itself.
"""

from __future__ import annotations

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import Layout, Rows, Variable, merged
from flame.model.errors import HasInfinite, Invalid, Unavailable

Floats = NDArray[np.float64]

INTERCEPT = "(Intercept)"
FUNCTIONS = ("log", "log10", "log2", "log1p", "exp", "sqrt", "abs")
MAX_COLUMNS = 300
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd)
_MAX_FORMULA = 2000


class Terms(ABC):
    """Columns that a layout decides. ``intercept``: whether the first of them is the constant."""

    variables: tuple[Variable, ...]
    intercept: bool

    @abstractmethod
    def names(self, layout: Layout) -> tuple[str, ...]: ...

    @abstractmethod
    def sources(self, layout: Layout) -> tuple[str, ...]:
        """For each column the table's column that it comes from, for errors."""

    @abstractmethod
    def matrix(self, rows: Rows) -> Floats:
        """Complete rows only, shape (n, k)."""


class Covariates(Terms):
    """Columns as they are; a category by treatment contrasts against its first level, or the one of ``references``."""

    def __init__(self, covariates: Sequence[str], *, references: Sequence[str] = (), intercept: bool = True) -> None:
        if len(set(covariates)) != len(covariates):
            raise Invalid("A covariate is named twice.")
        self._covariates = tuple(covariates)
        self._references = dict(_reference(text) for text in references)
        unknown = self._references.keys() - set(covariates)
        if unknown:
            raise Invalid(f"A reference level is given for '{sorted(unknown)[0]}', which is no covariate.")
        self.variables = tuple(Variable(c, "category" if c in self._references else "either") for c in covariates)
        self.intercept = intercept

    def names(self, layout: Layout) -> tuple[str, ...]:
        return tuple(name for name, _ in self._columns(layout))

    def sources(self, layout: Layout) -> tuple[str, ...]:
        return tuple(source for _, source in self._columns(layout))

    def matrix(self, rows: Rows) -> Floats:
        parts = [np.ones((rows.n, 1))] if self.intercept else []
        for name in self._covariates:
            if name in rows.numbers:
                parts.append(rows.numbers[name][:, np.newaxis])
            else:
                kept = self._contrasts(name, rows.levels[name])
                parts.append((rows.codes[name][:, np.newaxis] == kept) * 1.0)
        return np.hstack(parts) if parts else np.empty((rows.n, 0))

    def _columns(self, layout: Layout) -> list[tuple[str, str]]:
        found = [(INTERCEPT, INTERCEPT)] if self.intercept else []
        for name in self._covariates:
            levels = layout[name]
            if levels is None:
                found.append((name, name))
            else:
                found += [(f"{name}[{levels[code]}]", name) for code in self._contrasts(name, levels)]
        return found

    def _contrasts(self, name: str, levels: Sequence[str]) -> NDArray[np.intp]:
        reference = self._references.get(name)
        if reference is not None and reference not in levels:
            raise Invalid(f"'{reference}' is not a level of '{name}': it has {', '.join(levels)}.")
        code = 0 if reference is None else levels.index(reference)
        return np.array([i for i in range(len(levels)) if i != code], dtype=np.intp)


class Formula(Terms):
    """The right side of a formula, read by formulaic. ``outcome``: the column on its left side, if it has one."""

    def __init__(self, formula: str) -> None:
        self.text = formula
        self.outcome, right = _sides(formula)
        self._parsed = _parse(right)
        self.intercept = any(not term.factors or str(term) == "1" for term in self._parsed)
        found: dict[str, Variable] = {}
        for term in self._parsed:
            for factor in term.factors:
                for variable in _variables(str(factor.expr)):
                    known = found.get(variable.name)
                    found[variable.name] = merged([known, variable])[0] if known else variable
        self.variables = tuple(found.values())
        self._specs: dict[tuple[tuple[str, Any], ...], Any] = {}

    def names(self, layout: Layout) -> tuple[str, ...]:
        return tuple(_readable(str(name)) for name in self._spec(layout).column_names)

    def sources(self, layout: Layout) -> tuple[str, ...]:
        found = []
        for term, columns in self._spec(layout).term_indices.items():
            variables = [v.name for factor in term.factors for v in _variables(str(factor.expr))]
            found += [variables[0] if variables else INTERCEPT] * len(columns)
        return tuple(found)

    def matrix(self, rows: Rows) -> Floats:
        import pandas as pd

        layout: dict[str, Any] = dict.fromkeys(rows.numbers) | dict(rows.levels)
        spec = self._spec({v.name: layout[v.name] for v in self.variables})
        if rows.n == 0:
            return np.empty((0, len(spec.column_names)))
        columns: dict[str, Any] = {name: rows.numbers[name] for name in rows.numbers}
        for name, levels in rows.levels.items():
            columns[name] = pd.Categorical.from_codes(rows.codes[name], categories=list(levels))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            made = np.asarray(spec.get_model_matrix(pd.DataFrame(columns), context=_context()), dtype=np.float64)
        made = made.reshape(rows.n, len(spec.column_names))
        infinite = ~np.isfinite(made).all(axis=0)
        if infinite.any():
            raise HasInfinite(self.sources(spec.layout)[int(infinite.argmax())])
        return made

    def _spec(self, layout: Layout) -> Any:
        """What formulaic makes of a table that has each level once: the same at each hospital."""
        mine = {v.name: layout[v.name] for v in self.variables}
        key = tuple(mine.items())
        if key not in self._specs:
            import formulaic
            import pandas as pd

            length = max([2, *(len(levels) for levels in mine.values() if levels)])
            frame = pd.DataFrame(index=range(length))
            for name, levels in mine.items():
                if levels is None:
                    frame[name] = np.linspace(1.0, 2.0, length)
                elif not levels:
                    raise Invalid(f"The category '{name}' has no value at any hospital.")
                else:
                    frame[name] = pd.Categorical([levels[i % len(levels)] for i in range(length)], categories=levels)
            try:
                spec = formulaic.model_matrix(
                    formulaic.Formula(self._parsed), frame, context=_context(), na_action="ignore"
                ).model_spec
            except formulaic.errors.FormulaicError as error:
                raise Invalid(f"The formula cannot be used with these data: {error}") from None
            if len(spec.column_names) > MAX_COLUMNS:
                raise Invalid(f"The formula makes {len(spec.column_names)} columns; at most {MAX_COLUMNS} are allowed.")
            object.__setattr__(spec, "layout", mine)
            self._specs[key] = spec
        return self._specs[key]


def terms(
    covariates: Sequence[str] | None, formula: str | None, references: Sequence[str] = (), intercept: bool = True
) -> tuple[Terms, str | None]:
    """The terms of a model, and the outcome that a formula names. Raises Invalid unless exactly one way is used."""
    if (covariates is None) == (formula is None):
        raise Invalid("Give either covariates or a formula.", next_step="Such as formula='died ~ age + C(sex)'.")
    if formula is None:
        assert covariates is not None
        return Covariates(covariates, references=references, intercept=intercept), None
    if references:
        raise Invalid("A formula names reference levels itself.", next_step="Write C(sex, contr.treatment('male')).")
    parsed = Formula(formula)
    if not intercept and parsed.intercept:
        raise Invalid("A formula leaves its constant out itself.", next_step="Write '… ~ 0 + age'.")
    return parsed, parsed.outcome


def _sides(formula: str) -> tuple[str | None, str]:
    if len(formula) > _MAX_FORMULA:
        raise Invalid(f"The formula is longer than {_MAX_FORMULA} characters.")
    left, tilde, right = formula.partition("~")
    if not tilde:
        return None, formula
    if "~" in right or not right.strip():
        raise Invalid(f"The formula {formula[:200]!r} is not OUTCOME ~ TERMS.")
    name = left.strip()
    if not name:
        return None, right
    unquoted = name[1:-1] if name.startswith("`") and name.endswith("`") else name
    if "`" in unquoted or (unquoted == name and not re.fullmatch(r"[^\W\d][\w.]*", name)):
        raise Invalid(
            f"The formula's left side {name[:100]!r} is not the name of a column.",
            next_step="Transform the outcome at the source; put a name with blanks into back-quotes.",
        )
    return unquoted, right


def _parse(right: str) -> Any:
    try:
        import formulaic
    except ImportError:
        raise Unavailable(
            "Formulas need formulaic, which is not installed here.",
            next_step="pip install 'flame-federated[methods]', or name covariates instead.",
        ) from None
    try:
        parsed = formulaic.Formula(right)
        found = list(parsed)
    except (formulaic.errors.FormulaicError, SyntaxError, TypeError, ValueError) as error:
        raise Invalid(
            f"The formula {right.strip()[:200]!r} cannot be read: {str(error).splitlines()[0][:300]}"
        ) from None
    if any(not hasattr(term, "factors") for term in found):
        raise Invalid("The formula has several parts; one is needed.")
    return parsed


def _variables(expression: str) -> list[Variable]:
    """The columns of a factor. Raises Invalid for anything but columns, C() and the functions that are allowed."""
    if re.fullmatch(r"[^\W\d][\w.]*", expression) or expression in ("1", "0"):
        return [] if expression in ("1", "0") else [Variable(expression)]
    quoted: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        name = f"_quoted_{len(quoted)}"
        quoted[name] = match[0][1:-1]
        return name

    plain = re.sub(r"`[^`]+`", stand_in, expression)
    try:
        tree = ast.parse(plain.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # formulaic hands a quoted name on without its quotes
        if not re.search(r"[()\[\]{}=+*/\\'\"`;]", expression):
            return [Variable(expression)]
        raise _refused(expression) from None
    if isinstance(tree, ast.Name):
        return [Variable(quoted.get(tree.id, tree.id))]
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "C":
        return [_category(tree, expression, quoted)]
    names: dict[str, Variable] = {}
    _check_arithmetic(tree, expression, names, quoted)
    return list(names.values())


def _category(tree: ast.Call, expression: str, quoted: dict[str, str]) -> Variable:
    if not tree.args or not isinstance(tree.args[0], ast.Name) or len(tree.args) > 2 or tree.keywords:
        raise _refused(expression)
    if len(tree.args) == 2:
        contrast = tree.args[1]
        known = (
            isinstance(contrast, ast.Call)
            and isinstance(contrast.func, ast.Attribute)
            and isinstance(contrast.func.value, ast.Name)
            and contrast.func.value.id == "contr"
            and contrast.func.attr in ("treatment", "sum", "helmert", "poly")
            and all(isinstance(a, ast.Constant) for a in contrast.args)
            and all(k.arg == "base" and isinstance(k.value, ast.Constant) for k in contrast.keywords)
        )
        if not known:
            raise _refused(expression)
    name = tree.args[0].id
    return Variable(quoted.get(name, name), "category")


def _check_arithmetic(node: ast.expr, expression: str, names: dict[str, Variable], quoted: dict[str, str]) -> None:
    match node:
        case ast.Name(id=name):
            names[name] = Variable(quoted.get(name, name), "number")
        case ast.Constant(value=int() | float() as number):
            if isinstance(number, bool) or abs(float(number)) > 1e6:
                raise _refused(expression)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            if isinstance(op, ast.Pow) and not isinstance(right, ast.Constant):
                raise _refused(expression)
            _check_arithmetic(left, expression, names, quoted)
            _check_arithmetic(right, expression, names, quoted)
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _OPERATORS):
            _check_arithmetic(operand, expression, names, quoted)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in (*FUNCTIONS, "I"):
            _check_arithmetic(argument, expression, names, quoted)
        case _:
            raise _refused(expression)


def _refused(expression: str) -> Invalid:
    return Invalid(
        f"The formula's part {expression[:100]!r} is not allowed.",
        next_step=f"Use columns, C(column), I(arithmetic) and {', '.join(FUNCTIONS)} of columns; "
        "what looks at the whole column (center, scale, bs) does not stand for all hospitals.",
    )


def _context() -> dict[str, Any]:
    """What a factor may call, and nothing else: formulaic's own C, I and contr, and functions of one number."""
    return {name: getattr(np, name) for name in FUNCTIONS}


def _reference(text: str) -> tuple[str, str]:
    name, equals, level = text.partition("=")
    if not equals or not name or not level:
        raise Invalid(f"The reference level {text[:100]!r} is not COLUMN=LEVEL.")
    return name, level


def _readable(name: str) -> str:
    """formulaic's ``C(sex)[T.m]`` as ``sex[m]``."""
    if name == "Intercept":
        return INTERCEPT
    return re.sub(r"C\(\s*([^(),]+?)\s*(?:,[^\[]*)?\)(?=\[)", r"\1", name).replace("[T.", "[")
