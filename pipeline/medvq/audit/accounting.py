"""What became of every file that ingest saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from medvq.audit.findings import Audit
from medvq.datasets.dataset import SPLITS
from medvq.summaries import IngestSummary, SplitCount


def ingest_summary(
    manifest: pd.DataFrame,
    set_aside: Sequence[str],
    skipped: dict[str, int],
    not_aligned: int,
    audit: Audit,
) -> IngestSummary:
    """Count what became of every file that ingest saw.

    Parameters
    ----------
    manifest : the images that were read.
    set_aside : for each image that was not, the reason.
    skipped : how many other files there are, by reason.
    """
    labelled = manifest[(manifest["label_name"] != "") | manifest["target"].notna()]
    subjects_of = labelled.groupby("split")["subject_id"].nunique()

    splits = {}
    for split in SPLITS:
        counts = audit.balance.get(split, {})
        subjects = manifest.loc[manifest["split"] == split, "subject_id"].nunique()
        labels = {label: count for label, count in counts.items() if label}
        splits[str(split)] = SplitCount(sum(counts.values()), int(subjects), labels)
    return IngestSummary(
        images=len(manifest),
        subjects=int(manifest["subject_id"].nunique()),
        splits=splits,
        unlabelled=len(manifest) - len(labelled),
        labelled_subjects=int(labelled["subject_id"].nunique()),
        labelled_test_subjects=int(subjects_of.get("test", 0)),
        listed=len(manifest) + len(set_aside) + sum(skipped.values()),
        quarantined=len(set_aside),
        set_aside=dict(Counter(set_aside).most_common()),
        skipped=skipped,
        duplicates=audit.duplicate_files,
        not_aligned=not_aligned,
        audit=audit.headline(),
    )
