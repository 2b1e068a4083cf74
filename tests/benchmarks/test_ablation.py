"""Variants of a training: each is one that the configuration knows."""

from __future__ import annotations

import pytest
from medvq.config import Config
from medvq.config_file import config_file, load_config
from medvq.errors import UserError

from benchmarks.ablation import GROUPS, IMAGE_FRACTIONS, PARTS, fewer_images, group_of

KERMANY = config_file("kermany")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(KERMANY)


@pytest.mark.parametrize("setting", [setting for (setting,) in PARTS.values()])
def test_what_is_taken_out_is_one_value_of_the_configuration(config: Config, setting: str) -> None:
    other = load_config(KERMANY, (setting,))
    key, value = setting.split("=")
    section, *path = key.split(".")
    changed, kept = (getattr(one, section).model_dump() for one in (other, config))
    for part in path[:-1]:
        assert {k: v for k, v in changed.items() if k != part} == {
            k: v for k, v in kept.items() if k != part
        }
        changed, kept = changed[part], kept[part]
    assert changed.pop(path[-1]) != kept.pop(path[-1])
    assert changed == kept
    assert value in ("0", "true", "false")


@pytest.mark.parametrize("share", IMAGE_FRACTIONS)
def test_fewer_images_are_seen_as_often_together(config: Config, share: float) -> None:
    other = load_config(KERMANY, fewer_images(config, share)).pretrain
    assert other.epochs is not None
    assert config.pretrain.epochs is not None
    assert other.image_fraction == share
    assert other.epochs * share == pytest.approx(config.pretrain.epochs, rel=0.02)
    assert other.patience * share == pytest.approx(config.pretrain.patience, rel=0.02)


def test_an_open_number_of_epochs_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(UserError, match=r"pretrain\.epochs"):
        group_of("images", load_config(KERMANY, ("pretrain.epochs=null",)))


@pytest.mark.parametrize("name", GROUPS)
def test_every_variant_is_a_configuration_of_its_own(config: Config, name: str) -> None:
    variants = group_of(name, config).variants
    configs = [load_config(KERMANY, settings) for settings in variants.values()]
    dumped = [config.model_dump_json(), *(one.model_dump_json() for one in configs)]
    assert len(set(dumped)) == len(dumped) == 1 + len(variants)
