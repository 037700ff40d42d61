"""Vectors out of files that this or other tools wrote, in the formats of `models.vector_files`.

Streams, in bounded memory; runs no code from the file (npz without pickle); raises BadVectors with one sentence that says
what is wrong and where: the line, or which vector. Nothing in a header is believed before it is checked, so a header
that announces a thousand million vectors costs nothing.
"""

import errno
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from models.vector_files import PART, BadVectors, metadata_of, unescaped

F32 = NDArray[np.float32]

MOST_NAME_BYTES = 65_536  # the longest form of a URL that a setting allows
MOST_DIMS = 16_384  # far above any embedding; a header that asks for more is not one
_PART_BYTES = 8 * 2**20  # of names and float32: parts are smaller where URLs are long or dimensions many
_NUMBER_BYTES = 40  # of a number as text; float64 needs 24
FIRST_LINE = {"word2vec": 2, "projector": 1}  # where the first vector stands


class Part(NamedTuple):
    """Some vectors of a file, in its order."""

    urls: list[str]
    vectors: F32  # (n, dims), finite, as they stand in the file: of any length


class _Gathered:
    """Rows of a file until they are worth a part."""

    def __init__(self) -> None:
        self._urls: list[str] = []
        self._numbers: list[Sequence[float] | F32] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._urls)

    def add(self, url: str, numbers: Sequence[float] | F32) -> None:
        self._urls.append(url)
        self._numbers.append(numbers)
        self._bytes += len(url) + 4 * len(numbers)

    @property
    def full(self) -> bool:
        return len(self._urls) >= PART or self._bytes >= _PART_BYTES

    def part(self) -> Part:
        """What was gathered; begins anew."""
        part = Part(self._urls, _single(np.array(self._numbers)))
        self._urls, self._numbers, self._bytes = [], [], 0
        return part


def read(file: Path, form: str) -> Iterator[Part]:
    """The vectors of a file, at most PART at a time, in its order. Raises BadVectors, OSError, perhaps after some parts."""
    readers = {"word2vec": _read_text, "word2vec-binary": _read_binary, "npz": _read_npz, "projector": _read_projector}
    number = 0
    for urls, vectors in readers[form](file):
        if bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
            where = (
                f"line {number + bad[0] + FIRST_LINE[form]}" if form in FIRST_LINE else f"vector {number + bad[0] + 1}"
            )
            raise BadVectors(f"{file}, {where}: a number that is not finite, or beyond float32")
        number += len(urls)
        yield Part([unescaped(url) for url in urls], vectors)
    if not number:
        raise BadVectors(f"{file} holds no vectors")


def _header(file: Path, stream: IO[bytes]) -> tuple[int, int]:
    line = stream.readline(64)
    found = re.fullmatch(rb"\s*(\d{1,12})\s+(\d{1,12})\s*\n", line)
    if not found:
        raise BadVectors(f"{file}, line 1: expected `COUNT DIMS`, got {_shown(line)}")
    count, dims = int(found[1]), int(found[2])
    if not 1 <= dims <= MOST_DIMS:
        raise BadVectors(f"{file}, line 1: {dims} dimensions; between 1 and {MOST_DIMS:,} can be read")
    return count, dims


def _read_text(file: Path) -> Iterator[Part]:
    with file.open("rb") as stream:
        count, dims = _header(file, stream)
        rows, read = _Gathered(), 0
        for number, line in _lines(file, stream, 2, MOST_NAME_BYTES + dims * _NUMBER_BYTES):
            if read == count:
                raise BadVectors(f"{file}, line {number}: more than the {count:,} vectors that line 1 announces")
            # From the right: other tools' names may hold spaces.
            name, *fields = line.rstrip().rsplit(None, dims) or [b""]
            if len(fields) != dims:
                raise BadVectors(
                    f"{file}, line {number}: expected a name and {dims} numbers, got {len(fields)} numbers"
                )
            rows.add(_text(file, f"line {number}", name), _floats(file, number, fields))
            read += 1
            if rows.full:
                yield rows.part()
        if rows:
            yield rows.part()
        if read < count:
            raise BadVectors(f"{file} ends after {read:,} vectors; line 1 announces {count:,}")


def _read_binary(file: Path) -> Iterator[Part]:
    with file.open("rb") as stream:
        count, dims = _header(file, stream)
        rows = _Gathered()
        for number in range(1, count + 1):
            where = f"vector {number:,} of {count:,}"
            name = _text(file, where, _name_before_space(file, where, stream))
            raw = stream.read(4 * dims)
            if len(raw) != 4 * dims:
                raise BadVectors(f"{file} ends inside {where}")
            rows.add(name, np.frombuffer(raw, "<f4"))
            if rows.full:
                yield rows.part()
        if rows:
            yield rows.part()
        if stream.read(2).strip(b"\n"):
            raise BadVectors(f"{file} goes on after the {count:,} vectors that line 1 announces")


def _name_before_space(file: Path, where: str, stream: BufferedReader) -> bytes:
    """What stands before the next space, without the line feed that the original tool puts after each vector."""
    name = b""
    while not name.endswith(b" "):
        ahead = stream.peek(1)
        if not ahead:
            raise BadVectors(f"{file} ends {'inside' if name.strip() else 'before'} {where}")
        name += stream.read(ahead.find(b" ") + 1 or len(ahead))
        if len(name) > MOST_NAME_BYTES:
            raise BadVectors(f"{file}, {where}: a name of more than {MOST_NAME_BYTES:,} bytes")
    return name[:-1].lstrip(b"\n")


def _read_projector(file: Path) -> Iterator[Part]:
    labels = metadata_of(file)
    if not labels.is_file():
        raise BadVectors(f"{file} has numbers alone, and there is no {labels} with their names")
    dims, rows = 0, _Gathered()
    with file.open("rb") as stream, labels.open("rb") as names:
        named = _lines(labels, names, 1, MOST_NAME_BYTES)
        for number, line in _lines(file, stream, 1, MOST_DIMS * _NUMBER_BYTES):
            fields = line.rstrip(b"\r\n").split(b"\t")
            dims = dims or len(fields)
            if len(fields) != dims or dims > MOST_DIMS:
                raise BadVectors(f"{file}, line {number}: expected {dims} numbers, got {len(fields)}")
            numbers = _floats(file, number, fields)
            _, name = next(named, (0, b""))
            if not name:
                raise BadVectors(f"{labels} ends before line {number}, and {file} goes on")
            name = name.rstrip(b"\r\n")
            if b"\t" in name:
                raise BadVectors(
                    f"{labels}, line {number}: several columns; expected the name alone, with no line of titles"
                )
            rows.add(_text(labels, f"line {number}", name), numbers)
            if rows.full:
                yield rows.part()
        if rows:
            yield rows.part()
        if extra := next(named, None):
            raise BadVectors(f"{labels}, line {extra[0]}: a name more than {file} has vectors")


def _read_npz(file: Path) -> Iterator[Part]:
    try:
        with zipfile.ZipFile(file) as archive:
            missing = {"urls.npy", "vectors.npy"} - set(archive.namelist())
            if missing:
                raise BadVectors(f"{file} has no array {' and no '.join(sorted(n[:-4] for n in missing))}")
            with archive.open("urls.npy") as names, archive.open("vectors.npy") as numbers:
                yield from _read_arrays(file, names, numbers)
    except BadVectors:
        raise
    # What zipfile raises of archives that are damaged, cut, encrypted, compressed in a way that is not known here.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error, OSError) as error:
        if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:
            raise  # the disk's; an offset before the beginning is the archive's
        raise BadVectors(f"{file} is not a whole npz archive: {error or 'it ends too soon'}") from error


def _read_arrays(file: Path, names: IO[bytes], numbers: IO[bytes]) -> Iterator[Part]:
    shape, kind = _array_header(file, "urls", names)
    vector_shape, number_kind = _array_header(file, "vectors", numbers)
    if len(shape) != 1 or kind.kind != "U" or not 0 < kind.itemsize <= 4 * MOST_NAME_BYTES:
        raise BadVectors(f"{file}: `urls` is {kind} of shape {shape}; expected a list of strings")
    if len(vector_shape) != 2 or number_kind.kind != "f" or not 1 <= vector_shape[1] <= MOST_DIMS:
        raise BadVectors(f"{file}: `vectors` is {number_kind} of shape {vector_shape}; expected floats (n, dims)")
    count, dims = vector_shape
    if shape[0] != count:
        raise BadVectors(f"{file}: {shape[0]:,} names in `urls` for {count:,} rows of `vectors`")
    step = max(1, min(PART, _PART_BYTES // (kind.itemsize + dims * number_kind.itemsize)))
    for begin in range(0, count, step):
        n = min(step, count - begin)
        urls = np.frombuffer(_exactly(file, names, n * kind.itemsize), kind)
        vectors = np.frombuffer(_exactly(file, numbers, n * dims * number_kind.itemsize), number_kind)
        try:
            yield Part(urls.tolist(), _single(vectors.reshape(n, dims)))
        except ValueError as error:  # four bytes that are no character
            raise BadVectors(f"{file}: a name among {begin + 1:,} to {begin + n:,} is not text") from error


def _array_header(file: Path, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    try:
        version = npy.read_magic(stream)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, column_major, kind = read_header(stream)
    except (ValueError, KeyError) as error:  # numpy refuses headers of more than 10,000 bytes by itself
        raise BadVectors(f"{file}: `{name}` is not an array that can be read: {str(error).splitlines()[0]}") from error
    if column_major and len(shape) > 1:
        raise BadVectors(f"{file}: `{name}` is stored column by column; save numpy.ascontiguousarray of it")
    return shape, kind


def _exactly(file: Path, stream: IO[bytes], size: int) -> bytes:
    raw = stream.read(size)
    if len(raw) != size:
        raise BadVectors(f"{file} ends inside an array")
    return raw


def _lines(file: Path, stream: IO[bytes], first: int, limit: int) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, blank ones at the very end left out; none longer than `limit` is taken into memory."""
    number = first
    while line := stream.readline(limit):
        if len(line) == limit and not line.endswith(b"\n"):
            raise BadVectors(f"{file}, line {number}: longer than {limit:,} bytes")
        if not line.strip() and not stream.read(64).strip():
            return
        yield number, line
        number += 1


def _text(file: Path, where: str, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise BadVectors(f"{file}, {where}: the name is not UTF-8: {_shown(name)}") from error


def _floats(file: Path, number: int, fields: list[bytes]) -> list[float]:
    try:
        return list(map(float, fields))
    except ValueError as error:
        raise BadVectors(f"{file}, line {number}: {str(error).split(': ')[-1][:60]} is not a number") from error


def _single(numbers: NDArray[np.generic]) -> F32:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite here, and is said by `read`
        return numbers.astype(np.float32)


def _shown(raw: bytes) -> str:
    return repr(raw[:40])[1:] + ("…" if len(raw) > 40 else "")
