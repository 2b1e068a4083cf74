"""The stages of the flow, in order, one file per make target."""

from __future__ import annotations

import importlib
from typing import Any

from medvq.stages.stage import Stage
from medvq.storage.artifacts import StageContext
from medvq.summaries import (
    PriorSummary,
    SampleSummary,
    Summary,
)


def _late(name: str, kind: type[Summary], help_: str, draw: str, **more: Any) -> Stage[Any]:
    """TEMPORARY: wraps a stage whose file is not yet in the form of stages/stage.py."""

    def load(module: str, function: str) -> Any:
        return getattr(importlib.import_module(module), function)

    def run(context: StageContext) -> Summary | None:
        found = load(f"medvq.stages.{name}", name)(context)
        if not found:
            return None
        if kind is PriorSummary:
            finer = found.pop("finer")
            found = {"levels": [found, *finer], **found}
        if kind is SampleSummary:
            found["class_name"] = found.pop("class")
        return kind.from_json(found)

    run.__module__ = f"medvq.stages.{name}"

    def draw_(context: StageContext, summary: Summary) -> None:
        module, function = draw.split(":")
        load(module, function)(context.folder, summary, context.figures)

    def table(summary: Summary) -> list[str]:
        return list(load("medvq.report.tables", f"{name}_table")(summary))

    more.setdefault("settings", lambda config: getattr(config, name).model_dump(mode="json"))
    return Stage(name=name, help=help_, run=run, draw=draw_, table=table, summary=kind, **more)


_FIGURES = "medvq.report.figures"
from medvq.stages.ingest import INGEST  # noqa: E402
from medvq.stages.pretrain import PRETRAIN  # noqa: E402
from medvq.stages.extract import EXTRACT  # noqa: E402, I001

PRIOR = _late(
    "prior", PriorSummary, "train the model of the codes", f"{_FIGURES}:draw_prior",
    reads=(EXTRACT,), distributed=True,
)  # fmt: skip
SAMPLE = _late(
    "sample", SampleSummary, "draw images from the model of the codes", f"{_FIGURES}:draw_sample",
    reads=(INGEST, PRETRAIN, EXTRACT, PRIOR),
)  # fmt: skip
from medvq.stages.probe import PROBE  # noqa: E402
from medvq.stages.evaluate import EVALUATE  # noqa: E402, I001

STAGES = {s.name: s for s in (INGEST, PRETRAIN, EXTRACT, PRIOR, SAMPLE, PROBE, EVALUATE)}
