"""Vectors go out in the formats of other tools and come back; what is torn or foreign is refused in one sentence."""

import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import vector_files, vector_reading
from models.vector_files import FORMATS, BadVectors, escaped, form_of, metadata_of, unescaped, write
from models.vector_reading import read

F32 = NDArray[np.float32]

HOSTILE = [
    "https://a.example/b c",
    "x\ny",
    "x\ty",
    "\x00",
    "\ud800",
    "\u2028\u00a0\ufeff",
    "escaped:",
    "",
    " ",
    "%",
    "🐝 %20",
]
NAMES = st.text(st.characters(codec=None) | st.sampled_from(" \n\t\r\x00%\ud800\udfff\u2028é"), max_size=20)


def some(count: int, dims: int = 5, seed: int = 0) -> tuple[list[str], F32]:
    urls = [f"https://a.example/{n}%20é" for n in range(count - len(HOSTILE))] + HOSTILE
    return urls[-count:], np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)


def all_of(file: Path, form: str) -> tuple[list[str], F32]:
    parts = list(read(file, form))
    return [url for part in parts for url in part.urls], np.concatenate([part.vectors for part in parts])


def refusal(file: Path, form: str) -> str:
    """The sentence with which a file is refused, without its folder."""
    with pytest.raises(BadVectors) as caught:
        all_of(file, form)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{file.parent}/", "")


# -- names -----------------------------------------------------------------------------------------------------------


@given(NAMES)
@example("escaped:%20")
@example("escaped:escaped: ")
@example("\ud83d\ude00")
def test_every_name_comes_back_from_its_escaped_form(name: str) -> None:
    text = escaped(name)
    assert unescaped(text) == name
    assert text
    assert text.isprintable()
    assert not any(c.isspace() for c in text)
    text.encode()


@given(NAMES, NAMES)
def test_two_names_never_share_an_escaped_form(one: str, other: str) -> None:
    assert (escaped(one) == escaped(other)) == (one == other)


@pytest.mark.parametrize("url", ["https://en.wikipedia.org/wiki/%C3%89douard_Manet", "https://a.example/b%20c?d=é#e"])
def test_an_ordinary_url_stands_as_it_is(url: str) -> None:
    assert escaped(url) == url


@pytest.mark.parametrize("text", ["escaped:%2", "escaped:%zz", "escaped:%ff", "escaped:%FF", "escaped:%"])
def test_a_foreign_name_that_only_looks_escaped_stands_as_it_is(text: str) -> None:
    assert unescaped(text) == text


# -- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("count", [1, 7, 40])
def test_what_is_written_is_read_back(tmp_path: Path, form: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (vector_files, vector_reading):
        monkeypatch.setattr(module, "PART", 7)  # so that parts end in the middle, at the end, and just before it
    urls, vectors = some(count)
    written = write(tmp_path / "vectors.x", form, urls, vectors)
    assert sorted(tmp_path.iterdir()) == sorted(written), "nothing else is left behind"
    found, numbers = all_of(tmp_path / "vectors.x", form)
    assert found == urls
    assert numbers.dtype == np.float32
    np.testing.assert_allclose(numbers, vectors, rtol=1e-5)
    if form in {"npz", "word2vec-binary"}:
        assert np.array_equal(numbers, vectors), "bit by bit"


@given(
    rows=st.lists(
        st.tuples(NAMES, st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)),
        min_size=1, max_size=12,
    ),
    form=st.sampled_from(FORMATS),
)  # fmt: skip
@settings(deadline=None)
def test_whatever_the_names_and_numbers_they_come_back(rows: list[tuple[str, list[float]]], form: str) -> None:
    vectors = np.array([numbers for _, numbers in rows], np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "v.x")
        write(file, form, [name for name, _ in rows], vectors)
        names, numbers = all_of(file, form)
    assert names == [name for name, _ in rows]
    np.testing.assert_allclose(numbers, vectors, rtol=1e-5, atol=1e-43)


def test_gensim_loads_text_and_binary_and_finds_every_url(tmp_path: Path) -> None:
    gensim = pytest.importorskip("gensim.models", reason="gensim comes with the extra `bench`")
    urls, vectors = some(40)
    for form in ("word2vec", "word2vec-binary"):
        write(tmp_path / form, form, urls, vectors)
        loaded = gensim.KeyedVectors.load_word2vec_format(tmp_path / form, binary=form == "word2vec-binary")
        assert loaded.index_to_key == [escaped(url) for url in urls]
        np.testing.assert_allclose(loaded.vectors, vectors, rtol=1e-5)
        loaded.save_word2vec_format(tmp_path / "back", binary=form == "word2vec-binary")
        found, numbers = all_of(tmp_path / "back", form)
        assert found == urls
        np.testing.assert_allclose(numbers, vectors, rtol=1e-5)


def test_binary_stands_as_the_original_tool_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "v.bin"
    write(file, "word2vec-binary", ["a", "é"], np.array([[1, 2], [3, -0.5]], np.float32))
    wanted = b"2 2\na " + struct.pack("<2f", 1, 2) + b"\n\xc3\xa9 " + struct.pack("<2f", 3, -0.5) + b"\n"
    assert file.read_bytes() == wanted
    file.write_bytes(wanted.replace(b"\n\xc3", b"\xc3")[:-1])
    assert all_of(file, "word2vec-binary")[0] == ["a", "é"], "gensim leaves the line feeds out"


def test_an_archive_opens_with_numpy_alone(tmp_path: Path) -> None:
    urls, vectors = some(40)
    write(tmp_path / "v.npz", "npz", urls, vectors)
    with np.load(tmp_path / "v.npz", allow_pickle=False) as loaded:
        assert loaded["urls"].tolist() == [escaped(url) for url in urls]
        assert np.array_equal(loaded["vectors"], vectors)
    np.savez_compressed(tmp_path / "v.npz", urls=np.array(["a", "bc"]), vectors=np.eye(2))
    assert all_of(tmp_path / "v.npz", "npz")[0] == ["a", "bc"], "and one that numpy wrote, in float64, is read"


def test_an_archive_that_one_long_url_would_blow_up_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_files, "_MOST_PADDED", 10_000)
    with pytest.raises(BadVectors, match="word2vec-binary"):
        write(tmp_path / "v.npz", "npz", ["a"] * 999 + ["b" * 999], np.zeros((1000, 2), np.float32))
    assert not list(tmp_path.iterdir())


def test_the_projector_gets_its_settings_unless_another_s_are_there(tmp_path: Path) -> None:
    urls, vectors = some(3)
    file, labels, config = write(tmp_path / 'a"b.tsv', "projector", urls, vectors)
    assert labels == metadata_of(file)
    text = config.read_text()
    assert text.startswith("embeddings {")
    assert '  tensor_path: "a\\"b.tsv"\n' in text
    assert [line.count("\t") for line in file.read_text().splitlines()] == [4, 4, 4]
    assert write(file, "projector", urls, vectors) == [file, labels, config]
    config.write_text("embeddings {}")
    assert write(file, "projector", urls, vectors) == [file, labels]
    assert config.read_text() == "embeddings {}"


def test_the_name_of_a_file_suggests_its_format() -> None:
    names = ["v.npz", "v.TSV", "v.bin", "v.txt", "v.vec", "v"]
    suggested = ["npz", "projector", "word2vec-binary", "word2vec", "word2vec", "word2vec"]
    assert [form_of(Path(name)) for name in names] == suggested


# -- whole or not at all ---------------------------------------------------------------------------------------------


class Failing:
    """Vectors that run out in the middle, as a disk does."""

    def __init__(self, vectors: F32) -> None:
        self.vectors, self.shape = vectors, vectors.shape

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice) -> F32:
        if rows.start:
            raise OSError("No space left on device")
        return self.vectors[rows]


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_leaves_the_file_that_was_there(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_files, "PART", 5)
    write(tmp_path / "v.x", form, *some(3))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    urls, vectors = some(40)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "v.x", form, urls, Failing(vectors))  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_link_points_to_is_replaced_and_a_device_is_not(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write(tmp_path / "link", "word2vec", *some(3))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o666 & ~umask(), "readable as any other file"
    with pytest.raises(BadVectors, match="regular file"):
        write(Path("/dev/null"), "word2vec", *some(3))


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


# -- torn and foreign ------------------------------------------------------------------------------------------------

TEXT: list[tuple[bytes, str]] = [
    (b"", "v, line 1: expected `COUNT DIMS`, got ''"),
    (b"the 0.1 0.2\n", "v, line 1: expected `COUNT DIMS`, got 'the 0.1 0.2\\n'"),
    (b"\xff" * 99, "v, line 1: expected `COUNT DIMS`, got '" + "\\xff" * 40 + "'…"),
    (b"2 99999999\n", "v, line 1: 99999999 dimensions; between 1 and 16,384 can be read"),
    (b"2 0\n", "v, line 1: 0 dimensions; between 1 and 16,384 can be read"),
    (b"0 2\n", "v holds no vectors"),
    (b"999999999999 2\na 1 2\n", "v ends after 1 vectors; line 1 announces 999,999,999,999"),
    (b"2 2\na 1 2\nb 1\n", "v, line 3: expected a name and 2 numbers, got 1 numbers"),
    (b"2 2\na 1 2\n\nb 1 2\n", "v, line 3: expected a name and 2 numbers, got 0 numbers"),
    (b"2 2\na 1 2\nb 1 x\n", "v, line 3: b'x' is not a number"),
    (b"2 2\na 1 2\nb 1 nan\n", "v, line 3: a number that is not finite, or beyond float32"),
    (b"2 2\na 1 2\nb 1 1e39\n", "v, line 3: a number that is not finite, or beyond float32"),
    (b"1 2\na 1 2\nb 1 2\n", "v, line 3: more than the 1 vectors that line 1 announces"),
    (b"1 2\n\xff 1 2\n", "v, line 2: the name is not UTF-8: '\\xff'"),
    (b"1 2\n" + b"a" * 99_999, "v, line 2: longer than 65,616 bytes"),
]


@pytest.mark.parametrize(("content", "sentence"), TEXT)
def test_text_that_is_torn_or_foreign_is_refused_with_the_line(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "v").write_bytes(content)
    assert refusal(tmp_path / "v", "word2vec") == sentence


def test_text_of_other_tools_is_read(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b" 3 2 \r\nNew York 1 2 \r\nb\t1\t-2e-3\r\nescaped:x 0 0")
    urls, vectors = all_of(tmp_path / "v", "word2vec")
    assert urls == ["New York", "b", "x"]
    np.testing.assert_allclose(vectors, [[1, 2], [1, -0.002], [0, 0]])


ONE_ROW = struct.pack("<2f", 1, 2)
BINARY: list[tuple[bytes, str]] = [
    (b"2 2\na " + ONE_ROW + b"\nb " + ONE_ROW[:-1], "v ends inside vector 2 of 2"),
    (b"2 2\na " + ONE_ROW + b"\nb", "v ends inside vector 2 of 2"),
    (b"2 2\na " + ONE_ROW + b"\n", "v ends before vector 2 of 2"),
    (b"1 2\na " + ONE_ROW + b"\nb " + ONE_ROW, "v goes on after the 1 vectors that line 1 announces"),
    (b"1 2\n" + b"a" * 99_999, "v, vector 1 of 1: a name of more than 65,536 bytes"),
    (b"1 2\n\xff " + ONE_ROW, "v, vector 1 of 1: the name is not UTF-8: '\\xff'"),
    (b"1 2\na " + struct.pack("<2f", 1, np.inf), "v, vector 1: a number that is not finite, or beyond float32"),
]


@pytest.mark.parametrize(("content", "sentence"), BINARY)
def test_binary_that_is_torn_or_foreign_is_refused_with_the_vector(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "v").write_bytes(content)
    assert refusal(tmp_path / "v", "word2vec-binary") == sentence


PROJECTOR: list[tuple[bytes, bytes, str]] = [
    (b"1\t2\n1\n", b"a\nb\n", "v, line 2: expected 2 numbers, got 1"),
    (b"1\t2\n1\tx\n", b"a\nb\n", "v, line 2: b'x' is not a number"),
    (b"1\t2\n1\tinf\n", b"a\nb\n", "v, line 2: a number that is not finite, or beyond float32"),
    (b"1\t2\n1\t2\n", b"a\n", "v.metadata.tsv ends before line 2, and v goes on"),
    (b"1\t2\n", b"a\nb\n", "v.metadata.tsv, line 2: a name more than v has vectors"),
    (b"1\t2\n", b"a\tb\n", "v.metadata.tsv, line 1: several columns; expected the name alone, with no line of titles"),
    (b"", b"", "v holds no vectors"),
]


@pytest.mark.parametrize(("numbers", "names", "sentence"), PROJECTOR)
def test_projector_files_that_do_not_fit_each_other_are_refused_with_the_line(
    tmp_path: Path, numbers: bytes, names: bytes, sentence: str
) -> None:
    (tmp_path / "v").write_bytes(numbers)
    assert "there is no" in refusal(tmp_path / "v", "projector")
    metadata_of(tmp_path / "v").write_bytes(names)
    assert refusal(tmp_path / "v", "projector") == sentence


class Witness:
    """Says when somebody unpickles it."""

    woken = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return Witness.wake, ()

    @staticmethod
    def wake() -> None:
        Witness.woken = True


def test_an_archive_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", urls=np.array(["a", Witness()], object), vectors=np.eye(2))
    assert refusal(tmp_path / "v.npz", "npz") == "v.npz: `urls` is object of shape (2,); expected a list of strings"
    assert not Witness.woken
    pickle.loads(pickle.dumps(Witness()))
    assert Witness.woken, "it would have said so"


def test_archives_that_are_torn_or_foreign_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "v.npz"
    urls, vectors = np.array(["a", "b"]), np.eye(2, dtype=np.float32)
    for arrays, sentence in (
        ({"vectors": vectors}, "v.npz has no array urls"),
        ({"x": vectors}, "v.npz has no array urls and no vectors"),
        ({"urls": urls[:1], "vectors": vectors}, "v.npz: 1 names in `urls` for 2 rows of `vectors`"),
        ({"urls": urls, "vectors": np.eye(2) > 0}, "v.npz: `vectors` is bool of shape (2, 2); expected floats (n, dims)"),
        ({"urls": urls, "vectors": vectors[0]}, "v.npz: `vectors` is float32 of shape (2,); expected floats (n, dims)"),
        ({"urls": urls, "vectors": vectors * np.nan}, "v.npz, vector 1: a number that is not finite, or beyond float32"),
        ({"urls": urls[:0], "vectors": vectors[:0]}, "v.npz holds no vectors"),
    ):  # fmt: skip
        np.savez(file, **arrays)  # type: ignore[arg-type]
        assert refusal(file, "npz") == sentence
    np.savez(file, urls=urls, vectors=np.asfortranarray(np.arange(4.0).reshape(2, 2)))
    assert "column by column" in refusal(file, "npz")
    for content in (b"", b"PK", b"no archive"):
        file.write_bytes(content)
        assert "not a whole npz archive" in refusal(file, "npz")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("urls.npy", b"\x93NUMPY\x01\x00\xff\xff{'descr'")
        archive.writestr("vectors.npy", b"")
    assert "`urls` is not an array that can be read" in refusal(file, "npz")


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_anywhere_or_with_a_changed_byte_is_read_or_refused_but_never_breaks_the_reader(
    tmp_path: Path, form: str
) -> None:
    file, draw = tmp_path / "v.x", np.random.default_rng(3)
    write(file, form, *some(8, dims=3))
    whole = file.read_bytes()
    refused = 0
    for cut in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[cut] ^= int(draw.integers(1, 256))
        for content in (whole[:cut], bytes(damaged)):
            file.write_bytes(content)
            try:
                all_of(file, form)
            except BadVectors:
                refused += 1
    assert refused > len(whole) / 6
