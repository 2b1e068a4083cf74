"""How feature sets are told apart in figures of probes."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

from factories.tracked import PROBE, row
from medvq.report.probe_figures import _STYLES, draw_label_efficiency
from medvq.stages.probe import BASELINES, MEDVQ, SINGLE_SETS


def test_no_two_feature_sets_share_a_colour() -> None:
    colours = [style.colour for style in _STYLES.values()]
    assert len(set(colours)) == len(colours)


def test_no_row_of_a_probe_is_left_out_of_its_figures() -> None:
    assert {MEDVQ, *BASELINES, *SINGLE_SETS} <= _STYLES.keys()


def test_an_encoder_of_the_users_own_is_shown_beside_medvq() -> None:
    summary = replace(PROBE, rows=[*PROBE.rows, row("external", 0.6)])
    with mock.patch("medvq.report.plots.save") as save:
        draw_label_efficiency({0.05: summary}, Path("label_efficiency.png"))
    (axis,) = save.call_args.args[0].axes
    shown = [tick.get_text() for tick in axis.get_yticklabels()]
    assert shown == ["MedVQ", "raw pixels", "HOG", "external encoder"]
