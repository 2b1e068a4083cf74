"""The whole flow on the smallest phantom set: its settings and its command lines."""

from __future__ import annotations

from pathlib import Path

NAME = "tiny"
SMALLEST = (
    f"name={NAME}",
    "source.train_subjects=60",
    "source.test_subjects=20",
    "source.size=64",
    # So few images of so small a size tell the class only where it is plain.
    "source.mixed=0.0",
    "ingest.read_size=64",
    "ingest.image_size=32",
    "ingest.swap.training_copies=1",
    "pretrain.widths=[8, 8, 8]",
    "pretrain.decoder_widths=null",
    "pretrain.residual_levels=1",
    # Batch statistics take more steps than there are to settle, and all codes would be the same.
    "pretrain.batch_norm=false",
    "pretrain.codebook_size=16",
    "pretrain.codebook_dim=8",
    "pretrain.batch_size=32",
    # After one epoch what the typicality check flags is chance.
    "pretrain.epochs=4",
    "extract.versions=1",
    "probe.label_fraction=0.5",
    "probe.repeats=2",
    "probe.folds=2",
    "probe.components=16",
    "probe.regularisation=[0.01]",
    "probe.bootstrap=100",
)
SMALLEST_PRIOR = ("prior.channels=8", "prior.depth=1", "prior.epochs=2", "sample.number=5")
STAGES: tuple[str, ...] = ("ingest", "pretrain", "extract", "probe", "prior", "sample", "evaluate")
FLOW: tuple[str, ...] = STAGES[:4]
"""The others read what these write, in the same ways."""


def command(folder: Path, stage: str = "probe", *more: str) -> list[str]:
    """Return the arguments of a stage, with data and artifacts in ``folder``.

    Parameters
    ----------
    more : further overrides.
    """
    overrides = [part for override in (*SMALLEST, *more) for part in ("--set", override)]
    return [
        stage, "--config", "phantom", "--device", "cpu", "--json",
        "--data-root", str(folder / "data"), "--artifacts", str(folder / "artifacts"), *overrides,
    ]  # fmt: skip


def stage_command(folder: Path, stage: str, *more: str) -> list[str]:
    """Return the arguments of any of :data:`STAGES`; ``evaluate`` judges the probe of the flow."""
    arguments = command(folder, stage, *SMALLEST_PRIOR, *more)
    probe = folder / "artifacts" / NAME / "probe" / "latest"
    return [*arguments, "--probe", str(probe)] if stage == "evaluate" else arguments
