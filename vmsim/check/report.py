"""Results as JSON and as JUnit's XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

from vmsim.check.outcome import Outcome, Result


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How many cases ended how; every outcome is there."""
    return {each.value: sum(result.outcome is each for result in results) for each in Outcome}


def verdict(result: Result) -> str:
    """How a case ended; all its verdicts, if they are not the same each time."""
    if result.unstable:
        return "unstable: " + ", ".join(f"{count} {name}" for name, count in result.verdicts.items())
    return result.outcome.value


def facts(results: Sequence[Result]) -> dict[str, Any]:
    """One JSON object."""
    return {
        "ok": not any(result.bad for result in results),
        "counts": counts(results),
        "unstable": [result.id for result in results if result.unstable],
        "cases": [result.facts() for result in results],
    }


def junit_xml(results: Sequence[Result]) -> str:
    """The same as JUnit's XML: a fail is a failure, crash and hang are errors, not offered is skipped."""
    suites = ElementTree.Element("testsuites", name="vmsim check")
    for group in dict.fromkeys(result.group for result in results):
        mine = [result for result in results if result.group == group]
        numbers = counts([result for result in mine if not result.unstable])
        failures = numbers["fail"] + sum(result.unstable for result in mine)
        suite = ElementTree.SubElement(
            suites, "testsuite", name=group, tests=str(len(mine)), failures=str(failures),
            errors=str(numbers["crash"] + numbers["hang"]), skipped=str(numbers["not offered"]),
            time=f"{sum(result.duration_s for result in mine):.3f}",
        )  # fmt: skip
        for result in mine:
            _junit_case(suite, result)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _junit_case(suite: ElementTree.Element, result: Result) -> None:
    element = ElementTree.SubElement(
        suite, "testcase", classname=f"vmsim.check.{result.group}", name=result.id,
        time=f"{result.duration_s:.3f}",
    )  # fmt: skip
    if result.outcome is Outcome.NOT_OFFERED and not result.unstable:
        ElementTree.SubElement(element, "skipped", message=xml_text(result.reason))
    elif result.bad:
        kind = "failure" if result.outcome is Outcome.FAIL or result.unstable else "error"
        message = f"{verdict(result)}: expected {result.expected}; {result.came}"
        problem = ElementTree.SubElement(element, kind, type=result.outcome.value, message=xml_text(message))
        lines = (result.summary, f"specification: {result.spec}", f"again: {result.command}", result.said)
        problem.text = xml_text("\n".join(line for line in lines if line))


def xml_text(text: str) -> str:
    """Without the characters that XML cannot carry."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)
