"""The command ``predict``: what a fitted probe says of new images, as a table.

The rows are described in :mod:`medvq.prediction.table`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from medvq.errors import UserError, refused_by_disk
from medvq.stages.command import (
    Command,
    add_artifacts_option,
    add_json_option,
    add_probe_option,
    chosen_probe,
    file_path,
)
from medvq.stages.evaluate import prior_of
from medvq.stages.stage import RunOptions
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact
from medvq.storage.probe_encoder import extract_and_pretrain
from medvq.wording import counted

if TYPE_CHECKING:
    from medvq.prediction.run import Outcome

# Beyond this share of flagged images the probe is not for them.
_MANY = 0.5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what to predict, by which probe, and where to."""
    parser.add_argument(
        "--in", dest="input", type=file_path, required=True, help="an image, or a folder of any mix"
    )
    add_probe_option(parser)
    parser.add_argument(
        "--out",
        type=file_path,
        default=os.environ.get("OUT") or "predictions.csv",
        help="the table to write (default: %(default)s)",
    )
    parser.add_argument(
        "--dicom-output",
        choices=("sr", "sc"),
        help="of each DICOM image a structured report (sr), or a secondary capture of its evidence "
        "map (sc), into a folder beside the table",
    )
    parser.add_argument(
        "--no-typicality",
        action="store_true",
        help="do not say how typical images are, for which a model of the codes is trained once",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )
    add_artifacts_option(parser)
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Predict, and say what was read, refused and flagged; return 2 where nothing was read."""
    from medvq.prediction.inputs import list_inputs
    from medvq.prediction.run import Request, predict
    from medvq.report.tables import constant_lines
    from medvq.summaries import ProbeSummary

    _check(parsed)
    probe = artifacts.finished(chosen_probe(parsed), "probe")
    extract, pretrain = extract_and_pretrain(probe)
    inputs = list_inputs(parsed.input.absolute(), pretrain.config())
    prior = None if parsed.no_typicality else _prior(parsed, extract)
    outcome = predict(
        Request(
            inputs, probe, pretrain, prior, parsed.out.absolute(), parsed.device,
            parsed.dicom_output,
        )
    )  # fmt: skip
    skipped = [f"skipped: {n} x {reason}" for reason, n in sorted(inputs.skipped.items())]
    constant = constant_lines(probe.summary(ProbeSummary))
    print(*skipped, *lines(outcome, parsed.dicom_output), *constant, sep="\n", file=sys.stderr)
    print(json.dumps(outcome.to_json()) if parsed.json else outcome.out)
    return 0 if outcome.read else 2


def _check(parsed: argparse.Namespace) -> None:
    out = parsed.out.resolve()
    if out.suffix.lower() != ".csv":
        raise UserError(f"{parsed.out} is no name of a table: name a .csv file (OUT=)")
    if parsed.dicom_output is None:
        return
    if find_spec("highdicom") is None:
        raise UserError(
            "DICOM results need the package highdicom: pip install 'medvq[dicom-output]'"
        )
    if parsed.input.is_dir() and out.is_relative_to(parsed.input.resolve()):
        raise UserError(
            "DICOM results would lie among the images that they are of: name a table outside of "
            f"{parsed.input} (OUT=)"
        )


def _prior(parsed: argparse.Namespace, extract: Artifact) -> Artifact:
    """Return the model of the codes that lies beside ``extract``, else make one."""
    from medvq.prior.existing import find_prior

    options = RunOptions(artifacts=parsed.artifacts, device=parsed.device)
    try:
        return find_prior(extract) or prior_of(extract, parsed.ensurer(options))
    except OSError as error:
        if (refusal := refused_by_disk(error, parsed.artifacts)) is None:
            raise
        without = "without what is typical (TYPICALITY=0, --no-typicality) nothing is written there"
        raise UserError(f"{refusal}; {without}") from error


def lines(outcome: Outcome, dicom_output: str | None) -> list[str]:
    """Return what a run has come to, for people, ``dicom_output`` having been asked for."""
    refused = outcome.refused.total()
    text = [f"{counted(outcome.read, 'image')} read, {refused} refused, {outcome.flagged} flagged"]
    text += [f"  refused: {n} x {reason}" for reason, n in outcome.refused.most_common()]
    text += [f"  flagged: {n} x {reason}" for reason, n in outcome.flags.most_common()]
    if not outcome.read:
        text.append("nothing is predicted: no image could be read")
    if outcome.flagged > _MANY * max(outcome.read, 1):
        which = "the image is" if outcome.read == 1 else "most images are"
        text.append(
            f"{which} unlike those of training: what the probe says is not to be trusted there"
        )
    if outcome.dicom_results:
        text.append(f"{outcome.dicom_results} DICOM results, which name their patients")
    elif dicom_output:
        text.append("no DICOM results: they are of DICOM files, and none was read")
    return text


PREDICT = Command(
    name="predict",
    help="predict the class of new images with a fitted probe, into a table",
    add_options=add_options,
    run=run,
    writes=lambda parsed: (parsed.out.absolute().parent, parsed.artifacts),
)
