"""The records on the topics, as structs: what a producer writes and what a consumer reads.

Lives here: the shape of every record, field by field, with the text that the published JSON Schemas carry.
Promises: field names on the wire are those of the contract; event time is an ``int`` of epoch milliseconds whatever the
producer wrote (RFC 3339 with an offset, or epoch milliseconds); a struct that was encoded decodes to an equal one.
Does not: judge. A struct built by hand is not validated, and bounds on length, time and size are `schemas.decoding`'s.

Evolution: fields are only ever added, with a default; unknown fields are ignored. A change that an old reader would
misunderstand raises `SCHEMA_VERSION`, and readers refuse versions they do not know.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct, field
from msgspec.structs import force_setattr

SCHEMA_VERSION = 1

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

if TYPE_CHECKING:
    EpochMs = int
    Scalar = str | int | float | bool
    Version = int
else:
    # What may stand on the wire; `__post_init__` leaves an int, which is what the code sees.
    EpochMs = Annotated[
        Annotated[datetime, Meta(tz=True)] | int,
        Meta(description="Event time: RFC 3339 with an offset, or epoch milliseconds"),
    ]
    # 64 bits: an integer that no float holds would fail far from here, inside a model.
    Scalar = str | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float | bool
    Version = Annotated[int, Meta(extra_json_schema={"const": SCHEMA_VERSION})]

Text = Annotated[str, Meta(min_length=1)]


def epoch_ms(moment: datetime) -> int:
    """Epoch milliseconds of an aware `moment`, rounded down; exact, where going through a float is not."""
    since = moment - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


class WebVisit(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One visit to one URL: the value of `web-visits`, keyed by `visitor_id`."""

    event_id: Annotated[Text, Meta(description="Identifies the event; a second one of the same visitor is a duplicate")]
    timestamp_ms: EpochMs = field(name="timestamp")
    visitor_id: Annotated[Text, Meta(description="Who visits: a cookie, an account, a hash; also the record's key")]
    url: Annotated[Text, Meta(description="The URL visited, as the site names it; its exact characters identify it")]
    event_name: Annotated[Text, Meta(description="What happened; the name of an outcome makes it an outcome too")] = (
        "page_view"
    )
    user_id: Annotated[str | None, Meta(description="The account, where it is known")] = None
    session_id: Annotated[
        str | None, Meta(description="Decides alone what a session is; without it a gap in time does")
    ] = None
    referrer: Annotated[str | None, Meta(description="The URL that led here")] = None
    title: Annotated[str | None, Meta(description="The page's title")] = None
    user_agent: Annotated[str | None, Meta(description="The User-Agent header")] = None
    properties: Annotated[
        dict[str, Scalar], Meta(description="Attributes: strings become categories, numbers stay numbers")
    ] = field(default_factory=dict)
    schema_version: Version = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _normalise(self)


class VisitOutcome(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What came of a visitor's visits: the value of `visit-outcomes`, keyed by `visitor_id`."""

    visitor_id: Annotated[Text, Meta(description="Whose outcome it is; also the record's key")]
    outcome: Annotated[Text, Meta(description="Its name, which a task listens for")]
    timestamp_ms: EpochMs = field(name="timestamp")
    value: Annotated[bool, Meta(description="false settles the task as negative at once")] = True
    session_id: Annotated[str | None, Meta(description="Limits it to that session")] = None
    event_id: Annotated[str | None, Meta(description="Limits it to that visit")] = None
    schema_version: Version = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _normalise(self)


def _normalise(record: WebVisit | VisitOutcome) -> None:
    """Leave one form of what may be written in two. Runs once a record, so it does little."""
    written: object = record.timestamp_ms
    if isinstance(written, datetime):
        force_setattr(record, "timestamp_ms", epoch_ms(written))
    if record.session_id == "":  # trackers write it for "none"; taken for a name it would join everybody's visits
        force_setattr(record, "session_id", None)


class NextUrl(Struct, frozen=True, gc=False):
    """A URL that may follow, and how strongly it is expected."""

    url: str
    score: float


class ModelStamp(Struct, frozen=True, kw_only=True, gc=False):
    """Which state of the model gave the scores."""

    step: Annotated[int, Meta(description="Learning steps taken before this score")]
    trained_through_ms: Annotated[
        int, Meta(description="Event time, in epoch milliseconds, of the newest thing it had learned from")
    ] = field(name="trained_through")


class Source(Struct, frozen=True, kw_only=True, gc=False):
    """Where the visit was read: identifies the scored record for ever, across crashes and replays."""

    topic: str
    partition: int
    offset: int


class ScoredVisit(Struct, frozen=True, kw_only=True, gc=False):
    """One visit, scored: the value of `scored-visits`, on the partition its visit came from.

    Every field is always present, so that a consumer in any language needs no defaults.
    """

    event_id: str
    visitor_id: str
    session_id: str
    timestamp_ms: Annotated[int, Meta(description="The visit's event time, epoch milliseconds")] = field(
        name="timestamp"
    )
    url: str
    scored_at_ms: Annotated[int, Meta(description="When it was scored, epoch milliseconds")] = field(name="scored_at")
    scores: Annotated[dict[str, float], Meta(description="Task to probability")]
    baseline: Annotated[
        dict[str, float], Meta(description="Task to probability: the plain baseline's answer to the same question")
    ]
    next_urls: Annotated[list[NextUrl], Meta(description="What may be visited next, best first; may be empty")] = field(
        default_factory=list
    )
    novelty: Annotated[
        float, Meta(description="Share of recent visits that surprised less, 0 to 1: higher is stranger")
    ]
    model: ModelStamp
    source: Source
    flags: Annotated[tuple[str, ...], Meta(description="new_url, new_visitor, late, duplicate, …")] = ()
    schema_version: Version = SCHEMA_VERSION
