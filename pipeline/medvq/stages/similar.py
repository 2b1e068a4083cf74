"""The command ``similar``: training images of other patients that look like an image."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvq.stages.command import (
    Command,
    add_json_option,
    add_probe_option,
    check_image,
    chosen_probe,
    file_path,
    whole_number,
)
from medvq.wording import counted


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the image, the probe, how many images to show and the folder of the sheet."""
    parser.add_argument(
        "image", type=file_path, metavar="IMAGE", help="a DICOM, NIfTI or picture file"
    )
    add_probe_option(parser)
    parser.add_argument(
        "--number",
        type=whole_number(1, 1000),
        default=11,
        help="of images to show (default: %(default)s)",
    )
    parser.add_argument(
        "--subject",
        help="the patient of IMAGE, none of whose images is shown; DICOM files and training images "
        "tell it themselves",
    )
    parser.add_argument(
        "--out",
        type=file_path,
        default=Path("similar"),
        help="folder that the sheet and the table are written to (default: %(default)s)",
    )
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Write a contact sheet and a table; print what is nearest, and what to open."""
    import json

    check_image(parsed)

    from medvq.explain.neighbours import look_alikes
    from medvq.explain.sources import ProbeSources
    from medvq.report.look_alikes_figure import draw_look_alikes
    from medvq.storage.publication import write_bytes

    sources = ProbeSources(chosen_probe(parsed))
    found = look_alikes(sources, parsed.image, parsed.number, parsed.subject)
    parsed.out.mkdir(parents=True, exist_ok=True)
    name = parsed.out.absolute() / found.image_id
    sheet, table = (name.with_suffix(suffix) for suffix in (".similar.png", ".similar.csv"))
    neighbours = found.neighbours.drop(columns="row")
    write_bytes(table, neighbours.to_csv(index=False, float_format="%.4f").encode())
    images = sources.images("originals.npy")
    query = found.image[0] if len(found.image) == 1 and found.image.ndim == 3 else found.image
    pairs = zip(neighbours["class_name"], neighbours["distance"], strict=True)
    titles = [f"{label} {distance:.2f}".lstrip() for label, distance in pairs]
    title = f"Nearest of {counted(found.images, 'training image')} of other patients (1 - cosine)"
    draw_look_alikes(sheet, query, [images[row] for row in found.neighbours["row"]], titles, title)
    if any(counts := neighbours["class_name"].value_counts().to_dict()):
        shares = ", ".join(
            f"{number} {label or 'without a label'}" for label, number in counts.items()
        )
        which = "nearest" if len(neighbours) == 1 else f"{len(neighbours)} nearest"
        print(f"the {which} of {counted(found.images, 'image')}: {shares}")
    if not found.exact:
        print("the search is approximate: it may have missed some")
    print(f"table: {table}")
    rows = neighbours.to_dict("records")
    print(json.dumps({"image_id": found.image_id, "neighbours": rows}) if parsed.json else sheet)
    return 0


SIMILAR = Command(
    name="similar",
    help="show the training images of other patients that are most like an image",
    add_options=add_options,
    run=run,
    writes=lambda parsed: (parsed.out,),
)
