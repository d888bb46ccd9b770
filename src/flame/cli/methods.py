"""``flame methods …``: what the catalogue has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors
from flame.model.errors import NotFound

if TYPE_CHECKING:
    from flame.methods.catalogue import Entry, Parameter

app = typer.Typer(
    name="methods", help="The catalogue of ready methods: what there is, and what each takes.", no_args_is_help=True
)


@app.command(name="list")
def list_methods(json: Json = False) -> None:
    """All methods, by family, with how far each is from its pooled reference at most."""
    with told_errors(json):
        from flame.methods.catalogue import CATALOGUE

        rows = [_row(entry) for entry in CATALOGUE.values()]
        Output(json).rows(rows, ("name", "family", "title", "exact to"), "The catalogue is empty.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A method's name, as `flame methods list` shows it.")], json: Json = False
) -> None:
    """One method: what it does, its parameters, and against what it was checked."""
    with told_errors(json):
        from flame.methods.catalogue import CATALOGUE

        if name not in CATALOGUE:
            raise NotFound(
                f"The catalogue has no method '{name[:100]}'.", next_step="`flame methods list` shows what there is."
            )
        Output(json).document(_document(CATALOGUE[name]), CATALOGUE[name].title)


def _row(entry: Entry) -> dict[str, Any]:
    from flame.methods.catalogue import badges_of

    found = badges_of(entry.name)
    return {
        "name": entry.name,
        "family": entry.family,
        "title": entry.title,
        "exact to": _exactness(max(b.deviation for b in found)) if found else None,
    }


def _exactness(deviation: float) -> str:
    return f"{deviation:.0e}" if deviation else "every digit"


def _document(entry: Entry) -> dict[str, Any]:
    from flame.methods.catalogue import badges_of

    return {
        "name": entry.name,
        "family": entry.family,
        "description": entry.description,
        "parameters": [_parameter(parameter) for parameter in entry.parameters],
        "exactness": [
            {
                "data": b.data,
                "quantity": b.quantity,
                "sites": list(b.sites),
                "oracle": b.oracle,
                "deviation": b.deviation,
                "tolerance": b.tolerance,
            }
            for b in badges_of(entry.name)
        ],
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": parameter.name,
        "type": f"list of {parameter.of}s" if parameter.type == "list" else parameter.type,
        "required": parameter.required,
    }
    if parameter.default is not None:
        found["default"] = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    if parameter.options:
        found["options"] = list(parameter.options)
    return found | {"description": parameter.description}
