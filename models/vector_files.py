"""Vectors in files that others read and write: word2vec (text, binary), npz, TensorBoard's projector.

Here are the formats and how they are written: whole or not at all, for a temporary file beside the target takes its name
at the end. Reading them is `models.vector_reading`.

Formats
-------
word2vec          a line `COUNT DIMS`, then a line `NAME x1 x2 …` a vector; as the original tool and gensim write it
word2vec-binary   the same first line; then NAME, a space, the numbers as little-endian float32, a line feed
npz               numpy's archive with `urls` (n,), strings, and `vectors` (n, dims), float32
projector         FILE with tab-separated numbers, a second file with the names, and `projector_config.pbtxt`, by which
                  `tensorboard --logdir FOLDER` finds both; at projector.tensorflow.org one loads the two by hand

Names. These formats split at white space, so a name that holds any, or anything that cannot be printed, is written as
`escaped:` and the name with such characters and `%` percent-encoded. All other names stand as they are, `%20` in them
too: whoever looks a URL up finds it. `unescaped(escaped(name)) == name` for every str, lone surrogates included.
"""

import contextlib
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

F32 = NDArray[np.float32]

FORMATS = ("word2vec", "word2vec-binary", "npz", "projector")
PART = 4_096  # vectors read or written at a time: a few MB
_MOST_PADDED = 8 * 2**30  # bytes; npz pads each name to the longest, also in the memory of who loads it
_ESCAPED = "escaped:"


class BadVectors(ValueError):  # noqa: N818 - says what is wrong, as the other corrupt things do
    """The file cannot be read, or not be written in that format; one sentence says what is wrong and where."""


def form_of(file: Path) -> str:
    """The format that a file's name suggests."""
    return {".npz": "npz", ".tsv": "projector", ".bin": "word2vec-binary"}.get(file.suffix.lower(), "word2vec")


def metadata_of(file: Path) -> Path:
    """Where the names of a projector file stand."""
    return file.with_name(f"{file.stem}.metadata.tsv")


# -- names -----------------------------------------------------------------------------------------------------------


def escaped(name: str) -> str:
    """The name in a form without white space and control characters; most are in that form already.

    >>> escaped("https://a.example/b%20c"), escaped("https://a.example/b c%")
    ('https://a.example/b%20c', 'escaped:https://a.example/b%20c%25')
    """
    if name.isprintable() and " " not in name and name and not name.startswith(_ESCAPED):
        return name
    return _ESCAPED + "".join(
        c if c.isprintable() and c not in " %" else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogatepass"))
        for c in name
    )


def unescaped(text: str) -> str:
    """The name that was escaped. Text that `escaped` cannot have written (another tool's) is a name as it stands."""
    if not text.startswith(_ESCAPED):
        return text
    raw = text[len(_ESCAPED) :].encode("utf-8", "surrogatepass")
    try:
        if re.search(rb"%(?![0-9A-F]{2})", raw):
            return text
        return re.sub(rb"%(..)", lambda found: bytes.fromhex(found[1].decode()), raw).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return text


# -- writing ---------------------------------------------------------------------------------------------------------


def write(file: Path, form: str, urls: Sequence[str], vectors: F32) -> list[Path]:
    """Write all of them, replacing a file of that name; returns the files written. Raises BadVectors, OSError."""
    if len(urls) != len(vectors):
        raise ValueError(f"{len(urls)} names for {len(vectors)} vectors")
    if file.exists() and not file.is_file():
        raise BadVectors(f"{file} is not a regular file, and a whole file is to take its place")
    if form == "projector":
        return _write_projector(file, urls, vectors)
    with _whole(file) as stream:
        {"npz": _write_npz, "word2vec-binary": _write_binary, "word2vec": _write_text}[form](stream, urls, vectors)
    return [file]


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[IO[bytes]]:
    """A file to write that becomes `file` when all of it is on the disk, and leaves nothing behind otherwise."""
    file = file.resolve()  # what a link points to is replaced, not the link
    partial = file.with_name(f".url2vec-{secrets.token_hex(8)}.part")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _parts(urls: Sequence[str], vectors: F32) -> Iterator[tuple[list[bytes], F32]]:
    for begin in range(0, len(urls), PART):
        names = [escaped(url).encode() for url in urls[begin : begin + PART]]
        yield names, vectors[begin : begin + PART].astype("<f4")


def _write_text(stream: IO[bytes], urls: Sequence[str], vectors: F32) -> None:
    stream.write(f"{len(urls)} {vectors.shape[1]}\n".encode())
    row = " %.6g" * vectors.shape[1]  # one call a vector: ten times as fast as numpy.savetxt
    for names, numbers in _parts(urls, vectors):
        lines = zip(names, numbers.tolist(), strict=True)
        stream.write(b"".join(name + (row % tuple(vector)).encode() + b"\n" for name, vector in lines))


def _write_binary(stream: IO[bytes], urls: Sequence[str], vectors: F32) -> None:
    stream.write(f"{len(urls)} {vectors.shape[1]}\n".encode())
    for names, numbers in _parts(urls, vectors):
        stream.write(b"".join(n + b" " + v.tobytes() + b"\n" for n, v in zip(names, numbers, strict=True)))


def _write_npz(stream: IO[bytes], urls: Sequence[str], vectors: F32) -> None:
    longest = max((len(escaped(url)) for url in urls), default=1)
    if (padded := 4 * longest * len(urls)) > _MOST_PADDED:
        raise BadVectors(
            f"the longest URL has {longest:,} characters and npz pads all {len(urls):,} to that, {padded / 2**30:.0f} GB in "
            "memory: export as word2vec-binary instead"
        )
    with zipfile.ZipFile(stream, "w") as archive:
        for name, kind, shape, compression in (
            ("urls", f"<U{longest}", (len(urls),), zipfile.ZIP_DEFLATED),
            ("vectors", "<f4", vectors.shape, zipfile.ZIP_STORED),  # noise: deflating it takes long and gains little
        ):
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = compression
            with archive.open(entry, "w", force_zip64=True) as member:
                npy.write_array_header_1_0(member, {"descr": kind, "fortran_order": False, "shape": shape})
                for names, numbers in _parts(urls, vectors):
                    whole = np.array([n.decode() for n in names], kind) if name == "urls" else numbers
                    member.write(whole.tobytes())


def _write_projector(file: Path, urls: Sequence[str], vectors: F32) -> list[Path]:
    labels, config = metadata_of(file), file.with_name("projector_config.pbtxt")
    row = "\t".join(["%.6g"] * vectors.shape[1])
    with _whole(labels) as names_to, _whole(file) as numbers_to:
        for names, numbers in _parts(urls, vectors):
            names_to.write(b"".join(name + b"\n" for name in names))
            numbers_to.write("".join(row % tuple(vector) + "\n" for vector in numbers.tolist()).encode())
    tensor, metadata = (json.dumps(path.name, ensure_ascii=False) for path in (file, labels))
    described = (
        f'embeddings {{\n  tensor_name: "urls"\n  tensor_path: {tensor}\n  metadata_path: {metadata}\n}}\n'
    ).encode()
    if config.exists() and config.read_bytes() != described:
        return [file, labels]  # somebody else's
    with _whole(config) as stream:
        stream.write(described)
    return [file, labels, config]
