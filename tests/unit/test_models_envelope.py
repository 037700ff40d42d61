"""Content comes back as it was sealed, or is refused with the reason."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.envelope import Damaged, seal, unseal


class Content(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    numbers: bytes
    name: str


class Other(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    only: int


@given(st.binary(max_size=200), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_what_was_sealed_comes_back(numbers: bytes, name: str) -> None:
    assert unseal(b"ABC1", seal(b"ABC1", Content(numbers, name)), Content) == Content(numbers, name)


@given(st.data())
def test_whatever_is_cut_or_altered_is_refused(data: st.DataObject) -> None:
    whole = seal(b"ABC1", Content(b"\1\2\3", "name"))
    at = data.draw(st.integers(0, len(whole) - 1))
    altered = bytearray(whole)
    altered[at] ^= 1 << data.draw(st.integers(0, 7))
    for blob in (whole[:at], bytes(altered), whole + b"\0", b""):
        with pytest.raises(Damaged):
            unseal(b"ABC1", blob, Content)


def test_the_reason_says_kind_damage_or_form() -> None:
    whole = seal(b"ABC1", Content(b"", "name"))
    with pytest.raises(Damaged, match="another kind"):
        unseal(b"ABC2", whole, Content)
    with pytest.raises(Damaged, match="checksum"):
        unseal(b"ABC1", whole[:-1], Content)
    with pytest.raises(Damaged, match="Expected"):
        unseal(b"ABC1", whole, Other)
