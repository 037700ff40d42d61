"""Vectors out of a running system and back into it, and questions to them, by the commands themselves.

The commands run inside the test's process: what they print and how they end is theirs, and torch is loaded once.
"""

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.embedded import EmbeddedServers
from models.vector_files import FORMATS, write
from models.vector_reading import read
from streams import topics
from streams.cli import main
from streams.settings import Topics, resolve
from streams.store import IMPORTS, Store
from tests.system import BEGIN_MS, Answered, Sent, System, visit
from tests.waiting import eventually_sync

SITE = "https://shop.example"
SECTIONS = ("hats", "shoes", "books")
SETTINGS = 'snapshot_interval = "200ms"\ncheckpoint_interval = "200ms"'
DIMS = 64
UNVISITED = f"{SITE}/coats/1"


def walks(names: Topics, count: int, begin_ms: int = BEGIN_MS) -> list[Sent]:
    """Sessions that stay within one of three sections of a shop."""
    draw = np.random.default_rng(count)
    records = []
    for walk in range(count):
        section = SECTIONS[walk % len(SECTIONS)]
        for step, page in enumerate(draw.integers(0, 12, 6).tolist()):
            at_ms = begin_ms + walk * 60_000 + step * 1_000
            records.append(
                visit(names.visits, f"v{walk}", f"{begin_ms}-{walk}-{step}", at_ms, f"{SITE}/{section}/{page}")
            )
    return records


def run(system: System, *arguments: str) -> Answered:
    """`url2vec …` on this system, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([*arguments, "--config", str(system.config), *system.addresses])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return Answered(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def servers() -> Iterator[EmbeddedServers]:
    with EmbeddedServers() as started:
        yield started


def new_system(folder: Path, servers: EmbeddedServers, settings: str = SETTINGS) -> System:
    folder.mkdir(exist_ok=True)
    names = Topics(*(f"{topic}-{folder.name}" for topic in ("visits", "outcomes", "scored", "rejected")))
    topics.create(servers.kafka, names.all, 4)
    return System(folder, servers.kafka, servers.redis, names, settings)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, servers: EmbeddedServers) -> Iterator[System]:
    """A system that has learned 600 visits; its worker has stopped."""
    with new_system(tmp_path_factory.mktemp("taught"), servers) as system:
        system.start()
        system.publish(walks(system.names, 100))
        system.until_scored(600)
        system.stop()
        yield system


def vectors_of(system: System, file: Path, form: str = "word2vec-binary") -> dict[str, np.ndarray]:
    answer = run(system, "export", str(file), "--format", form, "--json")
    assert answer.code == 0, answer.err
    described = json.loads(answer.out)
    assert described.keys() == {"urls", "dims", "format", "files"}
    found = {url: v for part in read(file, form) for url, v in zip(part.urls, part.vectors, strict=True)}
    assert (described["urls"], described["dims"], described["format"]) == (len(found), DIMS, form)
    assert described["files"][0] == str(file)
    return found


def cosines(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([one[url] @ other[url] for url in sorted(one.keys() & other.keys())])


def test_every_format_holds_the_same_vectors(taught: System, tmp_path: Path) -> None:
    exported = [vectors_of(taught, tmp_path / f"{form}.x", form) for form in FORMATS]
    assert len(exported[0]) == 36
    for other in exported[1:]:
        assert other.keys() == exported[0].keys()
        assert cosines(exported[0], other).min() > 0.9999


@pytest.mark.parametrize("form", ["word2vec", "npz"])
def test_an_empty_model_begins_where_the_file_says(
    taught: System, servers: EmbeddedServers, tmp_path: Path, form: str
) -> None:
    before = vectors_of(taught, tmp_path / "v.x", form)
    fresh = new_system(tmp_path / f"fresh-{form}", servers)
    answer = run(fresh, "import", str(tmp_path / "v.x"), "--format", form, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out) == {"urls": 36, "dims": DIMS, "format": form}
    after = vectors_of(fresh, tmp_path / "w.x")
    assert after.keys() == before.keys()
    assert cosines(before, after).min() > 0.999
    here, there = (json.loads(run(each, "nearest", f"{SITE}/hats/1", "--json").out) for each in (fresh, taught))
    assert {row["url"]: row["similarity"] for row in here} == pytest.approx(
        {row["url"]: row["similarity"] for row in there}, abs=1e-3
    )


def test_a_running_worker_takes_in_an_import_keeps_it_over_a_restart_and_moves_it(
    taught: System, servers: EmbeddedServers, tmp_path: Path
) -> None:
    before = vectors_of(taught, tmp_path / "v.bin")
    before |= {UNVISITED: np.roll(before[f"{SITE}/hats/1"], 1)}
    write(tmp_path / "v.bin", "word2vec-binary", list(before), np.stack(list(before.values())))
    with new_system(tmp_path / "running", servers) as running:
        running.start()
        running.publish(walks(running.names, 1))
        running.until_scored(6)
        assert run(running, "import", str(tmp_path / "v.bin")).code == 0
        running.publish(walks(running.names, 2, BEGIN_MS + 3_600_000))
        eventually_sync(lambda: imports_in_snapshot(running), 30, "a snapshot holds what was imported")
        running.stop()
        asyncio.run(forget_imports(running))  # from now on only the snapshot has them
        running.start()
        running.publish(walks(running.names, 100, BEGIN_MS + 7_200_000))
        running.until_scored(18 + 600)
        running.stop()
        after = vectors_of(running, tmp_path / "w.bin")
    assert after.keys() == before.keys()
    assert before[UNVISITED] @ after.pop(UNVISITED) > 0.999, "what nobody visits stays where the file says"
    assert cosines(before, after).max() < 0.9999, "the stream has moved all others"


def imports_in_snapshot(system: System) -> bool:
    async def look() -> bool:
        store = Store(resolve(system.kafka, system.redis, str(system.config)))
        try:
            found = await store.snapshots()
            return bool(found) and all(IMPORTS in stamp for _, stamp, _ in found)
        finally:
            await store.close()

    return asyncio.run(look())


async def forget_imports(system: System) -> None:
    store = Store(resolve(system.kafka, system.redis, str(system.config)))
    try:
        await store.client.delete(store.key(IMPORTS, "lessons"))
    finally:
        await store.close()


def test_imported_vectors_of_another_space_are_turned_onto_the_models_by_what_both_know(
    taught: System, servers: EmbeddedServers, tmp_path: Path
) -> None:
    few = new_system(tmp_path / "few-dims", servers, f"{SETTINGS}\n[model]\ndims = 8")
    draw = np.random.default_rng(0)
    first = draw.normal(size=(60, 8)).astype(np.float32)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    rotation, _ = np.linalg.qr(draw.normal(size=(8, 8)))
    urls = [f"{SITE}/{n}" for n in range(60)]
    write(tmp_path / "one.bin", "word2vec-binary", urls[:40], first[:40])
    write(tmp_path / "two.bin", "word2vec-binary", urls[20:], (first[20:] @ rotation * 3).astype(np.float32))
    for name in ("one.bin", "two.bin"):
        answer = run(few, "import", str(tmp_path / name))
        assert answer.code == 0, answer.err
    assert "20 of them of URLs that are known here" in answer.err
    assert run(few, "export", str(tmp_path / "out.bin")).code == 0
    found = {u: v for part in read(tmp_path / "out.bin", "word2vec-binary") for u, v in zip(*part, strict=True)}
    assert cosines(found, dict(zip(urls, first, strict=True))).min() > 0.999


def test_what_cannot_be_imported_is_refused_in_one_sentence_and_changes_nothing(
    taught: System, servers: EmbeddedServers, tmp_path: Path
) -> None:
    system = new_system(tmp_path / "refusing", servers)
    wide, torn, empty, nowhere = (tmp_path / name for name in ("wide.txt", "torn.bin", "empty.txt", "nowhere.txt"))
    write(wide, "word2vec", ["a"], np.ones((1, 3), np.float32))
    write(torn, "word2vec-binary", [f"a{n}" for n in range(9_000)], np.ones((9_000, DIMS), np.float32))
    torn.write_bytes(torn.read_bytes()[:-9])
    empty.write_text(f"0 {DIMS}\n")
    write(nowhere, "word2vec", ["a"], np.zeros((1, DIMS), np.float32))
    for file, why in (
        (wide, f"vectors of 3 dimensions, and the model's have {DIMS}"), (torn, "ends inside vector 9,000 of 9,000"),
        (empty, "holds no vectors"), (nowhere, "no vector that has a name and a direction"),
    ):  # fmt: skip
        answer = run(system, "import", str(file), "--json")
        assert (answer.code, answer.out, len(answer.sentences)) == (1, "", 1), answer.err
        assert why in answer.err
    assert run(system, "import", str(tmp_path / "not-there"), "--json").code == 2
    answer = run(system, "export", str(tmp_path / "out.txt"))
    assert (answer.code, (tmp_path / "out.txt").exists()) == (1, False)
    assert "no vectors yet" in answer.err


def test_nearest_and_analogy_know_a_url_in_any_spelling(taught: System) -> None:
    plain = run(taught, "nearest", f"{SITE}/hats/1", "-k", "5", "--json")
    assert plain.code == 0, plain.err
    assert (
        run(taught, "nearest", "HTTPS://Shop.Example:443/hats/1/?utm_source=x#top", "-k", "5", "--json").out
        == plain.out
    )
    assert all(row["url"].startswith(f"{SITE}/hats/") for row in json.loads(plain.out))


def test_an_analogy_is_like_what_is_added_and_unlike_what_is_taken_away(taught: System, tmp_path: Path) -> None:
    asked = [f"{SITE}/hats/1", f"{SITE}/hats/2", f"{SITE}/books/3"]
    answer = run(taught, "analogy", asked[0], "--minus", asked[1], "--plus", asked[2], "-k", "40", "--json")
    assert (answer.code, answer.err) == (0, "")
    near = json.loads(answer.out)
    assert all(row.keys() == {"url", "similarity"} for row in near)
    assert not {row["url"] for row in near} & set(asked)
    assert len(near) == 36 - 3
    vectors = vectors_of(taught, tmp_path / "v.bin")
    query = vectors[asked[0]] - vectors[asked[1]] + vectors[asked[2]]
    wanted = {url: float(v @ query / np.linalg.norm(query)) for url, v in vectors.items() if url not in asked}
    assert [row["similarity"] for row in near] == pytest.approx(sorted(wanted.values(), reverse=True), abs=2e-3)
    for row in near:
        assert row["similarity"] == pytest.approx(wanted[row["url"]], abs=2e-3)
    assert near[0]["url"].startswith(f"{SITE}/books/")
    two = run(taught, "analogy", asked[0], "--plus", asked[1], "--plus", f"{SITE}/hats/3", "-k", "3", "--json")
    assert all(row["url"].startswith(f"{SITE}/hats/") for row in json.loads(two.out))


def test_an_unknown_url_in_an_analogy_is_composed_and_that_is_said(taught: System) -> None:
    answer = run(
        taught, "analogy", f"{SITE}/hats/never", "--minus", f"{SITE}/hats/1", "--plus", f"{SITE}/books/3", "--json"
    )
    assert answer.code == 0
    assert json.loads(answer.out)[0]["url"].startswith(f"{SITE}/books/")
    assert "composed" in answer.err
    assert f"{SITE}/hats/never" in answer.err
    nothing = run(taught, "analogy", "https://elsewhere.example/", "--plus", f"{SITE}/hats/1", "--json")
    assert (nothing.code, nothing.out, len(nothing.sentences)) == (1, "", 1)


def test_an_analogy_needs_something_to_add_or_take_away_and_something_left(taught: System) -> None:
    assert run(taught, "analogy", f"{SITE}/hats/1").code == 2
    nothing = run(taught, "analogy", f"{SITE}/hats/1", "--minus", f"{SITE}/hats/1", "--json")
    assert (nothing.code, len(nothing.sentences)) == (1, 1)
