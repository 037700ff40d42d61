"""JSON Schemas (draft 2020-12) of the values on the topics, generated from the structs so that they cannot disagree.

`python -m schemas.jsonschema` writes them to `schemas/json/`, from where they are served and packaged; a test fails
when they are not current. `rejected-visits` has none: its values are whatever came, and the reason is in the headers.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec

from schemas.records import ModelStamp, NextUrl, ScoredVisit, Source, VisitOutcome, WebVisit

FOLDER = Path(__file__).parent / "json"

_START_MS = 1_767_262_500_000
EXAMPLES: dict[type[msgspec.Struct], list[msgspec.Struct]] = {
    WebVisit: [
        WebVisit(
            event_id="5f0c1d7e",
            timestamp_ms=_START_MS,
            visitor_id="visitor-17",
            url="https://shop.example/shoes/trail?colour=red",
            referrer="https://search.example/",
            title="Trail shoes",
            properties={"device": "phone", "price": 89.5, "in_stock": True},
        ),
        WebVisit(event_id="5f0c1d7f", timestamp_ms=_START_MS, visitor_id="visitor-18", url="https://shop.example/"),
    ],
    VisitOutcome: [
        VisitOutcome(visitor_id="visitor-17", outcome="purchased", timestamp_ms=_START_MS + 300_000),
        VisitOutcome(visitor_id="visitor-18", outcome="purchased", timestamp_ms=_START_MS + 300_000, value=False),
    ],
    ScoredVisit: [
        ScoredVisit(
            event_id="5f0c1d7e",
            visitor_id="visitor-17",
            session_id="visitor-17@1767262500000",
            timestamp_ms=_START_MS,
            url="https://shop.example/shoes/trail?colour=red",
            scored_at_ms=_START_MS + 12,
            scores={"purchased": 0.173},
            baseline={"purchased": 0.121},
            next_urls=[NextUrl("https://shop.example/cart", 0.31)],
            novelty=0.4,
            model=ModelStamp(step=4211, trained_through_ms=_START_MS - 900),
            source=Source(topic="web-visits", partition=3, offset=90210),
            flags=("new_visitor",),
        )
    ],
}
_FILES: dict[type[msgspec.Struct], str] = {
    WebVisit: "web-visit",
    VisitOutcome: "visit-outcome",
    ScoredVisit: "scored-visit",
}


def schemas() -> dict[str, dict[str, Any]]:
    """File name to schema, for each record that has a JSON value."""
    return {f"{name}.schema.json": _schema(record, name) for record, name in _FILES.items()}


def text(schema: dict[str, Any]) -> str:
    """A schema as it stands in its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _schema(record: type[msgspec.Struct], name: str) -> dict[str, Any]:
    generated = msgspec.json.schema(record)
    definitions = generated["$defs"]
    # The record itself stands at the top, where readers and code generators look for it; what it is made of in `$defs`.
    whole = definitions.pop(record.__name__)
    for described in (whole, *definitions.values()):
        described["description"] = inspect.cleandoc(described["description"])
    if not record.__struct_config__.omit_defaults:  # written by us, with every field
        whole["required"] = list(whole["properties"])
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:url2vec:{name}:{whole['properties']['schema_version']['default']}",
        **whole,
        "examples": [msgspec.to_builtins(example) for example in EXAMPLES[record]],
    }
    if definitions:
        schema["$defs"] = definitions
    return schema


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (FOLDER / name).write_text(text(schema), encoding="utf-8")


if __name__ == "__main__":
    main()
