"""The published schemas are those of the structs, and accept what the decoder accepts."""

import json
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from schemas.decoding import BadEvent, Decoder
from schemas.jsonschema import EXAMPLES, FOLDER, schemas, text
from schemas.records import ScoredVisit, VisitOutcome, WebVisit

VISIT: dict[str, Any] = {"event_id": "e", "timestamp": 1, "visitor_id": "v", "url": "u"}
NAMES = ["web-visit.schema.json", "visit-outcome.schema.json", "scored-visit.schema.json"]


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((FOLDER / name).read_text()), format_checker=FormatChecker())


def test_the_files_are_current() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(NAMES)
    for name, schema in schemas().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text(schema), "run python -m schemas.jsonschema"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_schema_whose_examples_validate(name: str) -> None:
    schema = json.loads((FOLDER / name).read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["examples"]
    for example in schema["examples"]:
        validator(name).validate(example)


def test_the_examples_are_read_back_as_they_were_written() -> None:
    for record, examples in EXAMPLES.items():
        for example in examples:
            assert msgspec.json.decode(msgspec.json.encode(example), type=record) == example


def test_required_fields_are_those_of_the_contract() -> None:
    required = {name: set(schema["required"]) for name, schema in schemas().items()}
    assert required["web-visit.schema.json"] == {"event_id", "timestamp", "visitor_id", "url"}
    assert required["visit-outcome.schema.json"] == {"visitor_id", "outcome", "timestamp"}
    assert required["scored-visit.schema.json"] == set(ScoredVisit.__struct_encode_fields__)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"timestamp": "2026-01-01T00:00:00+02:00"},
        {"timestamp": True},
        {"timestamp": 1.5},
        {"url": ""},
        {"url": 1},
        {"title": None},
        {"schema_version": 2},
        {"properties": {"a": 1, "b": "x", "c": 0.5, "d": False}},
        {"properties": {"a": [1]}},
        {"something": {"else": []}},
    ],
)
def test_schema_and_decoder_agree(changes: dict[str, Any]) -> None:
    value = VISIT | changes
    try:
        Decoder().visit(None, json.dumps(value).encode(), (), 1_900_000_000_000)
        read = True
    except BadEvent:
        read = False
    assert validator("web-visit.schema.json").is_valid(value) is read


def test_the_names_on_the_wire_are_the_published_ones() -> None:
    assert set(schemas()["web-visit.schema.json"]["properties"]) == set(WebVisit.__struct_encode_fields__)
    assert set(schemas()["visit-outcome.schema.json"]["properties"]) == set(VisitOutcome.__struct_encode_fields__)
