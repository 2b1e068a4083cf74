"""The command ``explain``: why a fitted probe says of an image what it says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medvq.stages.command import (
    Command,
    add_json_option,
    add_probe_option,
    check_image,
    chosen_probe,
    file_path,
)

if TYPE_CHECKING:
    from medvq.explain.explanation import Explainer, Explanation

_CODES, _PATCHES = 6, 6


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the image, the probe and the folder of the pictures."""
    parser.add_argument(
        "image", type=file_path, metavar="IMAGE", help="a DICOM, NIfTI or picture file"
    )
    add_probe_option(parser)
    parser.add_argument(
        "--out",
        type=file_path,
        default=Path("explain"),
        help="folder that pictures and JSON are written to (default: %(default)s)",
    )
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Write two pictures and a JSON file; print what the probe says, and what to open."""
    check_image(parsed)
    from medvq.explain.explanation import Explainer, write_json
    from medvq.explain.sources import ProbeSources
    from medvq.report.evidence_figure import ExplainedImage, draw_explanation
    from medvq.report.tables import constant_lines

    explainer = Explainer(ProbeSources(chosen_probe(parsed)))
    explanation = explainer(parsed.image)
    parsed.out.mkdir(parents=True, exist_ok=True)
    name = parsed.out.absolute() / explanation.image_id
    picture, codes, values = (name.with_suffix(s) for s in (".png", ".codes.png", ".json"))
    explained = ExplainedImage(
        explanation.image,
        explanation.extent,
        explanation.evidence,
        explanation.intercept,
        explanation.classes,
    )
    draw_explanation(picture, explained, _title(explanation))
    _draw_codes(codes, explainer, explanation)
    write_json(explanation, values)
    print(explanation.line())
    for notice in (*explanation.notices, *constant_lines(explainer.sources.summary)):
        print(notice)
    print(f"codes that mattered: {codes}", f"all numbers: {values}", sep="\n")
    print(values.read_text(encoding="utf-8") if parsed.json else picture)
    return 0


def _title(explanation: Explanation) -> str:
    """Return the sum that the picture shows, and what the probe says."""
    if len(explanation.logits) > 1:
        return f"{explanation.line()}\nevidence for each class, from the mean training image"
    (logit,), (intercept,) = explanation.logits, explanation.intercept
    what = "logit" if explanation.classes else "number"
    evidence = logit - intercept
    return (
        f"{explanation.line()}\n{what} {logit:.2f} = {intercept:.2f} (the mean training image) "
        f"{'+' if evidence >= 0 else '-'} {abs(evidence):.2f} (evidence)"
    )


def _draw_codes(file: Path, explainer: Explainer, explanation: Explanation) -> None:
    import numpy as np

    from medvq.report.evidence_figure import CodeRow, draw_codes, patch

    images = explainer.sources.images("images.npy")
    most = explanation.codes_by_evidence()[:_CODES]
    shared = explainer.patches([one.code for one in most], _PATCHES)
    grid = explanation.codes.shape
    rows = []
    for one in most:
        strongest = one.evidence[int(np.argmax(np.abs(one.evidence)))]
        places = f"{len(one.places)} place{'s' * (len(one.places) > 1)}"
        patches = [patch(images[row], grid, place) for row, place in shared[one.code]]
        title = f"code {one.code}\n{strongest:+.2f}, {places}"
        rows.append(CodeRow(title, one.places[0], patches))
    draw_codes(file, explanation.prepared, explanation.codes, rows)


EXPLAIN = Command(
    name="explain",
    help="show what in an image speaks for and against what a fitted linear probe says",
    add_options=add_options,
    run=run,
    writes=lambda parsed: (parsed.out,),
)
