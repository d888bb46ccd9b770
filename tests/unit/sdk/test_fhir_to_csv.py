"""FHIR resources as tables: rows, columns, filters, pages, and cells that need quotes."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from flame.model.errors import Invalid
from flame.sdk.fhir import fhir_to_csv


def observation(patient: str, code: str, value: float | str) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        "subject": {"reference": f"Patient/{patient}"},
        "valueQuantity": {"value": value},
    }


def bundle(*resources: dict[str, Any], next_url: str = "") -> dict[str, Any]:
    links = [{"relation": "next", "url": next_url}] if next_url else []
    return {"resourceType": "Bundle", "total": 4, "link": links, "entry": [{"resource": r} for r in resources]}


PATHS = {"col_key_seq": "code.coding.code", "value_key_seq": "valueQuantity.value", "row_key_seq": "subject.reference"}


def test_observations_become_a_row_for_each_patient_over_all_pages() -> None:
    pages = {
        "Observation?_offset=2": bundle(observation("b", "8867-4", 70), observation("c", "8302-2", 'tall, "very"'))
    }
    first = bundle(
        observation("a", "8867-4", 60),
        observation("a", "8302-2", 180),
        next_url="http://n/kong/d/fhir/Observation?_offset=2",
    )
    found = fhir_to_csv(
        first, **PATHS, input_resource="Observation", row_col_name="patient", following=pages.__getitem__
    )
    assert isinstance(found, io.StringIO)
    assert list(csv.reader(found)) == [
        ["patient", "8867-4", "8302-2"],
        ["Patient/a", "60", "180"],
        ["Patient/b", "70", ""],
        ["Patient/c", "", 'tall, "very"'],
    ]


def test_filters_keep_what_holds_one_of_the_texts() -> None:
    data = bundle(observation("a", "8867-4", 60), observation("a", "8302-2", 180), observation("b", "8867-4", 70))
    found = fhir_to_csv(
        data, **PATHS, input_resource="Observation", row_id_filters=["/a"], col_id_filters=["8867"], output_type="dict"
    )
    assert found == {"Patient/a": {"8867-4": 60}}


def test_answers_to_questionnaires_are_found_inside_others() -> None:
    inner = {"linkId": "1.1", "answer": [{"valueInteger": 3}]}
    response = {"resourceType": "QuestionnaireResponse", "id": "r1", "item": [{"linkId": "1", "item": [inner]}]}
    found = fhir_to_csv(bundle(response), "linkId", "answer.valueInteger", "QuestionnaireResponse", output_type="dict")
    assert found == {"r1": {"1": "", "1.1": 3}}


def test_other_resources_are_refused() -> None:
    with pytest.raises(Invalid, match="Observation"):
        fhir_to_csv(bundle(), "a", "b", "Patient")
