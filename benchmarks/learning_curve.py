"""What more unlabelled images give: the same training on a share of them.

Every share is trained for as many steps, see :mod:`benchmarks.variants`. Writes
``docs/LEARNING-CURVE-<data set>.md``. What was trained is not trained again.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from medvq.config import Config
from medvq.errors import UserError

from benchmarks.command_line import arguments, configuration, provenance, run_study
from benchmarks.variants import PAIRED, Found, judged, tables

DOCS = Path(__file__).parent.parent / "docs"
SHARES = (0.3, 0.1)
"""Of the training subjects, whose images are pretrained on; beside all of them."""


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    config = configuration(parsed)
    made_on = provenance(config)
    # All settings before the first training: what is refused is refused at once.
    settings = {"100%": (), **{f"{share:.0%}": fewer(config, share) for share in SHARES}}
    variants = {name: judged(parsed, options, *given) for name, given in settings.items()}
    asked = f" SET={shlex.quote(' '.join(parsed.set))}" if parsed.set else ""
    command = f"make benchmark-learning-curve DATASET={config.name}{asked}"
    page = DOCS / f"LEARNING-CURVE-{config.name}.md"
    lines = _page(variants, config, f"Made by `{command}`. {made_on}")
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(page)


def fewer(config: Config, share: float) -> tuple[str, ...]:
    """The settings of fewer images and as many steps."""
    if config.pretrain.epochs is None:
        raise UserError("benchmark-learning-curve wants a number: SET=pretrain.epochs=40")
    settings = {
        "image_fraction": share,
        "epochs": round(config.pretrain.epochs / share),
        "patience": round(config.pretrain.patience / share),
    }
    return tuple(f"pretrain.{key}={value}" for key, value in settings.items())


def _page(variants: dict[str, Found], config: Config, made_by: str) -> list[str]:
    return [
        f"# Fewer images to pretrain on: {config.name}",
        "",
        made_by,
        "",
        PAIRED,
        "",
        "Whole subjects, drawn at random; as many steps for every share, those of "
        f"{config.pretrain.epochs} epochs of all images, and the epoch that validates best. The "
        "alignment's template and the swapped copies' donors are of all training images.",
        *tables("images", variants, config),
    ]


if __name__ == "__main__":
    run_study(main)
