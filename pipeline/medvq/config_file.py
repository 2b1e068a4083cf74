"""Configuration files: YAML in, a :class:`~medvq.config.Config` out, or one clear error."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from medvq.config import SOURCES, Config
from medvq.errors import UserError

RENAMED = {
    "pretrain.agreement": "pretrain.contrast",
    "pretrain.disturb": "pretrain.photometric",
    "probe.draws": "probe.label_subsets",
}
"""Keys of earlier versions: refused, with the name that they have now."""


def shipped(folder: str) -> Path:
    """Return ``configs`` or ``data_manifests``: beside an installed package, above a checkout's."""
    here = Path(__file__).parent
    return here / folder if (here / folder).is_dir() else here.parents[1] / folder


def config_file(name: str) -> Path:
    """Return the file of a configuration: a path to a yaml, or the name of a shipped one."""
    return Path(name) if name.endswith((".yaml", ".yml")) else shipped("configs") / f"{name}.yaml"


class _Loader(yaml.SafeLoader):
    """Plain YAML in which ``1e-5`` is a number, as in YAML 1.2 and as people write it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_config(name: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Config:
    """Read a configuration, apply overrides, validate.

    Parameters
    ----------
    name : the name of a shipped configuration, or a path to a yaml file: a mapping, which with
        ``extends: NAME`` changes values of another configuration, a shipped one or a file relative
        to this one.
    overrides : values by dotted key, such as ``{"pretrain.epochs": 3}``, or texts of the form
        ``pretrain.epochs=3``.

    Raises
    ------
    UserError
        The file is missing or no YAML mapping, or a key or value is not allowed.
    """
    file = config_file(str(name))
    document = _read(file)
    values = overrides if isinstance(overrides, Mapping) else dict(map(_parse, overrides))
    for key, value in values.items():
        _override(document, key, value)
    try:
        # Through JSON, since YAML and JSON both write a tuple as a list.
        return Config.model_validate_json(json.dumps(document))
    except (ValidationError, TypeError) as error:
        raise UserError(f"{file}: {_explain(error)}") from error


def _read(file: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the mapping in ``file`` over that which it extends."""
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in file.parent.glob("*.yaml"))) or "none"
        raise UserError(f"no configuration {file}; in {file.parent} there are: {known}")
    if file.resolve() in extended_by:
        raise UserError(f"{file} extends itself; remove 'extends' from one of the files")
    try:
        document = _Loader(file.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not plain YAML: {_first_line(error)}") from error
    if not isinstance(document, dict):
        raise UserError(f"{file} must hold a YAML mapping with at least 'name' and 'source'")
    base = document.pop("extends", None)
    if base is None:
        return document
    other = config_file(str(base))
    other = file.parent / other if str(base).endswith((".yaml", ".yml")) else other
    return _merged(_read(other, (*extended_by, file.resolve())), document)


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = _merged(base[key], value) if both else value
    return base


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}' is not of the form key=value, e.g. seed=1")
    try:
        return key, _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': the value is not plain YAML") from error


def _override(document: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    target = document
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise UserError(f"override '{key}={value}': '{section}' is a value, not a section")
    target[leaf] = value


def _explain(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return f"a value is of a type that YAML alone cannot say plainly: {error}"
    reasons = []
    for detail in error.errors()[:3]:
        key, section = _key(detail["loc"])
        value = detail["input"]
        shown = "" if isinstance(value, dict) else f"={value!r}"
        message = detail["msg"]
        if key in RENAMED:
            message = f"this key is called {RENAMED[key]} now"
        elif detail["type"] == "extra_forbidden" and section is not None:
            message = f"no such key (allowed: {', '.join(section.model_fields)})"
        reasons.append(f"{key or 'configuration'}{shown}: {message}")
    return "; ".join(reasons)


def _key(location: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    """Return the key as a user writes it, and the section that it stands in."""
    keys: list[str] = []
    section: type[BaseModel] | None = None
    inside: list[type[BaseModel]] = [Config]
    for part in location:
        if len(inside) > 1:
            # Pydantic names the member of a union, which is no key.
            inside = [source for tag, source in SOURCES.items() if tag == part]
            continue
        if not inside and isinstance(part, str):
            continue  # pydantic names the member of a union of plain types, which is no key either
        keys.append(str(part))
        section = inside[0] if inside else None
        field = section.model_fields.get(str(part)) if section else None
        inside = _sections(field.annotation) if field else []
    return ".".join(keys), section


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
