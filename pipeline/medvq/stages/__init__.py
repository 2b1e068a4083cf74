"""The stages of the flow, in order, one file per make target."""

from __future__ import annotations

from medvq.stages.evaluate import EVALUATE
from medvq.stages.extract import EXTRACT
from medvq.stages.ingest import INGEST
from medvq.stages.pretrain import PRETRAIN
from medvq.stages.prior import PRIOR
from medvq.stages.probe import PROBE
from medvq.stages.sample import SAMPLE

STAGES = {s.name: s for s in (INGEST, PRETRAIN, EXTRACT, PRIOR, SAMPLE, PROBE, EVALUATE)}
