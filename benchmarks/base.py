"""``make base``: the base model that comes with the package, and what its card says of it.

Writes ``pipeline/medvq/weights/base.safetensors`` and the figures of ``base.json`` beside it.
"""

from __future__ import annotations

import argparse
import json

from medvq.storage.base import write_base
from medvq.storage.start_files import BASE_FILE
from medvq.storage.weights import FILE
from medvq.summaries import IngestSummary

from benchmarks.study import Study, run_study


def main(study: Study, _: argparse.Namespace) -> None:
    """Make the base model, and put its weights into the package."""
    config = study.config()
    images = study.run("ingest", config)
    artifact = study.run("pretrain", config)
    write_base(artifact.folder / FILE)
    listed = images.summary(IngestSummary)
    about = {
        "members": config.source.model_dump()["members"],
        "images": listed.images,
        "subjects": listed.subjects,
        "commit": study.commit,
        "seconds": round(artifact.record.seconds),
    }
    card = BASE_FILE.with_suffix(".json")
    card.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print(BASE_FILE)


if __name__ == "__main__":
    run_study("base", "base", main)
