"""The JUnit file: well-formed, one case a check, whatever the words are."""

from xml.etree import ElementTree

from interlock.operations.junit import junit
from interlock.rollout.checks import Check, Report

CHECKS = (
    Check("accuracy", "pass", "fine"),
    Check('mae where "<a>" = \x00 & ü', "worse", "it\ud800 is < that & more", {"excess": 0.1}),
    Check("rmse", "undecided", "too few rows"),
)


def test_every_check_is_a_case_and_its_outcome_stands_there() -> None:
    report = Report("gate", "iris", "3", "worse", CHECKS[:0] + CHECKS, 0.05, notes=("a <note>",))
    root = ElementTree.fromstring(junit(report))
    suite = root.find("testsuite")
    assert suite is not None and root.tag == "testsuites"
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped", "errors")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
        "errors": "0",
    }
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["accuracy", 'mae where "<a>" =   & ü', "rmse"]
    assert {case.get("classname") for case in cases} == {"interlock.gate.iris"}
    assert cases[0].find("failure") is None and cases[0].find("skipped") is None
    failure, skipped = cases[1].find("failure"), cases[2].find("skipped")
    assert failure is not None and failure.get("message") == failure.text == "it  is < that & more"
    assert skipped is not None and skipped.get("message") == "undecided: too few rows"
    properties = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert properties["outcome"] == "worse" and properties["note"] == "a <note>"
