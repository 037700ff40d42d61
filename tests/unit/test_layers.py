"""Who may import whom: the layers that keep the core pure, checked on fresh interpreters and on the sources.

What an import drags in is read from `sys.modules` of a new process, so a detour over a third module is seen too. The
sources are read as well: an import inside a function drags in nothing until it is called, and asyncio can only be
looked for there, since libraries (torch) may import it for their own ends, which is not ours to forbid.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "models", "streams", "deploy")
SERVERS = {"kafka", "aiokafka", "faust", "redis", "confluent_kafka"}
PURE = (
    "balance",
    "batching",
    "habits",
    "latency",
    "lockstep",
    "matching",
    "offsets",
    "outcomes",
    "pending",
    "session_steps",
    "sessions",
    "settings",
    "traffic",
    "urls",
    "visitor_layouts",
    "visitors",
    "watermark",
)
PURE_MODULES = tuple(f"streams.{name}" for name in PURE if (ROOT / "streams" / f"{name}.py").exists())
BELOW_PURE = {
    "models",
    "models.compiled",
    "models.visits",
    "streams",
    "streams.errors",
}  # what pure modules may use beside each other


def modules_of(package: str, root: Path = ROOT) -> list[str]:
    """Every module of a package, as its files say."""
    names = (path.relative_to(root).with_suffix("").parts for path in sorted((root / package).rglob("*.py")))
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names]


def dragged_in(modules: Sequence[str], root: Path = ROOT) -> set[str]:
    """All modules that a fresh interpreter holds after importing these, and did not hold before."""
    code = (
        "import sys, json, importlib; before = set(sys.modules)\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(modules)], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def tops(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] in PACKAGES}


def file_of(module: str, root: Path = ROOT) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_in_source(path: Path) -> Iterator[str]:
    """The top names of all imports written in a file, wherever they stand."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def sources_with(forbidden: set[str], modules: set[str], root: Path = ROOT) -> set[str]:
    return {module for module in modules if forbidden & set(imports_in_source(file_of(module, root)))}


def test_schemas_import_nothing_of_ours_and_no_server() -> None:
    held = dragged_in(modules_of("schemas"))
    assert tops(ours(held)) == {"schemas"}
    assert not tops(held) & (SERVERS | {"torch"})
    assert not sources_with(SERVERS | {"asyncio"}, ours(held))


def test_models_import_neither_kafka_nor_redis_nor_asyncio() -> None:
    held = dragged_in(modules_of("models"))
    assert not tops(ours(held)) & {"streams", "deploy"}
    assert not tops(held) & SERVERS
    assert not sources_with(SERVERS | {"asyncio"}, ours(held))


def test_the_context_of_a_visit_is_light() -> None:
    assert not tops(dragged_in(["models.visits"])) & {"torch", "numba", "river"}


def test_the_pure_modules_of_streams_import_no_server_no_torch_no_asyncio_and_nothing_that_is_not_pure() -> None:
    held = dragged_in(PURE_MODULES)
    assert set(PURE_MODULES) <= held
    assert not tops(held) & (SERVERS | {"torch", "river"})
    allowed = {*PURE_MODULES, *BELOW_PURE, *(name for name in held if name.partition(".")[0] == "schemas")}
    assert ours(held) <= allowed
    assert not sources_with(SERVERS | {"torch", "asyncio"}, ours(held))


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("import redis.asyncio", "redis"),
        ("from kafka.admin import KafkaAdminClient", "kafka"),
        ("def later():\n    import asyncio", "asyncio"),
        ("from asyncio.queues import Queue", "asyncio"),
    ],
)
def test_a_forbidden_import_is_seen_through_a_detour(tmp_path: Path, line: str, seen: str) -> None:
    package = tmp_path / "streams"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sessions.py").write_text("from streams import detour\n")
    (package / "detour.py").write_text(line)
    held = dragged_in(["streams.sessions"], tmp_path)
    assert ours(held) == {"streams", "streams.sessions", "streams.detour"}
    if seen == "asyncio":
        assert sources_with({"asyncio"}, ours(held), tmp_path) == {"streams.detour"}
    else:
        assert seen in tops(held)
