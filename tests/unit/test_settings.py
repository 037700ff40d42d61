"""What an operator may say, which place wins, and the one sentence that answers each mistake."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.errors import ConfigError
from streams.settings import (
    UNITS_MS,
    Running,
    Settings,
    duration_ms,
    kafka_address,
    redis_address,
    resolve,
    runtime_folder,
)
from streams.urls import UrlRules

ADDRESSES = 'kafka = "file:1"\nredis = "redis://file:1/0"\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with nobody's environment and no `url2vec up`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("URL2VEC_KAFKA", "URL2VEC_REDIS", "URL2VEC_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(folder: Path, text: str, name: str = "url2vec.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def pretend_up_runs(pid: int | None = None, config: str | None = None) -> None:
    runtime_folder().mkdir(parents=True)
    running = Running(pid or os.getpid(), "up:1", "redis://up:1/0", "http://up:1", config)
    (runtime_folder() / "up.json").write_bytes(msgspec.json.encode(running))


def test_without_settings_there_is_one_task_that_needs_no_outcomes(here: Path) -> None:
    found = resolve("k:1", "r:1")
    assert found == Settings(kafka="k:1", redis="redis://r:1/0")
    (task,) = found.tasks
    assert (task.name, task.outcomes, task.scope, task.horizon_ms) == ("continues", frozenset(), "session", 1_800_000)


def test_flag_before_environment_before_file_before_what_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_up_runs()
    assert (resolve().kafka, resolve().redis) == ("up:1", "redis://up:1/0")
    write(here, ADDRESSES)
    assert (resolve().kafka, resolve().redis) == ("file:1", "redis://file:1/0")
    monkeypatch.setenv("URL2VEC_KAFKA", "env:1")
    monkeypatch.setenv("URL2VEC_REDIS", "redis://env:1/0")
    assert (resolve().kafka, resolve().redis) == ("env:1", "redis://env:1/0")
    found = resolve("flag:1", "redis://flag:1/0")
    assert (found.kafka, found.redis) == ("flag:1", "redis://flag:1/0")


def test_the_file_is_the_flag_s_or_the_environment_s_or_the_one_here(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here, ADDRESSES + 'group = "here"')
    assert resolve().group == "here"
    monkeypatch.setenv("URL2VEC_CONFIG", write(here, ADDRESSES + 'group = "env"', "env.toml"))
    assert resolve().group == "env"
    assert resolve(config=write(here, ADDRESSES + 'group = "flag"', "flag.toml")).group == "flag"


def test_the_settings_of_what_runs_are_followed_only_on_its_own_broker(here: Path) -> None:
    pretend_up_runs(config=write(here, 'group = "up"', "up.toml"))
    assert resolve().group == "up"
    assert resolve(kafka="up:1").group == "up"
    assert resolve(kafka="other:1").group == "url2vec"


def test_which_urls_are_one_page_comes_from_the_file(here: Path) -> None:
    assert resolve("k:1", "r:1").urls == UrlRules()
    write(here, "[urls]\nscheme = 'keep'\nslash = 'keep'\ndrop = ['ref', 'promo_*']\nlongest = 600\nbots = 'skip'")
    assert resolve("k:1", "r:1").urls == UrlRules(
        scheme="keep", slash="keep", drop=("ref", "promo_*"), longest=600, bots="skip"
    )


def test_an_up_that_died_is_no_address(here: Path) -> None:
    pretend_up_runs(pid=2**22 + 1)  # beyond what Linux gives
    with pytest.raises(
        ConfigError, match="no address of Kafka: give --kafka, set URL2VEC_KAFKA, or start `url2vec up`"
    ):
        resolve()


def test_an_address_that_is_not_needed_may_be_missing(here: Path) -> None:
    assert resolve("k:1", need=("kafka",)).redis == ""
    with pytest.raises(ConfigError, match="no address of Redis"):
        resolve("k:1")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("group = ", "url2vec.toml"),
        ("groups = 'a'", "groups"),
        ("group = 5", r"\$.group"),
        ("[tasks.buy]\noutcomes = 'x'", r"\$.tasks"),
        ("[tasks.buy]\noutcomes = []", "'buy'"),
        ("[tasks.buy]\noutcomes = ['x']\nhorizon = '30'", "'30'"),
        ("[tasks.buy]\noutcomes = ['x']\nhorizon = '0s'", "horizon"),
        ("[tasks.buy]\noutcomes = ['x']\nscope = 'world'", r"\$.tasks"),
        ("[tasks.'a b']\noutcomes = ['x']", "'a b'"),
        ("session_gap = 'soon'", "'soon'"),
        ("session_gap = '0s'", "session_gap"),
        ("latency_objective = '0ms'", "latency_objective"),
        ("checkpoint_interval = '5ms'", "checkpoint_interval"),
        ("snapshot_interval = '50ms'", "snapshot_interval"),
        ("visitor_ttl = '59s'", "visitor_ttl"),
        ("visitor_cache = 1", "visitor_cache"),
        ("pending_cache = 1", "pending_cache"),
        ("max_in_flight = 0", "max_in_flight"),
        ("[urls]\nstatic = 'ignore'", r"\$.urls.static"),
        ("[urls]\nfragments = 'drop'", "fragments"),
        ("[urls]\nlongest = 10", "urls.longest"),
        ("[urls]\ndrop = ['a&b']", "'a&b'"),
        ("[urls]\nkeep = ['*']", r"'\*'"),
        ("[urls]\nkeep = ['id']\ndrop = ['ref']", "exclude each other"),
        ("[urls]\nquery = 'drop'\nkeep = ['id']", "urls.query"),
        ("[model]\ndims = 1", "model.dims"),
        ("[model]\ncapacity = 1", "model.capacity"),
        ("[topics]\nvisits = 'a b'", "'a b'"),
        ("[topics]\nvisits = 'a'\noutcomes = 'a'", "same name"),
        ("group = ''", "''"),
        ("kafka = 'nowhere'", "'nowhere'"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_that_names_the_place(here: Path, text: str, names: str) -> None:
    write(here, text)
    with pytest.raises(ConfigError, match=names) as raised:
        resolve(redis="r:1") if "kafka =" in text else resolve("k:1", "r:1")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_cannot_be_read(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"the settings file none.toml does not exist"):
        resolve("k:1", "r:1", config="none.toml")
    (here / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match=r"the settings file folder.toml cannot be read: Is a directory"):
        resolve("k:1", "r:1", config="folder.toml")
    (here / "latin.toml").write_bytes(b'group = "\xe9"')
    with pytest.raises(ConfigError, match=r"the settings file latin.toml is wrong"):
        resolve("k:1", "r:1", config="latin.toml")


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS_MS)))
@example(30, "m")
def test_a_duration_is_a_number_and_a_unit(number: int, unit: str) -> None:
    assert duration_ms(f"{number}{unit}") == duration_ms(f" {number} {unit} ") == number * UNITS_MS[unit]


@given(st.decimals(0, 10_000, places=3), st.sampled_from(sorted(UNITS_MS)))
def test_a_duration_may_have_decimals(number: object, unit: str) -> None:
    assert abs(duration_ms(f"{number}{unit}") - float(str(number)) * UNITS_MS[unit]) <= 0.5


@given(st.text(max_size=12))
@example("1e3s")
@example("-1s")
@example("²s")
@example("9" * 400 + "d")
def test_any_text_is_a_duration_or_a_config_error(text: str) -> None:
    try:
        found = duration_ms(text)
    except ConfigError:
        return
    assert found >= 0
    assert text.strip()[-1] in "smhd"


@pytest.mark.parametrize("text", ["a:9092", "a:1, b:2", "[::1]:9092", "a.b-c:65535"])
def test_kafka_addresses(text: str) -> None:
    assert kafka_address(text) == text.replace(" ", "")


@pytest.mark.parametrize("text", ["", "a", "a:", ":1", "a:0", "a:65536", "a:b", "a:1,", "a:1,b", "a:²"])
def test_wrong_kafka_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="is not host:port"):
        kafka_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "redis://h:1/0",
        "rediss://u:p@h/1",
        "unix:///run/redis.sock",
        "redis://h",
        "redis+cluster://h:1,i:2",
        "rediss+cluster://u:p@h",
        "redis+sentinel://h:1,i:2/shop/0",
    ],
)
def test_redis_addresses(text: str) -> None:
    assert redis_address(text) == text
    assert redis_address("h:6379") == "redis://h:6379/0"


@pytest.mark.parametrize(
    "text", ["http://u:secret@h", "redis://u:secret@h:port", "redis://", "redis://u:secret@h:99999", "redis://[secret"]
)
def test_wrong_redis_addresses_do_not_show_their_password(text: str) -> None:
    with pytest.raises(ConfigError, match="is not redis://") as raised:
        redis_address(text)
    assert "secret" not in str(raised.value)


def test_what_stands_in_the_file_arrives(here: Path) -> None:
    write(
        here,
        ADDRESSES
        + 'session_gap = "10m"\nlatency_objective = "20ms"\n[tasks.buy]\noutcomes = ["paid"]\nhorizon = "2h"\n'
        + '[features]\ncategorical = ["a"]\nnumeric = ["b"]\nexclude = ["c"]\n[model]\nseed = 3\ndims = 8\n',
    )
    found = resolve()
    (task,) = found.tasks
    assert (task.name, task.outcomes, task.horizon_ms, task.scope) == ("buy", {"paid"}, 7_200_000, "visitor")
    assert (found.session_gap_ms, found.latency_objective_ms) == (600_000, 20)
    assert (found.categorical, found.numeric, found.exclude) == (("a",), ("b",), ("c",))
    assert (found.seed, found.dims) == (3, 8)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("slots = 300", "model.slots is 300: it must be between 4 and 255"),
        ("admit_after = 0", "model.admit_after is 0"),
        ('half_life = "soon"', "no duration"),
        ('time_to_live = "1s"', "model.time_to_live is 1000"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "url2vec.toml"
    file.write_text(f"[model]\n{line}\n")
    with pytest.raises(ConfigError, match=words):
        resolve("localhost:9092", "redis://localhost:6379/0", str(file))
