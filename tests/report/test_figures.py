"""Every figure is drawn from a small artifact made by hand, and shows something."""

import errno
import importlib
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import FontProperties, findfont
from medvq.datasets.manifest import COLUMNS
from medvq.errors import Notice
from medvq.prior.typicality import TypicalityCheck
from medvq.report import plots
from medvq.report.atlas_figure import side_by_side
from medvq.report.figures import draw_ingest, draw_pretrain, draw_prior, draw_sample
from medvq.report.look_alikes_figure import draw_look_alikes
from medvq.report.probe_figures import _STYLES, draw_evaluation, draw_label_efficiency, draw_probe
from medvq.summaries import (
    CodebookUse,
    EvaluateSummary,
    Interval,
    PretrainSummary,
    PriorLevel,
    PriorSummary,
    ProbeRow,
    ProbeSummary,
    SampleSummary,
    TypicalityFigures,
)
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

NAMES = ("medvq", "raw_pixels", "hog", "untrained_encoder", "border_only", "histogram")


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    folder = tmp_path / "figures"
    folder.mkdir()
    return folder


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Figures by file name, to look at their lines after they were saved."""
    by_name: dict[str, Any] = {}
    save = plots.save

    def save_and_keep(figure: Any, file: Path) -> None:
        by_name[file.name] = figure
        save(figure, file)

    monkeypatch.setattr(plots, "save", save_and_keep)
    return by_name


def greys(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("L"))


def write_ingest(folder: Path, **columns: Any) -> NDArray[np.uint8]:
    """Write what figures read of an artifact of ingest with 20 images; return the prepared ones."""
    rng = np.random.default_rng(0)
    manifest = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(20)).assign(**columns)
    manifest.to_csv(folder / "manifest.csv", index=False)
    images = rng.integers(0, 256, (20, 16, 16), np.uint8)
    np.save(folder / "images.npy", images)
    np.save(folder / "originals.npy", rng.integers(0, 256, (20, 24, 24), np.uint8))
    np.save(folder / "swapped_validation.npy", rng.integers(0, 256, (20, 16, 16), np.uint8))
    return images


def names_of(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_ingest_shows_images_and_means(
    tmp_path: Path, figures: Path, saved: dict[str, Any]
) -> None:
    splits = np.repeat(["train", "validation", "test"], [10, 4, 6])
    labels = np.arange(20) % 2
    images = write_ingest(
        tmp_path, split=splits, label=labels, label_name=np.array(["ill", "normal"])[labels]
    )
    draw_ingest(tmp_path, figures)
    assert names_of(figures) == {"images.png", "class_means.png"}
    for file in figures.iterdir():
        assert len(np.unique(greys(file))) > 100
    means = saved["class_means.png"].axes
    titles = [axis.get_title() for axis in means[:4]]
    assert titles == ["train, ill", "train, normal", "test, ill", "test, normal"]
    shown = means[4 + 3].images[0].get_array()
    np.testing.assert_allclose(shown, images[(splits == "test") & (labels == 1)].mean(0))


def test_a_figure_is_what_matplotlib_itself_would_save(tmp_path: Path) -> None:
    saved: list[NDArray[np.uint8]] = []
    for save in (plots.save, lambda figure, file: figure.savefig(file, dpi=110)):
        panels = plots.panels(tmp_path / "a.png", 3, across=2, shares=(1, 3))
        with mock.patch.object(plots, "save", save), panels as axes:
            axes[0].imshow(np.eye(5))
            for axis in axes[1:]:
                axis.plot([1, 4, 2], label="a line")
                axis.set(xlabel="x", ylabel="y", title="a title")
            axes[2].set(yscale="log", ylim=(1, 10_000))
        saved.append(greys(tmp_path / "a.png"))
    np.testing.assert_array_equal(*saved)
    assert len(np.unique(saved[0])) > 10


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    for name, options in (("a", {}), ("b", {"parse_math": False})):
        with plots.panels(tmp_path / name) as (axis,):
            axis.set_title("$\\nothing$", **options)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.fixture
def fonts() -> Iterator[mock.Mock]:
    """Stands for the search for fonts on the machine."""
    with mock.patch.object(plots, "findSystemFonts") as found:
        plots._font_with.cache_clear()
        yield found
        plots._font_with.cache_clear()


def test_a_name_in_another_script_is_drawn_by_a_font_that_has_it(
    tmp_path: Path, fonts: mock.Mock
) -> None:
    stix = FontProperties(family=["sans-serif", "STIXGeneral"])
    fonts.return_value = [__file__, findfont("STIXGeneral")]  # the first is no font
    for name, options in (("ours.png", {}), ("theirs.png", {"fontproperties": stix})):
        with plots.panels(tmp_path / name) as (axis,):
            axis.text(0.2, 0.5, "lung \u306e", **options)
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("ours", "theirs"))
    np.testing.assert_array_equal(ours, theirs)


def test_a_name_that_no_font_can_draw_is_told(tmp_path: Path, fonts: mock.Mock) -> None:
    fonts.return_value = []
    with (
        pytest.warns(Notice, match="no installed font has all letters of 'lung \u306e'"),
        plots.panels(tmp_path / "figure.png") as (axis,),
    ):
        axis.set_title("lung \u306e")


def test_pictures_side_by_side_are_themselves_on_white() -> None:
    pictures = list(np.random.default_rng(0).integers(0, 255, (3, 16, 8, 3), np.uint8))
    row = side_by_side(pictures, 4)
    assert row.shape == (16, 4 * 9 - 1, 3)
    for place, picture in enumerate(pictures):
        np.testing.assert_array_equal(row[:, 9 * place : 9 * place + 8], picture)
    assert (row[:, 8:27:9] == 255).all()
    assert (row[:, 26:] == 255).all()


def test_a_figure_is_made_while_another_thread_imports_ipython(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "IPython"
    slow.mkdir()
    code = "import time\ntime.sleep(0.3)\nversion_info = (8, 24)\n"
    (slow / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    thread = threading.Thread(target=importlib.import_module, args=("IPython",))
    thread.start()
    while "IPython" not in sys.modules:
        time.sleep(0.001)
    with plots.panels(tmp_path / "figure.png"):
        assert sys.modules["IPython"].version_info == (8, 24)
    thread.join()
    assert (tmp_path / "figure.png").exists()


def test_images_without_labels_have_no_class_means(tmp_path: Path, figures: Path) -> None:
    write_ingest(tmp_path, split="train")
    draw_ingest(tmp_path, figures)
    assert names_of(figures) == {"images.png"}


def test_a_network_that_is_not_trained_shows_its_codes_alone(tmp_path: Path, figures: Path) -> None:
    np.save(tmp_path / "codebook_use.npy", np.array([1, 6, 0, 3]))
    summary = PretrainSummary(0, 0, 0, 1, 1, 1, 1, 1, [CodebookUse(4, 3, 2.4)])
    draw_pretrain(tmp_path, summary, figures, with_images=False)
    assert names_of(figures) == {"codebook_use.png"}


def test_pretrain_shows_curves_reconstructions_and_codes(
    tmp_path: Path, figures: Path, saved: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    names = ["perplexity", "perplexity_1", "codes_used", "codes_used_1"]
    columns = ["reconstruction", "val_mse", "contrast", "val_contrast", "val_psnr_db", *names]
    history = pd.DataFrame({"epoch": range(1, 6)} | {name: rng.random(5) for name in columns})
    history.to_csv(tmp_path / "history.csv", index=False)
    original, decoded = rng.integers(0, 256, (2, 8, 16, 16), np.uint8)
    np.savez(tmp_path / "reconstructions.npz", original=original, reconstruction=decoded)
    np.save(tmp_path / "codebook_use.npy", np.array([1, 6, 0, 3]))
    np.save(tmp_path / "codebook_use_1.npy", np.array([1, 1]))
    books = [CodebookUse(size=4, used=3, perplexity=2.4), CodebookUse(2, 2, 2.0)]
    draw_pretrain(tmp_path, PretrainSummary(5, 5, 1, 1, 1, 1, 1, 1, books), figures)
    assert names_of(figures) == {"curves.png", "reconstructions.png", "codebook_use.png"}
    assert len(np.unique(greys(figures / "reconstructions.png"))) > 100
    for name in ("curves.png", "codebook_use.png"):
        assert len(np.unique(greys(figures / name))) > 20
    errors = [axis.images[0].get_array() for axis in saved["reconstructions.png"].axes[16:24]]
    np.testing.assert_array_equal(errors, np.abs(original.astype(float) - decoded))
    scale = saved["reconstructions.png"].axes[24]
    assert scale.get_ylabel() == "grey levels of 255"
    assert scale.get_ylim() == pytest.approx((0, np.max(errors)))
    validation = saved["curves.png"].axes[0].lines[1]
    np.testing.assert_allclose(validation.get_ydata(), history["val_mse"])
    for level, shares in enumerate(([60, 30, 10, 0], [50, 50])):
        bars = [bar.get_height() for bar in saved["codebook_use.png"].axes[level].patches]
        assert bars == pytest.approx(shares)
    used = [line.get_ydata().tolist() for line in saved["curves.png"].axes[3].lines]
    assert used == [history[name].tolist() for name in names]


def test_titles_beside_each_other_do_not_meet(tmp_path: Path, saved: dict[str, Any]) -> None:
    names = ["viral pneumonia, interstitial pattern", "WWWWWWWWWW WWWWWW", "none\n0.5", "iiii " * 9]
    pictures = list(np.zeros((4, 8, 8), np.uint8))
    plots.image_sheet({"row": pictures}, tmp_path / "sheet.png", "Sheet", names)
    draw_look_alikes(tmp_path / "alike.png", pictures[0], pictures[1:], names[:3], "Alike")
    for figure, expected in zip(saved.values(), (names, ["this image", *names[:3]]), strict=True):
        axes = [axis for axis in figure.axes if axis.get_title()]
        assert [axis.get_title().split() for axis in axes] == [name.split() for name in expected]
        FigureCanvasAgg(figure).draw()
        boxes = [axis.title.get_window_extent() for axis in axes]
        assert len(boxes) == 4
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_a_single_epoch_is_seen(tmp_path: Path) -> None:
    for number, marker in ((1, "o"), (2, "")):
        history = pd.DataFrame({"epoch": range(1, 1 + number), "a": 0.5, "b": 0.25})
        with plots.panels(tmp_path / "figure.png") as (axis,):
            plots.plot_epochs(axis, history, "loss", {"a": "validation"}, {"b": "training"})
        assert {line.get_marker() for line in axis.lines} == {marker}
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert ticks == list(range(1, 1 + number))


def test_prior_shows_every_level_beside_the_simple_codings(
    tmp_path: Path, figures: Path, saved: dict[str, Any]
) -> None:
    history = pd.DataFrame(
        {"epoch": [1, 2], "bits_per_code": [5.0, 4.0], "val_bits_per_code": [5.5, 4.5]}
    )
    for folder in (tmp_path, tmp_path / "level_1"):
        folder.mkdir(exist_ok=True)
        history.to_csv(folder / "history.csv", index=False)
    codings = {"uniform": 8.0, "frequency": 7.0, "place": 6.0, "neighbour": 5.0}
    level = PriorLevel("transformer", 2, 2, 9, 16, 100, 4.5, 4.4, codings)
    draw_prior(tmp_path, PriorSummary([level, level], 72, 7), figures)
    assert len(saved["curves.png"].axes) == 2
    for axis in saved["curves.png"].axes:
        training, validation, *levels = (line.get_ydata() for line in axis.lines)
        assert training.tolist() == [5, 4]
        assert validation.tolist() == [5.5, 4.5]
        assert [line[0] for line in levels] == list(codings.values())


def test_samples_of_volumes_are_their_middle_slices(tmp_path: Path, figures: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 256, (4, 1, 5, 8, 6), np.uint8)
    np.savez(tmp_path / "samples.npz", samples=volumes, real=volumes, histogram=volumes)
    draw_sample(tmp_path, SampleSummary(4, None, 1, 1, 4), figures)
    tiles = greys(figures / "samples.png")
    np.testing.assert_array_equal(tiles[:8, 6:], volumes[1, 0, 2])


def test_sample_shows_all_samples_and_compares_some(
    tmp_path: Path, figures: Path, saved: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    samples, real, histogram = rng.integers(0, 256, (3, 20, 8, 8), np.uint8)
    np.savez(tmp_path / "samples.npz", samples=samples, real=real[:5], histogram=histogram)
    draw_sample(tmp_path, SampleSummary(20, "ill", 1, 1, 4), figures)
    tiles = greys(figures / "samples.png")
    assert tiles.shape == (40, 40)  # five by five, of which the last row is empty
    np.testing.assert_array_equal(tiles[8:16, 32:], samples[9])
    assert not tiles[32:].any()
    sheet = saved["comparison.png"]
    assert sheet.get_suptitle() == "Images of ill"
    shown = [axis.images[0].get_array() for axis in sheet.axes]
    # As many across as there are real ones; two rows of the others.
    np.testing.assert_array_equal(
        shown, [*real[:5], *samples[:5], *samples[8:13], *histogram[:5], *histogram[8:13]]
    )


def probed(fraction: float, auroc: float = 0.8) -> ProbeSummary:
    rows = [
        ProbeRow(name, {"auroc": Interval(auroc - n / 50, 0.01, (0.4, 0.95))})
        for n, name in enumerate(NAMES)
    ]
    return ProbeSummary(rows, fraction, 9, 9, 2, ["well", "ill"], 0.5, {}, "binary", "auroc")


@pytest.fixture
def predictions(tmp_path: Path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = np.tile(np.arange(60) % 2, len(NAMES) * 2)
    table = pd.DataFrame(
        {
            "features": np.repeat(NAMES, 120),
            "label_subset": np.tile(np.repeat([0, 1], 60), len(NAMES)),
            "image_id": np.tile(np.arange(60), len(NAMES) * 2),
            "label": label,
            "threshold": 0.5,
            "probability": np.clip(0.3 * label + 0.7 * rng.random(len(label)), 0, 1),
        }
    )
    table.to_parquet(tmp_path / "predictions.parquet")
    return table


def test_probe_shows_roc_and_calibration(
    tmp_path: Path, figures: Path, predictions: pd.DataFrame, saved: dict[str, Any]
) -> None:
    already_open = plt.get_fignums()
    draw_probe(tmp_path, probed(0.05), figures)
    assert plt.get_fignums() == already_open
    assert names_of(figures) == {"roc_and_calibration.png", "decisions_and_abstention.png"}
    for file in figures.iterdir():
        assert len(np.unique(greys(file))) > 30
    left, right = saved["roc_and_calibration.png"].axes
    assert len(left.lines) == len(NAMES) + 1
    for name, line in zip(("medvq", "raw_pixels", "hog"), left.lines, strict=False):
        own = predictions[predictions["features"] == name]
        aurocs = [
            roc_auc_score(d["label"], d["probability"]) for _, d in own.groupby("label_subset")
        ]
        under = np.trapezoid(line.get_ydata(), line.get_xdata())
        assert under == pytest.approx(np.mean(aurocs), abs=0.02)
    assert left.lines[0].get_label() == "MedVQ 0.800 [0.400, 0.950]"
    # Three feature sets, MedVQ corrected, and the diagonal.
    assert len(right.lines) == 5


def test_label_efficiency_is_over_fractions(tmp_path: Path, saved: dict[str, Any]) -> None:
    summaries = {0.05: probed(0.05), 0.01: probed(0.01, 0.7)}
    draw_label_efficiency(summaries, tmp_path / "label_efficiency.png")
    (axis,) = saved["label_efficiency.png"].axes
    means = axis.containers[0].lines[0]
    places = np.array([bar.lines[0].get_xdata() for bar in axis.containers], float)
    # The rows of a share stand beside each other, around it.
    assert np.exp(np.log(places).mean(0)) == pytest.approx([1, 5])
    assert (np.diff(places, axis=0) > 0).all()
    assert np.abs(np.log(places / [1, 5])).max() < 0.15
    assert means.get_ydata().tolist() == [0.7, 0.8]
    # The legend hides none of them.
    assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1


def test_one_share_of_labels_is_shown_as_dots(tmp_path: Path, saved: dict[str, Any]) -> None:
    draw_label_efficiency({0.05: probed(0.05)}, tmp_path / "label_efficiency.png")
    (axis,) = saved["label_efficiency.png"].axes
    interval, dot = axis.lines[:2]
    assert interval.get_xdata() == pytest.approx([0.4, 0.95])
    assert dot.get_xdata() == pytest.approx([0.8])
    assert next(tick.get_text() for tick in axis.get_yticklabels()) == "MedVQ"
    assert axis.texts[0].get_text() == "0.800 [0.400, 0.950]"


def test_lines_are_told_apart_without_their_colours() -> None:
    styles = [(str(style.line), style.marker) for style in _STYLES.values()]
    assert len(set(styles)) == len(styles)
    assert len({line for line, _ in styles}) >= 9


def test_a_figure_that_the_disk_refuses_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    file = tmp_path / "figure.png"
    file.write_bytes(b"before")
    monkeypatch.setattr("medvq.storage.publication.sync", full)
    with pytest.raises(OSError, match="full"), plots.panels(file):
        pass
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(file, b"before")]


def test_an_axis_of_values_that_are_all_zero_has_a_height() -> None:
    figure, axis = plt.subplots()
    axis.plot([0, 1], [0, 0])
    with warnings.catch_warnings(action="error"):
        plots.start_at_zero(axis)
    assert axis.get_ylim() == (0, 1)
    plt.close(figure)


@pytest.mark.parametrize(("last", "scale"), [(0.01, "log"), (0.8, "linear"), (-0.5, "linear")])
def test_losses_that_fall_far_are_on_a_logarithmic_axis(
    tmp_path: Path, last: float, scale: str
) -> None:
    with plots.panels(tmp_path / "figure.png") as (axis,):
        axis.plot([1, 2, 3], [1.0, np.nan, last])
        plots.show_fall(axis)
        assert axis.get_yscale() == scale


def test_decisions_and_abstention_are_means_over_draws(
    tmp_path: Path, figures: Path, predictions: pd.DataFrame, saved: dict[str, Any]
) -> None:
    draw_probe(tmp_path, probed(0.05), figures)
    left, middle, right = saved["decisions_and_abstention.png"].axes
    labels = ["MedVQ", "raw pixels", "untrained encoder"]
    assert [line.get_label() for line in left.lines] == [*labels, "treat all", "treat none"]
    assert [line.get_label() for line in middle.lines] == labels
    own = predictions[predictions["features"] == "raw_pixels"]
    wrong = (own["probability"] >= 0.5) != (own["label"] == 1)
    assert middle.lines[1].get_ydata()[-1] == pytest.approx(100 * wrong.mean())
    each = wrong.groupby([own["label_subset"], own["label"]]).mean()
    assert right.lines[1].get_ydata()[-1] == pytest.approx(100 * each.mean())
    treated = own[own["probability"] >= 0.2]
    gain = (treated["label"] == 1).sum() - (treated["label"] == 0).sum() * 0.2 / 0.8
    assert left.lines[1].get_xdata()[19] == pytest.approx(20)
    assert left.lines[1].get_ydata()[19] == pytest.approx(100 * gain / len(own))


@pytest.mark.parametrize("task", ["classes", "age"])
def test_classes_and_numbers_are_shown_against_the_truth(
    tmp_path: Path, figures: Path, saved: dict[str, Any], task: str
) -> None:
    truth = "label" if task == "classes" else "target"
    table = pd.DataFrame({truth: [0, 0, 1, 2], "predicted": [0, 1, 1, 1], "features": "medvq"})
    other = table.assign(features="hog", predicted=0)
    pd.concat([table, other]).to_parquet(tmp_path / "predictions.parquet")
    recall = {"a": 0.5, "b": 1.0, "c": 0.0} if task == "classes" else None
    row = ProbeRow("medvq", {}, recall=recall)
    summary = ProbeSummary([row], 1, 9, 9, 1, [], 0.5, {}, task, "accuracy")
    draw_probe(tmp_path, summary, figures)
    axis = saved["predictions.png"].axes[0]
    if task == "classes":
        shares = axis.images[0].get_array()
        np.testing.assert_array_equal(shares, [[0.5, 0.5, 0], [0, 1, 0], [0, 1, 0]])
        written = {text.get_position(): text.get_text() for text in axis.texts}
        assert written == {(c, t): f"{shares[t, c]:.2f}" for t in range(3) for c in range(3)}
    else:
        assert axis.get_xlabel() == "age"
        np.testing.assert_array_equal(
            axis.collections[0].get_offsets(), table[[truth, "predicted"]]
        )


@pytest.mark.parametrize("flagged", [0, 3])
def test_evaluation_shows_how_typical_the_images_are(
    tmp_path: Path, figures: Path, saved: dict[str, Any], flagged: int
) -> None:
    names = [f"{number:016x}" for number in range(20)]
    images = write_ingest(tmp_path, image_id=names)
    check = TypicalityCheck(9.0, 100, tuple(np.linspace(4, 9.1, 100).tolist()))
    surprise = np.linspace(5, 6, 20)
    surprise[[4, 2, 9][:flagged]] = [12, 11, 10][:flagged]
    table = pd.DataFrame(
        {"image_id": names, "out_of_distribution_score": surprise, "untypical": surprise > 9}
    )
    # There is no row of images that the training has seen.
    table.drop(index=0).to_parquet(tmp_path / "predictions.parquet")
    counts = TypicalityFigures(19, flagged, 0, 0, 9, 100, 0, 0, (0, 0))
    summary = EvaluateSummary([], "0123", 19, 0, 1, 0.05, "auroc", counts)
    draw_evaluation(tmp_path, summary, tmp_path, check, figures)
    (axis,) = saved["typicality.png"].axes
    assert axis.get_title() == f"{flagged} of 19 images are flagged"
    assert "bits per code" in axis.get_xlabel()
    assert axis.lines[0].get_xdata() == [9.0, 9.0]
    heights = [bar.get_height() for bar in axis.patches[:40]]
    assert sum(heights) == pytest.approx(100)
    assert ("untypical.png" in names_of(figures)) == bool(flagged)
    if flagged:
        shown = saved["untypical.png"].axes
        titles = [f"{names[row]}\n{bits}.0 bits" for row, bits in ((4, 12), (2, 11), (9, 10))]
        assert [cell.get_title() for cell in shown[:3]] == titles
        prepared = [cell.images[0].get_array() for cell in shown[3:]]
        np.testing.assert_array_equal(prepared, images[[4, 2, 9]])
