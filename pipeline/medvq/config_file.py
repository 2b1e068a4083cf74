"""Configuration files: YAML in, a :class:`~medvq.config.Config` out, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from medvq.config import Config
from medvq.errors import UserError


def shipped(folder: str) -> Path:
    """Return ``configs`` or ``data_manifests``: beside an installed package, above a checkout's."""
    here = Path(__file__).parent
    return here / folder if (here / folder).is_dir() else here.parents[1] / folder


def config_file(name: str) -> Path:
    """Return the file of a configuration: a path to a yaml, or the name of a shipped one."""
    return Path(name) if name.endswith((".yaml", ".yml")) else shipped("configs") / f"{name}.yaml"


def load_config(file: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read ``file``, apply ``key.sub=value`` overrides, validate.

    Raises
    ------
    UserError
        The file is missing or no YAML mapping, or a key or value is not allowed.
    """
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in file.parent.glob("*.yaml"))) or "none"
        raise UserError(f"no configuration {file}; in {file.parent} there are: {known}")
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not plain YAML: {_first_line(error)}") from error
    if not isinstance(document, dict):
        raise UserError(f"{file} must hold a YAML mapping with at least 'name' and 'source'")
    for override in overrides:
        _override(document, override)
    try:
        # Through JSON, since YAML and JSON both write a tuple as a list.
        return Config.model_validate_json(json.dumps(document))
    except (ValidationError, TypeError) as error:
        raise UserError(f"{file}: {_explain(error)}") from error


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}' is not of the form key=value, e.g. seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': the value is not plain YAML") from error
    *sections, leaf = key.split(".")
    target = document
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise UserError(f"override '{override}': '{section}' is a value, not a section")
    # PyYAML reads 1e-3 as text (YAML 1.1 wants 1.0e-3).
    target[leaf] = _as_number(value) if isinstance(value, str) else value


def _as_number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _explain(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return f"a value is of a type that YAML alone cannot say plainly: {error}"
    told = []
    for detail in error.errors()[:3]:
        key, section = _place(detail["loc"])
        value = detail["input"]
        shown = "" if isinstance(value, dict) else f"={value!r}"
        message = detail["msg"]
        if detail["type"] == "extra_forbidden" and section is not None:
            message = f"no such key (allowed: {', '.join(section.model_fields)})"
        told.append(f"{key or 'configuration'}{shown}: {message}")
    return "; ".join(told)


def _place(location: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    """The key as a user writes it, and the section that it stands in."""
    keys: list[str] = []
    section: type[BaseModel] | None = None
    inside: list[type[BaseModel]] = [Config]
    for part in location:
        if len(inside) > 1:
            # Pydantic names the member of a union, which is no key.
            inside = [m for m in inside if part in get_args(m.model_fields["kind"].annotation)]
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
