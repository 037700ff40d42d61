"""How structs of raw arrays travel to the store and to replicas: msgpack, compressed, behind four letters and a checksum.

What was sealed comes back equal, or `Damaged` says why not: foreign bytes, another version, torn, altered.
"""

import zlib
from typing import TypeVar

import msgspec
import xxhash

Form = TypeVar("Form", bound=msgspec.Struct)
_LEVEL = 1  # of compression: a fifth of the bytes for a millisecond a thousand visits and examples; more gains little


class Damaged(ValueError):  # noqa: N818 - says what is wrong, as the other corrupt things do
    """The bytes are not what was sealed; the message says in what way."""


def seal(letters: bytes, content: msgspec.Struct) -> bytes:
    """Bytes that begin with four letters, which name the kind of content and its version."""
    body = zlib.compress(msgspec.msgpack.encode(content), _LEVEL)
    return letters + xxhash.xxh3_64_digest(body) + body


def unseal(letters: bytes, blob: bytes, form: type[Form]) -> Form:
    """The content that was sealed under these letters. Raises Damaged."""
    if blob[:4] != letters:
        raise Damaged("these bytes are of another kind, or of another version")
    if blob[4:12] != xxhash.xxh3_64_digest(blob[12:]):
        raise Damaged(f"the checksum of its {len(blob)} bytes does not match: it is torn or damaged")
    try:
        return msgspec.msgpack.decode(zlib.decompress(blob[12:]), type=form)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise Damaged(str(error)) from error
