"""The model card of a bundle."""

from __future__ import annotations

from medvq.config import PublishedSource
from medvq.datasets.data_manifest import data_manifest
from medvq.export.source import ExportSource
from medvq.summaries import IngestSummary, ProbeSummary
from medvq.wording import counted

_CARD = """# {title}

{description}

## Intended use

Research on images of the kind that the encoder was trained on. It is no medical device, and was
not judged for diagnosis, screening or triage. Its features are for linear models fitted on your own
labels; a probe that comes with it holds for the population that it was fitted on.

## Limits

- Another site, device, view or population may score lower: judge it on labels of your own first.
- Probabilities are calibrated for the share of classes in the training labels.
- Images are registered to the mean training image; an image of another kind is registered too, and
  nothing in this bundle says that it does not belong.

## Training data

{data}

## Performance

{performance}

## How to run it

    pip install 'monai[fire]' medvq
    python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
        --dataset_dir FOLDER_OF_IMAGES

It writes `output/features.parquet` and, where there is a probe, `output/predictions.csv`.

## Provenance

{provenance}

## Licences

Code: Apache-2.0 (MedVQ, MONAI). Weights: those of the training data bind their use, see above.
"""


def model_card(source: ExportSource) -> str:
    """Return the card as Markdown."""
    record = source.pretrain.record
    lines = [
        f"- features: {', '.join(source.network.names)}",
        f"- encoder: artifact {source.pretrain.fingerprint} of MedVQ {record.versions['medvq']}, "
        f"commit {record.commit or 'unknown'}",
    ]
    if source.probe_artifact is not None:
        lines.append(f"- probe: artifact {source.probe_artifact.fingerprint}")
    return _CARD.format(
        title=f"MedVQ encoder: {source.config.name}",
        description=source.config.description or "Features from unlabelled medical images.",
        data=_data(source),
        performance=_performance(source),
        provenance="\n".join(lines),
    )


def _data(source: ExportSource) -> str:
    ingest = source.ingest.summary(IngestSummary)
    parts = ", ".join(f"{part.images} {name}" for name, part in ingest.splits.items())
    counts = (
        f"{counted(ingest.images, 'image')} of {counted(ingest.subjects, 'subject')} ({parts})."
    )
    configured = source.config.source
    if not isinstance(configured, PublishedSource):
        return f"{counts} A data set of the exporter's own; ask them for its licence."
    published = data_manifest(configured.kind)
    return (
        f"{counts} {published.title}, {published.address}. Licence: {published.licence}.\n\n"
        f"{published.citation.strip()}"
    )


def _performance(source: ExportSource) -> str:
    if source.probe_artifact is None:
        return "No probe comes with it."
    summary = source.probe_artifact.summary(ProbeSummary)
    where = "the test split" if summary.evaluate == "test" else "cross-validation"
    rows = [
        f"| {name} | {value.mean:.3f} | {value.ci95[0]:.3f} to {value.ci95[1]:.3f} |"
        for name, value in summary.rows[0].metrics.items()
    ]
    classes = f" Classes, in order: {', '.join(summary.classes)}." if summary.classes else ""
    head = [
        f"Probes on {100 * summary.label_fraction:g}% of the labels "
        f"({counted(summary.labels, 'image')}, {counted(summary.repeats, 'label subset')}), "
        f"judged on {where}; 95% intervals.{classes}",
        "",
        "| metric | mean | 95% interval |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows])
