"""Where headers of runs differ, in words."""

from __future__ import annotations

from deevo_ext.runs.difference import first_difference


def test_changed_functions_are_named_with_the_way_out() -> None:
    def header(**values: str) -> dict[str, object]:
        return {"fitness": {"metric": {"function": "mine.score", **values}}}

    one = header(sha256="ab")
    assert first_difference(one, header(sha256="ab")) is None
    for other in (header(sha256="cd"), header(version="1")):
        text = first_difference(one, other)
        assert text is not None and text.startswith("fitness.metric is mine.score")
        assert "`version`" in text
    renamed = {"fitness": {"metric": {"function": "mine.other", "sha256": "ab"}}}
    text = "fitness.metric.function is 'mine.other' in the journal, 'mine.score' now"
    assert first_difference(one, renamed) == text
