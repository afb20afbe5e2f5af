"""Decides how a gate's report reads for CI systems: JUnit's XML, as Jenkins' and GitLab's readers take it.

A check that is worse is a <failure>; one that is undecided is <skipped>, since nothing was shown: the exit
code (2) is what stops a pipeline then. Format: https://github.com/testmoapp/junitxml.
"""

from xml.etree import ElementTree

import msgspec

from interlock.rollout.checks import Report


def junit(report: Report) -> bytes:
    """The report as one test suite with one test case a check; UTF-8."""
    counts = {outcome: sum(c.outcome == outcome for c in report.checks) for outcome in ("worse", "undecided")}
    numbers = {
        "tests": str(len(report.checks)),
        "failures": str(counts["worse"]),
        "skipped": str(counts["undecided"]),
        "errors": "0",
    }
    root = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"interlock {report.command}", **numbers})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("model", report.model),
        ("version", report.version),
        ("outcome", report.outcome),
        ("alpha", f"{report.alpha:g}"),
        *(("note", note) for note in report.notes),
    ):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _legal(value)})
    for check in report.checks:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"classname": _legal(f"interlock.{report.command}.{report.model}"), "name": _legal(check.name)},
        )
        words = _legal(check.words)
        if check.outcome == "worse":
            failure = ElementTree.SubElement(case, "failure", {"message": words, "type": "worse"})
            failure.text = words
        elif check.outcome == "undecided":
            ElementTree.SubElement(case, "skipped", {"message": f"undecided: {words}"})
        out = ElementTree.SubElement(case, "system-out")
        out.text = _legal(msgspec.json.encode(check.facts).decode())
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _legal(text: str) -> str:
    """Without what XML 1.0 has no way to write: control characters and lone surrogates.

    >>> _legal("a\\x00b\\ud800")
    'a b '
    """
    return "".join(
        c if c in "\t\n\r" or 0x20 <= ord(c) < 0xD800 or 0xE000 <= ord(c) < 0xFFFE or ord(c) > 0xFFFF else " "
        for c in text
    )
