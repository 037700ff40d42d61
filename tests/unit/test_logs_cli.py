"""`check` and `replay` as commands: what they print, where, and how they end."""

import json
from pathlib import Path
from typing import Any

import pytest

from streams.cli import main

VISIT = '{"event_id":"e%d","timestamp":%d,"visitor_id":"v%d","url":"https://a.example/%d"}'
OUTCOME = '{"visitor_id":"v1","outcome":"bought","timestamp":5000}'


@pytest.fixture
def log(tmp_path: Path) -> Path:
    lines = [VISIT % (n, 1000 * n, n % 2, n % 3) for n in range(1, 5)]
    lines.insert(2, VISIT.replace("url", "link") % (9, 9, 9, 9))
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([*lines, OUTCOME]))
    return path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def check_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert run("check", "--json", *arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def test_check_counts_and_names_what_is_wrong(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = check_json(capsys, log)["files"]
    (problem,) = found.pop("problems")
    assert (problem["line"], "url" in problem["reason"]) == (3, True)
    assert found == {
        "file": str(log),
        "visits": 4,
        "outcomes": 1,
        "visitors": 2,
        "urls": 3,
        "skipped": 1,
        "first": "1970-01-01T00:00:01.000Z",
        "last": "1970-01-01T00:00:05.000Z",
    }


def test_check_says_the_same_to_people(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", log) == 0
    printed = capsys.readouterr().out
    assert "4 visits of 2 visitors to 3 URLs, 1 outcomes, 1 lines that cannot be read" in printed
    assert "line 3: " in printed


def test_problems_beyond_the_first_twenty_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([VISIT % (1, 1, 1, 1), *["{}"] * 30]))
    (found,) = check_json(capsys, path)["files"]
    assert (found["skipped"], len(found["problems"])) == (30, 20)


def test_a_limit_counts_visits(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_json(capsys, log, "--limit", "2")["files"][0]["visits"] == 2


@pytest.mark.parametrize("command", ["check", "replay"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read"), ("once upon a time", "looks like none of")],
)
def test_a_file_that_cannot_be_read_fails_with_a_sentence(
    command: str, content: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    if content is not None:
        path.write_text(content)
    flags = ["--kafka", "127.0.0.1:1"] if command == "replay" else []
    assert run(command, path, *flags) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "{}\n{}\n"])
def test_a_file_with_nothing_in_it_fails(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_text(content)
    assert run("check", path, "--json") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["files"][0]["visits"] == 0
    assert "nothing in" in printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["check", "x", "--format", "csv"],
        ["check", "x", "--site", "shop.example"],
        ["check", "x", "--limit", "0"],
        ["replay", "x", "--speed", "fast"],
    ],
)
def test_wrong_usage_ends_with_two(arguments: list[str]) -> None:
    assert run(*arguments) == 2


def test_control_characters_of_a_log_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.write_text('1.2.3.4 - - [17/May/2015:10:05:03 +0000] "\x1b[31m[bold]" 200 1 "-" "-"\n')
    assert run("check", path) == 1
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "[bold]" in printed.out


def test_help_says_that_times_of_sessions_are_synthetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("replay", "--help") == 0
    assert "SYNTHETIC" in capsys.readouterr().out


def test_the_bundled_logs_are_read_without_a_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[2] / "deploy" / "data"
    found = check_json(capsys, folder / "apache_logs" / "access.log.gz", folder / "wikispeedia" / "sessions.tsv.gz")[
        "files"
    ]
    assert [(each["visits"], each["outcomes"], each["skipped"]) for each in found] == [
        (10_000, 0, 0),
        (357_379, 76_176, 0),
    ]
    assert found[1]["urls"] == 4_181
