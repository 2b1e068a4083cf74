"""Numbers of things in messages: one is singular."""

from dataclasses import replace
from pathlib import Path

from factories.tracked import PROBE
from medvq.prediction.run import Outcome
from medvq.report.report_words import of_audit
from medvq.report.tables import extract_table, probe_table
from medvq.stages.predict import lines
from medvq.summaries import AuditHeadline, ExtractSummary
from medvq.wording import counted


def test_one_is_singular() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert counted(2, "class") == "2 classes"


def test_tables_and_pages_count_one_in_the_singular() -> None:
    audit = AuditHeadline(None, {}, 1)
    assert extract_table(ExtractSummary(1, 9.0, {"histogram": 4}, audit=audit)) == [
        "  1 image, 9 images/s: histogram 4",
        "  audit: 1 warning, explained in audit.html of the ingest artifact",
    ]
    (warned,) = of_audit(audit)
    assert warned.text == "1 of its findings calls for a look; it is in audit.html."
    few = replace(PROBE, labels=1, subjects=1, repeats=1, rows=[])
    assert probe_table(few)[0].startswith(
        "  5% of the labels: 1 image of 1 subject, 1 label subset; mean"
    )
    assert lines(Outcome(Path("out.csv"), read=1), None)[0] == "1 image read, 0 refused, 0 flagged"
