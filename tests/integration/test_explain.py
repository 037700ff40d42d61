"""`url2vec explain` on a running system: the answer that went out, what led to it, and what the model says now."""

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.embedded import EmbeddedServers
from models.features import EXPERTS
from streams import topics
from streams.cli import main
from streams.history import find
from streams.settings import Topics, resolve
from tests.system import BEGIN_MS, Answered, Sent, System, read_topics, visit

SITE = "https://shop.example"
SETTINGS = 'snapshot_interval = "200ms"\ncheckpoint_interval = "200ms"'
WALKS, STEPS = 120, 4
EVIL = "\x1b[31m[bold]evil[/bold]\n"
GIVEN = {
    "referrer": f"{SITE}/from",
    "user_agent": f"agent {EVIL}",
    "properties": {"size": "XL", EVIL: EVIL, "price": 7},
}


def walks(names: Topics) -> list[Sent]:
    """Sessions a minute apart; in every other one the third visit is the last."""
    return [
        visit(names.visits, f"v{walk}", f"{walk}-{step}", BEGIN_MS + walk * 60_000 + step * 1_000, f"{SITE}/{step}/{walk % 7}",
              **GIVEN)
        for walk in range(WALKS)
        for step in range(STEPS - walk % 2)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that has learned from some hundred visits; its worker has stopped."""
    with EmbeddedServers() as servers:
        names = Topics(*(f"{topic}-explained" for topic in ("visits", "outcomes", "scored", "rejected")))
        topics.create(servers.kafka, names.all, 4)
        evil = visit(names.visits, f"v{EVIL}", f"e{EVIL}", BEGIN_MS + WALKS * 60_000, f"{SITE}/{EVIL}", **GIVEN)
        sent = [*walks(names), evil]
        with System(tmp_path_factory.mktemp("explained"), servers.kafka, servers.redis, names, SETTINGS) as system:
            system.start()
            system.publish(sent)
            system.until_scored(len(sent))
            system.stop()
            yield system


def run(system: System, *arguments: str) -> Answered:
    """`url2vec explain …` on this system, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["explain", *arguments, "--config", str(system.config), *system.addresses])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return Answered(code, out.getvalue(), err.getvalue())


def answer_to(system: System, event_id: str) -> dict[str, Any]:
    found = read_topics(system.kafka, [system.names.scored], 4)[system.names.scored]
    answers = [json.loads(record.value or b"") for record in found]
    return next(answer for answer in answers if answer["event_id"] == event_id)


def test_an_explanation_is_one_object_with_what_went_out_and_what_is_said_now(taught: System) -> None:
    answer = run(taught, "110-2", "-k", "3", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert len(answer.out.splitlines()) == 1
    told, sent = answer.json, answer_to(taught, "110-2")
    for name in ("event_id", "visitor_id", "session_id", "timestamp", "url"):
        assert told[name] == sent[name]
    assert told["then"] == {k: sent[k] for k in ("scored_at", "scores", "baseline", "novelty", "model", "flags")}
    assert [v["event_id"] for v in told["visits"]] == ["110-0", "110-1", "110-2"]
    assert told["missing"] == []
    assert told["now"]["model"]["step"] > told["then"]["model"]["step"]
    assert told["now"]["tasks"].keys() == {"continues"}
    now = told["now"]["tasks"]["continues"]
    assert now.keys() == {"score", "baseline", "experts", "contributions", "nearest"}
    assert now["experts"].keys() == set(EXPERTS)
    sizes = [abs(one["logits"]) for one in now["contributions"]]
    assert sizes
    assert sizes == sorted(sizes, reverse=True)
    assert len(now["nearest"]) == 3
    for near in now["nearest"]:
        assert near.keys() == {"similarity", "overlap", "label", "score", "pages", "shared", "instead", "age"}
        assert 1 <= len(near["pages"]) <= STEPS
        assert all(page.startswith(SITE) for page in near["pages"])
        assert f"{SITE}/0/5" in near["pages"], "a session that began likewise is nearer than any other"


def test_people_read_it_and_hostile_text_stays_text(taught: System) -> None:
    answer = run(taught, f"e{EVIL}")
    assert answer.code == 0, answer.err
    assert "\x1b" not in answer.out + answer.err
    assert "[bold]evil[/bold]" in answer.out
    for text in ("What went out at", "as it is now", "ended", "likeness", "continues"):
        assert text in answer.out


def test_the_visit_is_asked_about_as_the_worker_saw_it(taught: System) -> None:
    history = asyncio.run(find(resolve(taught.kafka, taught.redis, str(taught.config)), "110-2"))
    assert history is not None
    seen = history.context
    assert (seen.url, seen.position, seen.since_previous_ms, seen.visits_before) == (f"{SITE}/2/5", 3, 1_000, 2)
    assert {name: getattr(seen, name) for name in GIVEN} == GIVEN


def test_what_is_not_there_is_said_in_one_sentence(taught: System) -> None:
    answer = run(taught, "no-such-visit", "--json")
    assert (answer.code, answer.out, len(answer.sentences)) == (1, "", 1)
    assert "no-such-visit" in answer.err
    assert run(taught, "110-2", "--task", "bought").code == 2
