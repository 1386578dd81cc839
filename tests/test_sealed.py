import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoms.activations.sealed import DamagedFileError, seal, sha256_of, unseal

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda key: key != "sha256"), plain, max_size=4))
@settings(deadline=None)
def test_what_was_sealed_comes_back(content):
    assert unseal(seal(content)) == content


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_byte_can_change(data):
    sealed = bytearray(seal({"rows": 12, "files": {"a/b": {"size": 3, "digest": "x"}}, "extra": {}}))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] = data.draw(st.integers(0, 255).filter(lambda value: value != sealed[at]))
    with pytest.raises(DamagedFileError):
        unseal(bytes(sealed))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"1", b'{"sha256": 5}', b"\xff\xfe", seal({"a": 1})[:-1], b"null"])
def test_what_was_never_sealed(data):
    with pytest.raises(DamagedFileError):
        unseal(data)


def test_digests_are_the_known_ones():
    assert sha256_of(b"abc").startswith("sha256:ba7816bf8f01cfea")
