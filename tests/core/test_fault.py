"""A fault on purpose: how it is written, and which models may never have one."""

import msgspec
import pytest

from interlock.core.errors import ConfigError
from interlock.core.fault import KINDS, Fault, is_selftest, parse_fault, selftest_model
from interlock.core.letters import Desired, ModelDesired, decode_desired, encode
from interlock.core.model import Model, Signature, Version, check_fault, check_name

VERSION = Version("iris", "2", "sha256:" + "0" * 64, "onnx", "model.onnx", Signature((), ()))


@pytest.mark.parametrize("text", ["fail=0.05", "slow=3", "flip=1", "nan=1e-3"])
def test_a_fault_is_read_as_it_is_written(text: str) -> None:
    fault = parse_fault(text)
    assert fault.kind in KINDS and fault.level == float(text.partition("=")[2])


@pytest.mark.parametrize(
    "text", ["fail", "fail=", "crash=0.1", "fail=0", "nan=1.5", "slow=1", "slow=1e9", "=1"]
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="fault"):
        parse_fault(text)


@pytest.mark.parametrize("level", [float("nan"), float("inf"), -1.0])
def test_no_level_is_beyond_reason(level: float) -> None:
    for kind in KINDS:
        with pytest.raises(ConfigError):
            Fault(kind, level)


def test_nobody_can_register_the_model_of_a_self_test() -> None:
    with pytest.raises(ConfigError, match="model name"):
        check_name(selftest_model("iris"))
    assert is_selftest(selftest_model("iris")) and not is_selftest("iris selftest")


def test_only_the_model_of_a_self_test_may_have_a_fault() -> None:
    faulty = msgspec.structs.replace(VERSION, fault=Fault("fail", 0.1))
    check_fault(VERSION)
    check_fault(msgspec.structs.replace(faulty, model=selftest_model("iris")))
    with pytest.raises(ConfigError, match=r"version 2 of 'iris' has a fault on purpose \(fail on 10 %\)"):
        check_fault(faulty)


def test_a_fault_travels_in_a_letter_and_its_absence_in_those_of_before() -> None:
    faulty = msgspec.structs.replace(VERSION, fault=Fault("slow", 3.0, seed=7))
    letter = Desired("local", 1, (ModelDesired(Model("iris"), (faulty, VERSION), None),))
    assert decode_desired(encode(letter)) == letter
    without = msgspec.json.decode(encode(letter))
    for version in without["models"][0]["versions"]:
        del version["fault"]
    assert all(one.fault is None for one in decode_desired(msgspec.json.encode(without)).models[0].versions)
