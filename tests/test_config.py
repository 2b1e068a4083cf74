"""The configuration: closed, typed, and clear about what it refuses."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from medvq.config import Config
from medvq.config.source import ImageFolderSource, PhantomSource
from medvq.config_file import load_config, shipped
from medvq.errors import UserError
from pydantic import ValidationError

MINIMAL = "name: tiny\nsource:\n  kind: phantom\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(MINIMAL)
    return path


def value(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(
    "path", sorted(shipped("configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_configuration_that_is_shipped_loads(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_what_a_file_leaves_out_has_its_default(file: Path) -> None:
    assert load_config(file) == Config.model_validate(
        {"name": "tiny", "source": {"kind": "phantom"}}
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pretrain.learning_rate=1e-3", 0.001),
        ("pretrain.learning_rate=1.5E-4", 0.00015),
        ("pretrain.epochs=3", 3),
        ("pretrain.widths=[8, 16]", (8, 16)),
        ("pretrain.decoder_widths=null", None),
        ("ingest.alignment.enabled=false", False),
        ("ingest.equalise.clip_limit=3", 3.0),
        ("ingest.equalise=null", None),
        ("probe.label_fraction=1", 1.0),
        ("probe.features=[latent, embedding]", ("latent", "embedding")),
        ("probe.regularisation=[1e-5,1e-4, .5e+0]", (1e-5, 1e-4, 0.5)),
        ("pretrain.amp='off'", "off"),
        ("description=a = b", "a = b"),
        ("source.train_subjects=20", 20),
        ("seed=7", 7),
    ],
)
def test_an_override_is_read_as_yaml(file: Path, override: str, expected: object) -> None:
    found = value(load_config(file, (override,)), override.partition("=")[0])
    assert found == expected
    assert type(found) is type(expected)


def test_a_section_changes_the_values_that_it_names_alone(file: Path) -> None:
    for overrides in ({"pretrain": {"patience": 4}}, ["pretrain={patience: 4}"]):
        changed, before = load_config(file, overrides), load_config(file)
        assert changed.pretrain == before.pretrain.model_copy(update={"patience": 4})
    both = {"pretrain.epochs": 7, "pretrain": {"patience": 4}}
    assert load_config(file, both).pretrain.epochs == 7


def test_overrides_may_be_paths_numbers_of_numpy_and_one_text(file: Path, tmp_path: Path) -> None:
    numbers = {"pretrain.epochs": np.int64(7), "pretrain.learning_rate": np.float32(0.5)}
    pretrain = load_config(file, {**numbers, "pretrain.start_from": tmp_path}).pretrain
    assert (pretrain.epochs, pretrain.learning_rate) == (7, 0.5)
    assert pretrain.start_from == str(tmp_path)
    assert load_config(file, "pretrain.epochs=7").pretrain.epochs == 7
    with pytest.raises(UserError, match=r"a type that YAML alone cannot say plainly \(object\)"):
        load_config(file, {"pretrain.epochs": object()})


def test_the_last_override_wins(file: Path) -> None:
    assert load_config(file, ("seed=1", "pretrain.epochs=2", "seed=3")).seed == 3


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("colour=red", ("colour", "allowed: name, description, seed, source, ingest")),
        ("probe.label_fracton=0.1", ("probe.label_fracton", "allowed: label_fraction, features")),
        ("ingest.swap.copies=1", ("ingest.swap.copies", "allowed: training_copies")),
        ("ingest.equalise.clip=1", ("ingest.equalise.clip", "allowed: clip_limit, tiles")),
        ("ingest.equalise.tiles=1000", ("tiles=1000", "less than or equal to 64")),
        ("source.sise=64", ("source.sise", "allowed: kind, train_subjects, test_subjects, size")),
        ("source.kind=MRI scans", ("source.kind='MRI scans'", "lower-case letters")),
        ("source.size=8", ("source.size=8", "greater than or equal to 64")),
        ("pretrain.epochs=2.5", ("pretrain.epochs=2.5", "integer")),
        ("pretrain.epochs=many", ("pretrain.epochs='many'", "integer")),
        ("pretrain.epochs='3'", ("pretrain.epochs", "integer")),
        ("pretrain.epochs=-1", ("pretrain.epochs=-1", "greater than or equal to 0")),
        ("pretrain.epochs=0", ("pretrain", "epochs=0", "start_from")),
        ("pretrain.frozen_levels=2", ("pretrain", "frozen_levels", "start_from")),
        ("pretrain.start_from=imagenet", ("pretrain", "encoder=efficientnet_lite0")),
        ("pretrain.amp=float8", ("pretrain.amp='float8'", "'auto', 'off' or 'bfloat16'")),
        ("pretrain.learning_rate=.inf", ("pretrain.learning_rate", "finite")),
        ("pretrain.learning_rate=nan", ("pretrain.learning_rate",)),
        ("name=2024", ("name=2024", "text; put a number, a date, yes or no in quotes")),
        ("pretrain=fast", ("pretrain='fast'", "a section of keys and values")),
        ("probe.features=hog", ("probe.features='hog'", "a list, such as [a, b]")),
        ("name=../up", ("name='../up'", "lower-case letters")),
        ("ingest.image_size=100", ("ingest.image_size=100", "multiple of 16", "pretrain.widths")),
        ("extract.grid=9", ("extract.grid=9", "latent grid of 8")),
        ("pretrain.view_size=72", ("pretrain.view_size=72", "multiple of 16")),
        ("pretrain.view_size=256", ("pretrain.view_size=256", "at most the side of the images")),
        ("probe.features=[hog, embeding]", ("probe.features", "'embeding'; there are embedding,")),
        ("probe.features=[latent, histogram]", ("'histogram' cannot be joined",)),
        ("probe.features=[latent, latent]", ("named twice",)),
        ("probe.features=[external]", ("'external' needs a section encoder",)),
        ("probe.features=[frozen_imagenet]", ("needs extract.frozen_imagenet",)),
        ("probe.features=[texture]", ("'texture' needs extract.texture",)),
        (
            "probe.features=[frozen_imagenet_texture]",
            ("needs extract.frozen_imagenet and extract.texture",),
        ),
        ("probe.whitening=0", ("probe.whitening=0", "greater than 0")),
        ("ingest.image_size=[64, 64]", ("ingest.image_size=[64, 64]", "integer")),
        ("ingest.image_size=[64, 64, 64]", ("read_size and image_size must both",)),
        ("ingest.channels=3", ("colour images and volumes need equalise: null, alignment",)),
        ("pretrain.decoder_widths=[8]", ("pretrain", "decoder_widths", "as many entries")),
        ("pretrain.residual_levels=9", ("pretrain", "residual_levels")),
        (
            "pretrain.finer=[{halvings: 4, codebook_size: 8}]",
            ("pretrain", "finer: halvings must fall", "below the 4 of widths"),
        ),
        (
            "pretrain.finer=[{halvings: 2, codebook_size: 8}, {halvings: 2, codebook_size: 8}]",
            ("pretrain", "finer: halvings must fall"),
        ),
        ("pretrain.finer=[{halvings: 2, size: 8}]", ("size", "halvings, codebook_size")),
        ("pretrain.vit.depth=3", ("pretrain", "vit is of encoder=vit", "convolutional")),
        ("name=2020-01-01", ("date",)),
        *(
            (f"probe.label_fraction={v}", ("probe.label_fraction=", v))
            for v in ("0", "-1", "2", "abc")
        ),
        *(
            (f"probe.label_fraction={v}", ("number, with a point, such as 0.05",))
            for v in ("5%", "'0,05'", "1/20")
        ),
        ("probe.label_fraction=5", ("less than or equal to 1 (a share: 0.05 for 5%)",)),
    ],
)
def test_what_is_refused_is_named(file: Path, override: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(file, (override,))
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("", "not of the form key=value"),
        ("seed=[1", "not plain YAML"),
        ("name.sub=1", "'name' is a value, not a section"),
        ("seed.x.y=1", "seed"),
    ],
)
def test_an_override_that_is_none(file: Path, override: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        load_config(file, (override,))
    assert "\n" not in str(caught.value)


BOMB = b"a: &a [1,1,1,1,1,1,1,1,1]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9))
    for letter in b"bcdefgh"
)
"""A few lines that stand for 43 million values."""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"name: [tiny", "not plain YAML: line 1, column 12: .*expected ',' or ']'"),
        (b"name: a\nsource:\n\tsize: 64\n", "not plain YAML: line 3, column 1: .* found character"),
        (b"name: a\nseed: 1\nseed: 2\n", "line 3, column 1: the key 'seed' for the second time"),
        (b"name: a\nseed: " + b"9" * 5000, "line 2, column 7: a number of more than 300 digits"),
        (b"name: a\nseed: 0x" + b"f" * 5000, "line 2, column 7: a number of more than 300"),
        (b"name: a\nseed: 2020-99-99\n", "line 2, column 7: a number or a date that cannot"),
        (b"name: a\nseed: 1:30\n", "line 2, column 7: a time is no number"),
        (b"name: " + b"[" * 5000, "nested too deeply"),
        (b"name: a\nseed: &a [*a]\n", "line 2, column 7: a value that contains itself"),
        (BOMB, "line 5, column 4: more values, or aliases that stand for more"),
        (b"name: a\x07b", "line 1, column 8: a character that YAML does not allow"),
        (b"name: " + b"a" * 2**21, "more text than any configuration has"),
        (b"name: !!python/object:os.system x", "not plain YAML"),
        (b"\xff\xfe\x00", "not plain YAML"),
        (b"- a\n- b\n", "must hold a YAML mapping"),
        (b"", "must hold a YAML mapping"),
        (b"name: tiny\n", "source: Field required"),
        (b"name: tiny\nsource:\n  size: 64\n", r"source\.kind.*: Field required"),
    ],
)
def test_a_file_that_is_no_configuration(file: Path, text: bytes, reason: str) -> None:
    file.write_bytes(text)
    with pytest.raises(UserError, match=reason) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_a_configuration_tells_what_to_write(file: Path) -> None:
    """What it tells is a configuration of that folder."""
    with pytest.raises(UserError, match=r"is a folder, not a configuration: .*") as caught:
        load_config(str(file.parent))
    (told,) = re.findall(r"\((name: .*})\)", str(caught.value))
    file.write_text(told.replace(", source:", "\nsource:"), encoding="utf-8")
    source = load_config(file).source
    assert isinstance(source, ImageFolderSource)
    assert source.folder == str(file.parent)


def test_a_missing_file_tells_what_there_is(file: Path) -> None:
    with pytest.raises(UserError, match=r"no configuration .*kermanny\.yaml; .* there are: tiny"):
        load_config(file.with_name("kermanny.yaml"))
    with pytest.raises(UserError, match=r"kermani\.yaml; did you mean 'kermany'\?; in"):
        load_config("kermani")


@pytest.mark.parametrize(
    ("override", "question"),
    [
        ("pretrian.epochs=1", "did you mean 'pretrain'?"),
        ("probe.label_fracton=1", "did you mean 'label_fraction'?"),
        ("epochs=1", "did you mean pretrain.epochs or prior.epochs?"),
        ("probe.kind=table", "did you mean encoder.kind?"),
    ],
)
def test_a_misspelt_key_is_asked_about(file: Path, override: str, question: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(file, (override,))
    assert question in str(caught.value)


@pytest.mark.parametrize(
    "setting", ["source.folder", "source.labels.file", "source.labels.column", "encoder.file"]
)
def test_an_empty_name_is_not_the_folder_that_one_is_in(tmp_path: Path, setting: str) -> None:
    file = tmp_path / "set.yaml"
    section, _, rest = setting.partition(".")
    given = {"kind": "image_folder", "folder": "images", "labels": {"file": "labels.csv"}}
    sections = {"source": given, "encoder": {"kind": "table", "file": "table.csv"}}
    *above, name = rest.split(".")
    (sections[section][above[0]] if above else sections[section])[name] = ""
    file.write_text(yaml.safe_dump({"name": "set", **sections}))
    with pytest.raises(UserError, match=re.escape(setting) + ".*''.*at least 1 char"):
        load_config(str(file))


@pytest.mark.parametrize("kind", ["image_foldr", "folder", "png"])
def test_a_misspelt_kind_of_source_is_asked_about(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"name: tiny\nsource: {{kind: {kind}, folder: images, labels: folders}}\n")
    with pytest.raises(UserError, match=r"source\.folder=.*: no such key of a published") as e:
        load_config(file)
    assert "is its kind image_folder, nifti_folder, dicom_folder?" in str(e.value)


@pytest.mark.parametrize(
    ("encoder", "question"),
    [
        ("{kind: onnx, file: a.onnx, width: 8}", ".width=8: no such key; is its kind table?"),
        ("{file: a.onnx}", "encoder: its 'kind' is missing (torchscript, onnx,"),
        ("{kind: onnx, file: a.onnx, mean: [1, 2]}", "encoder: mean must have 1 or 3 numbers"),
    ],
)
def test_an_encoder_that_is_not_complete_is_asked_about(
    file: Path, encoder: str, question: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(file, (f"encoder={encoder}",))
    assert question in str(caught.value)


def test_numbers_are_read_as_people_write_them(file: Path) -> None:
    config = load_config(file, ("probe.regularisation=[1e-5, 1.E-4, .5e-3, +1e2]", "seed=010"))
    assert config.probe.regularisation == (1e-5, 1e-4, 5e-4, 100.0)
    assert config.seed == 10


def test_messages_quote_the_beginning_of_long_values(file: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(file, (f"seed={'x' * 10_000}",))
    assert len(str(caught.value)) < 500


def test_nothing_changes_after_reading(file: Path) -> None:
    config = load_config(file)
    for section, key in ((config, "seed"), (config.ingest, "read_size"), (config.source, "size")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 128)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("pretrain.agreement.weight=0", "pretrain.contrast"),
        ("pretrain.disturb=false", "pretrain.photometric"),
        ("probe.draws=official", "probe.label_subsets"),
    ],
)
def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(
    file: Path, key: str, name: str
) -> None:
    with pytest.raises(UserError, match=f"this key is called {name} now"):
        load_config(file, (key,))


def test_a_configuration_extends_another(file: Path) -> None:
    mine = file.with_name("mine.yaml")
    mine.write_text("extends: tiny.yaml\nname: mine\npretrain:\n  contrast: {weight: 0.5}\n")
    file.write_text(MINIMAL + "pretrain:\n  epochs: 3\n  contrast: {grid: 2}\n")
    config = load_config(mine, {"seed": 4})
    assert (config.name, config.seed, config.source.kind) == ("mine", 4, "phantom")
    assert config.pretrain.epochs == 3
    assert (config.pretrain.contrast.weight, config.pretrain.contrast.grid) == (0.5, 2)
    mine.write_text("extends: phantom\nname: mine\n")
    assert load_config(mine).ingest == load_config(shipped("configs") / "phantom.yaml").ingest


def test_a_source_of_another_kind_takes_no_keys_of_the_one_it_replaces(file: Path) -> None:
    mine = file.with_name("mine.yaml")
    file.write_text("name: tiny\nsource: {kind: phantom, mixed: 0.2, size: 128}\n")
    mine.write_text("extends: tiny.yaml\nsource: {kind: image_folder, folder: here}\n")
    replaced = load_config(mine).source
    assert isinstance(replaced, ImageFolderSource)
    assert Path(replaced.folder).name == "here"
    mine.write_text("extends: tiny.yaml\nsource: {size: 64}\n")
    expected = PhantomSource(kind="phantom", mixed=0.2, size=64)
    assert load_config(mine).source == expected


def test_a_prior_of_versions_needs_some(file: Path) -> None:
    with pytest.raises(UserError, match="with_versions=true needs random versions"):
        load_config(file, ("prior.with_versions=true", "extract.versions=0"))


def test_whitening_needs_random_versions(file: Path) -> None:
    with pytest.raises(UserError, match="whitening=1 needs random versions"):
        load_config(file, ("probe.whitening=1.0", "extract.versions=0"))


@pytest.mark.parametrize("path", sorted(shipped("configs").glob("*/*.yaml")), ids=lambda p: p.stem)
def test_what_is_there_to_be_extended_is_valid(file: Path, path: Path) -> None:
    file.write_text(f"{MINIMAL}extends: {path.parent.name}/{path.stem}\n")
    config = load_config(file)
    assert config.ingest.image_size == 224
    assert (config.pretrain.start_from, config.pretrain.epochs) == (path.stem, 0)


@pytest.mark.parametrize(
    "encoder", ["pretrain.widths=[8, 8, 8, 8]", "ingest.image_size=[64, 64, 64]"]
)
def test_what_the_encoder_cannot_be_is_refused(file: Path, encoder: str) -> None:
    volumes = ["ingest.read_size=[64, 64, 64]", "ingest.equalise=null"]
    volumes += ["ingest.alignment.enabled=false", "ingest.swap.enabled=false"]
    others = volumes if "image_size" in encoder else []
    with pytest.raises(UserError, match="encoder=efficientnet_lite0"):
        load_config(file, ("pretrain.encoder=efficientnet_lite0", encoder, *others))
    if others:
        with pytest.raises(UserError, match=r"extract\.frozen_imagenet is for pictures"):
            load_config(file, ("extract.frozen_imagenet=true", encoder, *others))


VIT = ("pretrain.encoder=vit", "ingest.image_size=128")


def test_a_vision_transformer_has_a_code_for_each_patch(file: Path) -> None:
    pretrain = load_config(file, (*VIT, "pretrain.vit.patch_size=8")).pretrain
    assert pretrain.level_widths == (192, 192, 192)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["pretrain.vit.heads=5"], "channels must be a multiple of heads"),
        (["pretrain.vit.patch_size=12"], "2, 4, 8, 16 or 32"),
        (["pretrain.vit.channels=62", "pretrain.vit.heads=1"], "multiple of 4 for images of 2"),
        (["ingest.image_size=104"], r"multiple of 16, since a patch .*pretrain\.vit\.patch_size"),
        (["pretrain.widths=[8, 8, 8, 8]"], "widths must be null with encoder=vit"),
        (["pretrain.decoder_widths=[8, 8, 8, 8]"], "decoder_widths must be left out"),
        (["pretrain.finer=[{halvings: 2, codebook_size: 8}]"], "finer must be left out"),
        (["pretrain.start_from=imagenet"], "needs encoder=efficientnet_lite0"),
        (["pretrain.start_from=base", "pretrain.frozen_levels=1"], "frozen_levels must be left"),
    ],
)
def test_what_a_vision_transformer_cannot_be_is_refused(
    file: Path, overrides: list[str], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        load_config(file, (*VIT, *overrides))


@pytest.mark.parametrize(
    ("base", "reason"), [("nowhere.yaml", "no configuration .*nowhere"), ("tiny.yaml", "itself")]
)
def test_what_cannot_be_extended_is_named(file: Path, base: str, reason: str) -> None:
    file.write_text(f"extends: {base}\n{MINIMAL}")
    with pytest.raises(UserError, match=reason):
        load_config(file)


def test_cross_validation_has_folds_and_no_official_label_subsets(file: Path) -> None:
    overrides = ["probe.evaluate=cross_validation", "probe.outer_folds=3"]
    probe = load_config(file, overrides).probe
    assert (probe.evaluate, probe.outer_folds) == ("cross_validation", 3)
    assert type(probe).model_validate_json(probe.model_dump_json()) == probe
    with pytest.raises(UserError, match=r"official ones need probe\.evaluate=test"):
        load_config(file, [*overrides, "probe.label_subsets=official"])


def test_many_keys_do_not_take_quadratic_time(file: Path) -> None:
    file.write_text(MINIMAL + "".join(f"k{number}: 1\n" for number in range(50_000)))
    with pytest.raises(UserError, match="more values, or aliases"):
        load_config(file)


@pytest.mark.parametrize("text", ["1e3", "1E3", "+1e3", "1000"])
def test_whole_numbers_may_have_an_exponent(file: Path, text: str) -> None:
    assert load_config(file, [f"seed={text}"]).seed == 1000
    assert load_config(file, ["pretrain.learning_rate=1e-3"]).pretrain.learning_rate == 1e-3
    with pytest.raises(UserError, match="seed=1000"):
        load_config(file, ["seed=1000.0"])


@pytest.mark.parametrize("base", ["[phantom]", "5"])
def test_what_extends_no_name_is_refused(file: Path, base: str) -> None:
    file.write_text(f"extends: {base}\n{MINIMAL}")
    with pytest.raises(UserError, match="'extends' is not the name or the file"):
        load_config(file)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_no_name_of_a_file_is_an_internal_error(name: str) -> None:
    with pytest.raises(UserError, match="no configuration"):
        load_config(name)


def test_a_shipped_configuration_with_a_suffix_is_guessed() -> None:
    with pytest.raises(UserError, match="did you mean 'kermany'"):
        load_config("kermany.yaml")


def test_an_encoder_replaces_the_features_of_the_configuration_it_extends(tmp_path: Path) -> None:
    own = "extends: kermany\nname: own\nencoder: {kind: onnx, file: a.onnx}\n"
    (tmp_path / "own.yaml").write_text(own)
    assert load_config(tmp_path / "own.yaml").probe.features == ("external",)
    (tmp_path / "both.yaml").write_text(own.replace("a.onnx", "a.onnx, with_vqvae: true"))
    assert "embedding" in load_config(tmp_path / "both.yaml").probe.features
    (tmp_path / "more.yaml").write_text("extends: own.yaml\nprobe: {features: [external, hog]}\n")
    assert load_config(tmp_path / "more.yaml").probe.features == ("external", "hog")


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("name: a\nsource:\n\tkind: phantom\n", r"line 3, .*: indent with spaces, not with tabs"),
        ("name: a\ndescription: b: c\n", r"line 2, .*: put text that has a colon in quotes"),
    ],
)
def test_what_is_mistaken_most_often_in_yaml_has_its_mend(
    tmp_path: Path, text: str, mend: str
) -> None:
    (file := tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=mend):
        load_config(file)
