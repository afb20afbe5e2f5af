"""A version is its contents: one byte, one name or one file more is another digest."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.core.model import DATATYPES, artifact_path, check_name, datatype_of, digest_of
from tests.serving.fakes import a_version


def write(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_the_digest_is_of_names_and_contents_and_of_nothing_else(tmp_path: Path) -> None:
    one = digest_of(write(tmp_path / "one", a=b"1", b__c=b"2"))
    assert one.startswith("sha256:") and len(one) == 71
    assert digest_of(write(tmp_path / "same", b__c=b"2", a=b"1")) == one
    others = [
        digest_of(write(tmp_path / "content", a=b"1", b__c=b"3")),
        digest_of(write(tmp_path / "name", a=b"1", b__d=b"2")),
        digest_of(write(tmp_path / "swapped", a=b"2", b__c=b"1")),
        digest_of(write(tmp_path / "more", a=b"1", b__c=b"2", d=b"")),
        digest_of(write(tmp_path / "flat", a=b"1", c=b"2")),
        digest_of(write(tmp_path / "moved", a=b"12", b__c=b"")),
    ]
    assert len({one, *others}) == 7
    assert artifact_path(Path("/h"), one) == Path("/h/artifacts") / one[7:]


def test_a_link_is_refused_for_it_may_lead_outside(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", a=b"1")
    (folder / "b").symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match="b is a symbolic link"):
        digest_of(folder)


@pytest.mark.parametrize("name", ["iris", "Iris 2", "a.b-c_d", "été", "模型", "x" * 128])
def test_a_good_name(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "x" * 129, "a/b", "a:b", "a\\b", "a?b", "a#b", "a%b", "a\nb", "\x7f"])
def test_a_bad_name_is_refused_with_what_it_was(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)


@given(name=st.text(max_size=140))
def test_a_name_that_passes_fits_into_a_path_and_a_key(name: str) -> None:
    try:
        check_name(name)
    except ConfigError:
        return
    assert name and len(name) <= 128 and not set(name) & set("/:\\?#%\n\0")


def test_a_key_tells_two_contents_of_one_number_apart() -> None:
    assert a_version("m", "1", digest="aa").key != a_version("m", "1", digest="bb").key
    assert a_version("m", "1", digest="aa").key.startswith("m/1@aa")


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BF16"}))
def test_every_datatype_has_one_dtype(datatype: str) -> None:
    assert datatype_of(np.zeros(1, DATATYPES[datatype])) == datatype


def test_strings_are_bytes_and_what_the_protocol_cannot_carry_is_refused() -> None:
    assert datatype_of(np.array(["a"])) == datatype_of(np.array([b"a"])) == "BYTES"
    with pytest.raises(ConfigError, match="complex64"):
        datatype_of(np.zeros(1, np.complex64))
