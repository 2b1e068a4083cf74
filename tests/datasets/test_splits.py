"""Splits drawn by subject: exact sizes, every class everywhere, few moves, the same anywhere."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvq.datasets.dataset import SourceImage
from medvq.datasets.split_checks import check_splits_for_probe
from medvq.datasets.split_names import looks_like_split, named_splits
from medvq.datasets.splits import draw_splits, draw_subjects, join_equal_images
from medvq.errors import UserError

COUNTS = st.dictionaries(
    st.sampled_from(["ill", "well", "unclear"]), st.integers(4, 60), min_size=1
)
FRACTION = st.floats(0.05, 0.4)


def image(name: str, label: str | None, **more: object) -> SourceImage:
    values = {"path": Path(name), "shown_path": "", "subject": f"s-{name}", "split": "train"}
    return SourceImage(**(values | {"label": label, "order": name} | more))


def population(counts: dict[str, int]) -> list[SourceImage]:
    return [image(f"{label}{n}", label) for label, size in counts.items() for n in range(size)]


def splits_of(images: list[SourceImage], **options: float) -> dict[str, str]:
    settings = {"test_fraction": 0.2, "validation_fraction": 0.12, "seed": 0} | options
    return {i.order: i.split for i in draw_splits(images, **settings)}


@given(COUNTS, FRACTION)
def test_sizes_are_exact_and_shares_even(counts: dict[str, int], fraction: float) -> None:
    strata = {f"{label}{n}": label for label, size in counts.items() for n in range(size)}
    drawn = draw_subjects(strata, fraction, "any")
    total = max(int(fraction * len(strata) + 0.5), len(counts))
    assert len(drawn) == total
    for label, size in counts.items():
        of_class = sum(strata[subject] == label for subject in drawn)
        assert 1 <= of_class < size
        if total > len(counts):
            assert abs(of_class - fraction * size) < 2


@given(COUNTS, st.integers(0, 5))
def test_every_class_is_in_every_split(counts: dict[str, int], seed: int) -> None:
    splits = splits_of(population(counts), seed=seed)
    for label in counts:
        present = {split for order, split in splits.items() if order.rstrip("0123456789") == label}
        assert present == {"train", "validation", "test"}


@given(COUNTS, st.randoms())
def test_neither_order_nor_names_of_this_machine_matter(
    counts: dict[str, int], rng: random.Random
) -> None:
    images = population(counts)
    expected = splits_of(images)
    others = [image(i.order, i.label, subject=f"other key {i.order}") for i in images]
    rng.shuffle(others)
    assert splits_of(others) == expected


@given(COUNTS, st.sampled_from(["ill", "well", "unclear"]))
def test_a_further_subject_moves_few_others(counts: dict[str, int], label: str) -> None:
    before = splits_of(population(counts))
    after = splits_of([*population(counts), image("new", label)])
    moved = [order for order, split in before.items() if after[order] != split]
    assert len(moved) <= 6


@pytest.mark.parametrize("size", [200, 2000])
def test_moves_do_not_grow_with_the_set(size: int) -> None:
    before = splits_of(population({"ill": size, "well": size}))
    more = [image(f"new{n}", "ill") for n in range(20)]
    after = splits_of([*population({"ill": size, "well": size}), *more])
    assert sum(after[order] != split for order, split in before.items()) <= 40


def test_the_test_split_is_the_same_under_every_seed() -> None:
    one, other = (splits_of(population({"ill": 40, "well": 40}), seed=seed) for seed in (0, 1))
    tests = [{o for o, split in splits.items() if split == "test"} for splits in (one, other)]
    assert tests[0] == tests[1]
    assert one != other


def test_images_without_a_label_are_never_for_the_test_beside_labelled_ones() -> None:
    unlabelled = [image(f"none{n}", None) for n in range(50)]
    splits = splits_of([*population({"ill": 10, "well": 10}), *unlabelled])
    assert sum(split == "test" for split in splits.values()) == 4
    assert {splits[i.order] for i in unlabelled} == {"train", "validation"}
    alone = splits_of(unlabelled)
    assert [list(alone.values()).count(s) for s in ("test", "validation", "train")] == [10, 5, 35]


def test_splits_that_the_source_has_are_kept() -> None:
    images = [image(f"t{n}", "ill", split="test") for n in range(3)] + population({"ill": 20})
    splits = splits_of(images, test_fraction=0.5)
    assert [order for order, split in splits.items() if split == "test"] == ["t0", "t1", "t2"]
    assert list(splits.values()).count("validation") == 2
    with_both = [image(f"v{n}", "ill", split="validation") for n in range(3)] + images
    assert set(splits_of(with_both).values()) == {"train", "validation", "test"}
    assert list(splits_of(with_both).values()).count("train") == 20


def test_a_subject_of_several_images_is_on_one_side() -> None:
    images = [image(f"p{n % 15}", ("ill", "well")[n % 2]) for n in range(60)]
    drawn = draw_splits(images, test_fraction=0.3, validation_fraction=0.2, seed=3)
    table = pd.DataFrame([(i.subject, i.split) for i in drawn], columns=["subject", "split"])
    assert table.groupby("subject")["split"].nunique().eq(1).all()


def test_equal_images_count_as_one_subject_where_none_is_known() -> None:
    images = [
        image("a", "ill", has_known_subject=False),
        image("b", "ill", has_known_subject=False),
        image("c", "ill"),
        image("d", "ill"),
        image("e", "ill", split="test", has_known_subject=False),
    ]
    joined = join_equal_images(images, [[0, 1], [2, 3], [0, 4]])
    assert [i.subject for i in joined] == ["s-a", "s-a", "s-c", "s-d", "s-e"]
    # Two that are known stay apart; what is not known joins the first of them.
    joined = join_equal_images(images, [[0, 2, 3], [4]])
    assert [(i.subject, i.order) for i in joined[:4]] == [
        ("s-c", "c"), ("s-b", "b"), ("s-c", "c"), ("s-d", "d"),
    ]  # fmt: skip
    assert joined[0].certain_subject == "s-a"


def test_an_image_without_a_split_follows_an_equal_one_that_is_held_back() -> None:
    unknown = {"has_known_subject": False}
    images = [
        image("a", "ill", split="test", **unknown),
        image("b", None, has_stated_split=False, **unknown),
        image("c", None, **unknown),  # its split, train, is stated
        image("d", None, has_stated_split=False),  # a patient who is known
        image("e", "ill", split="validation"),
        image("f", None, has_stated_split=False, **unknown),
    ]
    joined = join_equal_images(images, [[0, 1, 2, 3], [4, 5]])
    assert [i.split for i in joined] == [
        *("test", "test", "train", "train", "validation", "validation"),
    ]
    assert [i.subject for i in joined[1::4]] == ["s-a", "s-e"]
    assert joined[1].certain_subject == "s-b"


def manifest(rows: str) -> pd.DataFrame:
    """``ill:train*3`` and so on: one subject for each image."""
    entries = []
    for part in rows.split():
        label, _, rest = part.partition(":")
        split, _, number = rest.partition("*")
        entries += [("" if label == "none" else label, split)] * int(number or 1)
    table = pd.DataFrame(entries, columns=["label_name", "split"])
    return table.assign(subject_id=[f"s{n}" for n in range(len(table))], target=np.nan)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("ill:train*4 ill:validation ill:test", "all 6 labelled images are of one class, 'ill'"),
        (
            "ill:train*4 ill:validation ill:test well:train",
            r"class 'well' has 1 subject \(1 image\)",
        ),
        ("70:train 71.5:test 72:validation", r"name their column in source\.labels\.target"),
        (
            "ill:train*4 ill:validation ill:test well:train*4 well:test",
            r"'well' is missing from validation \(subjects: train 4, validation 0, test 1\): add",
        ),
        (
            "ill:train*4 ill:validation ill:test well:train*3 well:validation well:test",
            r"'well' has 3 training subjects .* fewer than probe.folds=4: set probe.folds=3",
        ),
    ],
)
def test_what_no_probe_can_use_is_refused(rows: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_splits_for_probe(manifest(rows), folds=4)


def test_what_a_probe_can_use_is_let_through() -> None:
    both = " ".join(
        f"{label}:{part}" for label in ("a", "b") for part in ("train*4", "validation", "test")
    )
    check_splits_for_probe(manifest(f"{both} none:train*9"), folds=4)
    check_splits_for_probe(manifest("none:train*9"), folds=4)
    numbers = manifest("none:train*4 none:validation*2 none:test")
    numbers = numbers.assign(target=np.arange(7.0))
    with pytest.raises(UserError, match="1 subjects of test have a number to predict, and 2 are"):
        check_splits_for_probe(numbers, folds=4)


@pytest.mark.parametrize("form", ["{}", "{}_set", "{}-set", "{}set", " {} "])
@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train training TRAIN", "train"),
        ("val valid validation dev Development", "validation"),
        ("test testing holdout hold_out eval Evaluation", "test"),
    ],
)
def test_names_of_splits(names: str, split: str, form: str) -> None:
    for name in names.split():
        assert named_splits([form.format(name)]) == {form.format(name): split}


def test_eval_beside_a_test_split_is_for_validation() -> None:
    assert named_splits(["train", "eval", "Test"])["eval"] == "validation"
    assert named_splits(["ward", "set", ""]) == {}


@pytest.mark.parametrize(
    ("names", "alone", "beside"),
    [
        ("train_1 fold2 test-images split_3 Training_data", True, True),
        ("tset trian validaton", False, True),
        ("rest ill NORMAL stage1 data set text2speech", False, None),
        ("ill NORMAL benign", False, False),
    ],
)
def test_folders_that_look_like_splits(names: str, alone: bool, beside: bool | None) -> None:
    for name in names.split():
        assert looks_like_split(name, beside_splits=False) == alone, name
        if beside is not None:
            assert looks_like_split(name, beside_splits=True) == beside, name


def test_one_number_for_all_is_refused() -> None:
    rows = "none:train*4 none:validation*2 none:test*2"
    numbers = manifest(rows)
    check_splits_for_probe(numbers.assign(target=np.arange(8.0)), folds=4)
    with pytest.raises(UserError, match="all numbers to predict of train are 5, from which"):
        check_splits_for_probe(numbers.assign(target=5.0), folds=4)


@pytest.mark.parametrize("unit", [1e300, 1e38, -1e31, 1e-320, 1e-31])
def test_numbers_that_cannot_be_computed_with_are_refused(unit: float) -> None:
    numbers = manifest("none:train*4 none:validation*2 none:test*2")
    with pytest.raises(UserError, match="leave fields empty that mark a missing value"):
        check_splits_for_probe(numbers.assign(target=unit * np.arange(8.0)), folds=4)
