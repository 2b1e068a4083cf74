"""The report: true to its artifacts, whole in itself, safe, legible on a phone and in the dark."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from medvq.cli import main
from medvq.errors import UserError
from medvq.explain.atlas import describe_codes, nearest_patches
from medvq.explain.sources import ProbeSources
from medvq.inference import Encoder
from medvq.method.scaling import to_unit
from medvq.report import plots, report_page
from medvq.report.label_needs import fit_curve, say_needs
from medvq.report.report_figures import draw_errors, find_errors
from medvq.report.report_file import is_of, report_file
from medvq.report.report_page import alike, write_report
from medvq.report.report_words import distrust, sentence
from medvq.storage.artifacts import Artifact, find, source
from medvq.storage.feature_store import FEATURES, read_feature, read_keys
from medvq.summaries import (
    AuditHeadline,
    IngestSummary,
    Interval,
    LabelScores,
    ProbeRow,
    ProbeSummary,
    Shortcut,
    SplitCount,
)
from PIL import Image
from report.test_audit_page import Page

HOSTILE = "<img src=x onerror=alert(1)>"
SETTINGS = (
    "ingest.read_size=32", "ingest.image_size=32", "ingest.swap.training_copies=1",
    "pretrain.widths=[8,8,8]", "pretrain.codebook_size=16", "pretrain.codebook_dim=8",
    "pretrain.batch_size=16", "pretrain.epochs=1", "extract.versions=1", "probe.repeats=2",
    "probe.folds=2", "probe.components=8", "probe.regularisation=[0.01]", "probe.bootstrap=100",
)  # fmt: skip


def write_images(folder: Path) -> Path:
    """Write 96 noisy pictures of two classes, of which one has a hostile name, and a yaml."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(96):
        picture = rng.integers(0, 200, (32, 32)).astype(np.uint8)
        ill = number % 2 == 1
        picture[12:20, 12:20] += 40 * ill
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
        rows.append((f"{number:02d}.png", HOSTILE if ill else "well", f"patient {number}"))
    table = pd.DataFrame(rows, columns=["file", "label", "subject"])
    table.to_csv(folder / "labels.csv", index=False)
    config = folder / "hostile.yaml"
    source = f"{{kind: image_folder, folder: {folder}, labels: labels.csv}}"
    config.write_text(f"name: hostile\ndescription: '{HOSTILE}'\nsource: {source}\n")
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of a data set, whose probe has run at two shares of the labels."""
    os.environ["MEDVQ_SUBJECT_KEY"] = "tests only"
    home = tmp_path_factory.mktemp("reported")
    (home / "images").mkdir()
    config, artifacts = write_images(home / "images"), home / "artifacts"
    for fraction in (1.0, 0.5):
        command = ["probe", "--config", str(config), "--artifacts", str(artifacts)]
        settings = (*SETTINGS, f"probe.label_fraction={fraction}")
        options = [part for setting in settings for part in ("--set", setting)]
        assert main([*command, "--device", "cpu", *options]) == 0
    return artifacts / "hostile"


def read(folder: Path) -> str:
    return (folder / "report" / "report.html").read_text(encoding="utf-8")


def last_probe(folder: Path) -> Artifact:
    found = find((folder / "probe" / "latest").resolve())
    assert found is not None
    return found


def test_the_page_is_whole_in_itself_and_no_name_is_markup(folder: Path) -> None:
    text = read(folder)
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert HOSTILE not in text
    assert f"P({HOSTILE})" not in text
    assert HOSTILE in page.text
    assert "default-src 'none'" in text
    assert len(text) < 10e6
    assert page.text.count("patient") == 0
    assert (folder / "report" / "report.html").stat().st_mode & 0o777 == 0o600


def test_the_atlas_is_that_of_the_features_and_the_page_has_no_codes_without_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = find((folder / "extract" / "latest").resolve())
    assert extract is not None
    atlas = extract.folder / "figures" / "atlas.png"
    with Image.open(atlas) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 20  # it is not blank
    embedded = base64.b64encode(atlas.read_bytes()).decode()
    assert embedded in read(folder)
    monkeypatch.setattr(report_page, "ATLAS", "made by older code.png")
    (folder / "report" / "report.html").unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert embedded not in text
    assert 'id="codes"' not in text
    (folder / "report" / "report.html").unlink()
    monkeypatch.undo()
    assert embedded in write_report(folder).read_text(encoding="utf-8")


def test_a_probe_that_reads_what_the_network_does_not_compute_has_its_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = last_probe(folder).config().probe.features
    with monkeypatch.context() as without:
        for place in ("report.report_page", "storage.probe_encoder"):
            without.setattr(f"medvq.{place}.NOT_OF_A_FILE", {name: "it is another encoder's"})
        with pytest.raises(UserError, match="it is another encoder's"):
            ProbeSources(last_probe(folder).folder, "cpu")
        report_file(folder).unlink()
        write_report(folder)
    assert "surest of and wrong about" in read(folder)
    assert "Orange places speak for the second class" not in read(folder)
    report_file(folder).unlink()
    write_report(folder)


class NoMaps:
    """An explainer of a probe that reads features of which there is no map."""

    def __init__(self, _: object) -> None:
        self.linear = self

    def decompose(self, *_: object) -> None:
        raise UserError("'hog' is no mean over places of a map")


def test_a_probe_whose_features_have_no_map_has_its_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(folder)
    colours = "Orange places speak for well, blue ones against it."
    with monkeypatch.context() as without:
        without.setattr("medvq.report.report_figures.Explainer", NoMaps)
        report_file(folder).unlink()
        write_report(folder)
    assert colours in before
    assert colours not in read(folder)
    assert "surest of and wrong about" in read(folder)
    report_file(folder).unlink()
    write_report(folder)


def test_titles_of_the_worst_errors_do_not_meet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probe, drawn = last_probe(folder), list[Figure]()
    ingest = source(source(probe, "extract"), "ingest").folder
    errors = find_errors(probe.folder, ingest, 6)
    monkeypatch.setattr(plots, "save", lambda figure, _: drawn.append(figure))
    assert errors is not None
    images, classes = np.load(ingest / "images.npy"), ["NORMAL", "PNEUMONIA"]
    sources = ProbeSources(probe.folder, "cpu")
    draw_errors(errors, images, classes, sources, tmp_path / "errors.png")
    FigureCanvasAgg(drawn[0]).draw()
    axes = [axis for axis in drawn[0].axes if axis.get_title()]
    boxes = [axis.title.get_window_extent() for axis in axes]
    assert len(boxes) == len(errors.table) > 1
    for number, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= drawn[0].bbox.width
        assert not any(map(box.overlaps, boxes[:number]))


def test_a_page_of_cross_validation_says_so_and_has_no_validation_scores(
    folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder.parent, tmp_path / "artifacts", symlinks=True)
    settings = (*SETTINGS, "probe.evaluate=cross_validation", "probe.outer_folds=3")
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["probe", "--config", str(folder.parents[1] / "images" / "hostile.yaml")]
    assert main([*command, "--artifacts", str(copy), "--device", "cpu", *options]) == 0
    text = Page(read(copy / "hostile")).text
    assert "2 repeats of cross-validation in 3 folds; mean and 95% interval." in text
    row = r"features AUROC ([\w ]+?)( validation)? MedVQ \d"
    heads = [re.search(row, " ".join(one.split())) for one in (Page(read(folder)).text, text)]
    assert [head and head[2] for head in heads] == [" validation", None]


def test_one_epoch_is_told_as_one(folder: Path) -> None:
    assert "1 epoch without labels; reconstructions of" in " ".join(Page(read(folder)).text.split())


def test_the_first_sentence_and_the_table_are_those_of_the_probe(folder: Path) -> None:
    probe = last_probe(folder)
    summary = probe.summary(ProbeSummary)
    text = Page(read(folder)).text
    result = summary.rows[0].metrics["auroc"]
    assert f"With 50% of the labels ({summary.labels} images" in text
    assert f"reaches AUROC {result.mean:.3f} [{result.ci95[0]:.3f}, {result.ci95[1]:.3f}]" in text
    for row in summary.rows:
        assert f"{row.metrics['auroc'].mean:.3f}" in text
    for name in ("ingest", "pretrain", "extract", "probe"):
        assert name in text
    assert probe.fingerprint in text


def test_what_it_cost_is_that_of_all_stages(folder: Path) -> None:
    inputs = {"extract": source(last_probe(folder), "extract"), "probe": last_probe(folder)}
    inputs |= {name: source(inputs["extract"], name) for name in ("ingest", "pretrain")}
    records = [one.record for one in inputs.values()]
    text = " ".join(Page(read(folder)).text.split())
    (machine,) = {one.machine for one in records}
    minutes = sum(one.seconds for one in records) / 60
    images = inputs["ingest"].summary(IngestSummary).images
    assert f"It took {minutes:.1f} minutes for {images} images, on {machine} (cpu)" in text


def test_probes_of_other_label_fractions_are_in_its_figure(folder: Path, tmp_path: Path) -> None:
    probe = last_probe(folder)
    assert sorted(alike(folder, probe)) == [0.5, 1.0]
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied, symlinks=True)
    other = next(a for f, a in alike(copied, last_probe(copied)).items() if f == 1.0)
    record = json.loads((other.folder / "stage.json").read_text())
    assert record["settings"]["repeats"] == 2
    shutil.rmtree(other.folder)
    assert sorted(alike(copied, last_probe(copied))) == [0.5]


def test_a_page_is_made_once_for_each_probe_and_is_the_same_again(folder: Path) -> None:
    file = folder / "report" / "report.html"
    before, made = read(folder), file.stat().st_mtime_ns
    assert write_report(folder) == file
    assert file.stat().st_mtime_ns == made
    file.unlink()
    write_report(folder)
    assert read(folder) == before
    other = next(a for f, a in alike(folder, last_probe(folder)).items() if f == 1.0)
    write_report(folder, other.folder)
    assert "With 100% of the labels" in Page(read(folder)).text
    write_report(folder)
    assert read(folder) == before


def test_the_report_of_a_probe_lies_with_its_own_data_set(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, artifacts = str(folder / "probe/latest"), str(tmp_path)
    assert main(["report", "--probe", probe, "--artifacts", artifacts]) == 0
    assert capsys.readouterr().out == f"{folder}/report/report.html\n"
    assert not list(tmp_path.iterdir())


def test_without_features_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a finished probe .* run 'make linear-probe'"):
        write_report(tmp_path / "none")
    with pytest.raises(UserError, match="no finished probe to report on"):
        write_report(tmp_path / "none", tmp_path / "other")


def test_without_a_probe_there_is_a_page_of_the_data_and_the_codes(
    folder: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied, symlinks=True, ignore=shutil.ignore_patterns("probe", "report"))
    write_report(copied)
    page = Page(read(copied))
    assert page.open == []
    assert "No probe has been fitted yet. The features of 96 images of 96 subjects" in page.text
    assert "make linear-probe DATASET=hostile.yaml fits one" in page.text
    assert "Codes" in page.text
    assert "All rows" not in page.text
    assert "None" not in page.text


def test_a_page_is_made_anew_when_its_code_or_what_it_shows_has_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, file = last_probe(folder), report_file(folder)
    write_report(folder)
    assert is_of(file, probe)
    with monkeypatch.context() as changed:
        changed.setattr("medvq.report.report_file._code", lambda: "other")
        assert not is_of(file, probe)
    (folder / "sample" / "0123456789abcdef").mkdir(parents=True)
    try:
        assert not is_of(file, probe)
    finally:
        shutil.rmtree(folder / "sample")
    assert is_of(file, probe)


def test_numbers_and_sources_are_told_to_who_sees_no_picture(folder: Path) -> None:
    text, probe = html.unescape(read(folder)), last_probe(folder)
    summary = probe.summary(ProbeSummary)
    result = summary.rows[0].metrics["auroc"]
    shown = f"{result.mean:.3f} [{result.ci95[0]:.3f}, {result.ci95[1]:.3f}]"
    texts = re.findall(r'alt="([^"]*)"', text)
    assert sum(shown in one for one in texts) == 2  # the curve and the ROC
    assert any("dB, SSIM" in one for one in texts)
    assert any("codes in use, perplexity" in one for one in texts)
    for other in alike(folder, probe).values():
        assert other.fingerprint in text
    wide = re.findall(r'<div class="wide"[^>]*>', text)
    assert len(wide) >= 5
    assert all('role="region" tabindex="0" aria-label="' in one for one in wide)
    assert "No model of the codes has been trained" in text
    assert "make linear-probe DATASET=hostile.yaml LABEL_FRACTION=0.5" in text


def test_the_command_prints_what_to_open(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parents[1])
    command = ["report", "--dataset", folder.name, "--artifacts", folder.parent.name]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report" / "report.html")
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["report"] == str(folder / "report" / "report.html")
    assert told["bytes"] == (folder / "report" / "report.html").stat().st_size


def test_codes_are_counted_as_they_stand_in_the_store(folder: Path) -> None:
    extract = find((folder / "extract" / "latest").resolve())
    assert extract is not None
    store = extract.folder / FEATURES
    entries = describe_codes(store, 3)
    keys, codes = read_keys(store), read_feature(store, "codes_0")
    train = np.flatnonzero(keys["split"] == "train")
    labels = keys["label"].to_numpy()[train].astype(int)
    shares = [(codes[train] == entry.code).mean() for entry in entries]
    assert [entry.share for entry in entries] == pytest.approx(shares)
    assert shares == sorted(shares, reverse=True)
    for entry in entries:
        has = (codes[train] == entry.code).any(1)
        lean = [has[labels == index].mean() / has.mean() for index in (0, 1)]
        assert sorted(entry.lean.values()) == pytest.approx(sorted(lean))


def test_patches_are_the_nearest_of_all_and_each_of_another_subject(folder: Path) -> None:
    extract = find((folder / "extract" / "latest").resolve())
    assert extract is not None
    store, encoder = extract.folder / FEATURES, Encoder(source(extract, "pretrain"), "cpu")
    images = np.load(source(extract, "ingest").folder / "images.npy")
    keys = read_keys(store)
    train = np.flatnonzero(keys["split"] == "train")
    encoding = encoder.encode(to_unit(images[train]))
    vectors = encoding.latents[0].flatten(2).numpy()
    codebook = encoder.model.quantizers[0].codebook.numpy()
    codes = encoding.codes[0].flatten(1).numpy()
    shown = [int(code) for code in np.unique(codes)[:3]]
    found = nearest_patches(store, encoder, images, shown, 4)
    assert list(found) == shown
    for code, patches in found.items():
        distance = ((vectors - codebook[code][:, None]) ** 2).sum(1)
        distance[codes != code] = np.inf
        nearest = pd.Series(distance.min(1)).groupby(keys["subject_id"].to_numpy()[train]).min()
        expected = np.sort(nearest[np.isfinite(nearest)])[:4]
        rows = {row: number for number, row in enumerate(train)}
        drawn = [distance[rows[one.row], one.place] for one in patches]
        assert drawn == pytest.approx(expected, rel=1e-4)
        assert len({keys["subject_id"].iloc[one.row] for one in patches}) == len(patches)


def summaries() -> tuple[ProbeSummary, IngestSummary]:
    """A result that deserves every warning."""
    audit = AuditHeadline(Shortcut("frame", "the frame", 0.91), {"ill": 0.85, "well": 0.55}, 3)
    medvq = ProbeRow("medvq", {"auroc": Interval(0.9, 0.1, (0.8, 0.95))})
    probe = ProbeSummary(
        rows=[medvq],
        label_fraction=0.05,
        labels=40,
        subjects=20,
        repeats=10,
        classes=["well", "ill"],
        threshold=0.5,
        medvq_minus={
            "hog": Interval(0.01, 0.0, (-0.02, 0.04)),
            "raw_pixels": Interval(0.1, 0.0, (0.05, 0.2)),
            "border_only": Interval(-0.1, 0.0, (-0.2, -0.05)),
        },
        task="binary",
        headline="auroc",
        audit=audit,
    )
    splits = {"test": SplitCount(60, 30, {"ill": 30, "well": 30})}
    ingest = IngestSummary(100, 50, splits, 100, 0, {}, 0, 0, 0, 50, 30, {})
    return probe, ingest


def test_whatever_is_to_be_distrusted_is_said() -> None:
    probe, ingest = summaries()
    assert sentence(probe, ingest) == (
        "With 5% of the labels (40 images of 20 subjects) MedVQ reaches AUROC 0.900 [0.800, 0.950] "
        "on 60 test images of 30 subjects."
    )
    texts = [f"{one.what}: {one.text}" for one in distrust(replace(probe, constant=True), ingest)]
    assert texts == [
        "nearly one answer: The saved probe hardly tells images apart: on held-out images it was "
        "no better than a guess; fit it on more labels (LABEL_FRACTION).",
        "HOG may be as good: MedVQ less HOG: +0.010 [-0.020, 0.040], not surely above 0.",
        "border only is better: MedVQ less border only: -0.100 [-0.200, -0.050], "
        "not surely above 0.",
        "several comparisons: MedVQ is compared with 3 baselines, each by a 95% interval of its "
        "own. Were it as good as all of them, one or more of these would miss 0 by chance in up to "
        "14% of such studies.",
        "few test subjects: 30 labelled subjects are in the test split, so that the interval is "
        "wide; probe.evaluate=cross_validation judges on all of them.",
        "strongest shortcut: The frame alone tells the label at AUROC 0.910.",
        "test is not drawn like train: Test images of class ill are told from training images at "
        "AUROC 0.850.",
        "the audit: 3 of its findings call for a look; they are in audit.html.",
        "what the interval leaves out: It is given this training: chance in that is not in it.",
    ]


def with_scores(probe: ProbeSummary, end: float, noise: float = 0.0) -> ProbeSummary:
    """Scores of parts of 40 labels that follow a law to the plateau ``end``."""
    labels = np.array([5, 10, 20, 40])
    draws = end - 0.45 * labels**-0.5 + noise * np.random.default_rng(0).normal(size=(10, 4))
    return replace(probe, label_scores=LabelScores(labels.tolist(), draws.tolist()))


def test_how_many_labels_are_needed_is_said_or_why_it_is_not_known() -> None:
    probe, _ = summaries()
    assert "not known: there are too few labels" in say_needs(probe, fit_curve(probe))
    crossed = replace(probe, evaluate="cross_validation")
    assert "not known: labels are judged in every fold" in say_needs(crossed, None)
    # (0.45 / 0.02)^2 = 506 labels, of which 40 are at hand; 800 are all.
    rising = with_scores(probe, 0.97)
    text = say_needs(rising, fit_curve(rising))
    assert text.startswith("For .95 you need about 470 [470, 470] more labels: an extrapolation")
    assert f"gives {0.97 - 0.45 * 800**-0.5:.3f} [" in text
    flat = with_scores(probe, 0.93)
    assert say_needs(flat, fit_curve(flat)).startswith("No number of labels like these reaches .95")
    assert "poorly" not in text
    high = replace(rising.rows[0], metrics={"auroc": Interval(0.999, 0.0, (0.99, 1.0))})
    assert "hardly worth it" in say_needs(replace(rising, rows=[high]), fit_curve(rising))


def test_the_page_says_what_the_curve_says(folder: Path) -> None:
    summary = last_probe(folder).summary(ProbeSummary)
    assert summary.label_scores is not None
    assert say_needs(summary, fit_curve(summary)) in Page(read(folder)).text


@pytest.mark.parametrize("name", ["report/report.html", "ingest/latest/audit.html"])
@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_a_phone_and_say_nothing_to_the_console(
    folder: Path, name: str, dark: bool
) -> None:
    from factories.browser import browser_page

    with browser_page() as page:
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: said.append(request.url))
        page.set_viewport_size({"width": 390, "height": 800})
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.goto((folder / name).resolve().as_uri())
        # Its own address and the pictures that it holds.
        assert [one for one in said if not one.startswith(("data:", "file:"))] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        # What has panels side by side is scrolled, so that its words are legible.
        scales = page.evaluate(
            "[...document.querySelectorAll('.broad img')].map(i => i.clientWidth / i.naturalWidth)"
        )
        assert min(scales, default=1.0) > 0.5
        assert bool(scales) == (name == "report/report.html")
        style = "getComputedStyle(document.body)"
        ink, paper = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
        brightness = [np.mean(list(map(int, re.findall(r"\d+", one)[:3]))) for one in (ink, paper)]
        assert abs(brightness[0] - brightness[1]) > 150
