"""Configuration files: YAML in, a :class:`~medvq.config.Config` out, or one clear error."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from medvq.config import ENCODERS, SOURCES, Config
from medvq.errors import UserError
from medvq.plain_yaml import parse_yaml

RENAMED = {
    "pretrain.agreement": "pretrain.contrast",
    "pretrain.disturb": "pretrain.photometric",
    "probe.draws": "probe.label_subsets",
}
"""Keys of earlier versions: refused, with the name that they have now."""

_ALTERNATIVES = {"source": SOURCES, "encoder": ENCODERS}
_KINDS: dict[str, type[BaseModel]] = {**SOURCES, **ENCODERS}
# Pydantic's words are those of JSON and of regular expressions.
_WORDS = {
    "tuple_type": "Input should be a list, such as [a, b]",
    "string_type": "Input should be text; put a number, a date, yes or no in quotes",
    "model_type": "Input should be a section of keys and values",
    "model_attributes_type": "Input should be a section of keys and values",
    "float_parsing": "Input should be a number, with a point, such as 0.05",
    "float_type": "Input should be a number, with a point, such as 0.05",
    "string_pattern_mismatch": "Input should be lower-case letters, digits, _ and - alone",
}
# Characters of a value that a message quotes; a user may have pasted anything.
_MOST_QUOTED = 80


def shipped(folder: str) -> Path:
    """Return ``configs`` or ``data_manifests``: beside an installed package, above a checkout's."""
    here = Path(__file__).parent
    return here / folder if (here / folder).is_dir() else here.parents[1] / folder


def config_file(name: str) -> Path:
    """Return the file of a configuration: a path to a yaml, or the name of a shipped one."""
    return Path(name) if name.endswith((".yaml", ".yml")) else shipped("configs") / f"{name}.yaml"


def load_config(name: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Config:
    """Read a configuration, apply overrides, validate.

    Parameters
    ----------
    name : the name of a shipped configuration, or a path to a yaml file: a mapping, which with
        ``extends: NAME`` changes values of another configuration, a shipped one or a file relative
        to this one. A source or encoder of another kind replaces that of the other configuration,
        and an encoder without a VQ-VAE beside it also its ``probe.features``, a table its
        ``probe.whitening``.
    overrides : values by dotted key, such as ``{"pretrain.epochs": 3}``, or texts of the form
        ``pretrain.epochs=3``. A section changes the values that it names and leaves the others.

    Raises
    ------
    UserError
        The file is missing or no YAML mapping, or a key or value is not allowed.
    """
    file = config_file(str(name))
    if not _is(Path.is_file, file) and _is(Path.is_dir, Path(name)):
        raise UserError(
            f"{name} is a folder, not a configuration: name it in a file of a few lines "
            f"(name: my-study, source: {{kind: image_folder, folder: {name}}}), and give that "
            "file, my-study.yaml"
        )
    document = _read(file)
    overrides = [overrides] if isinstance(overrides, str) else overrides
    values = overrides if isinstance(overrides, Mapping) else dict(map(_parse, overrides))
    for key, value in values.items():
        _override(document, key, value)
    _judge_external_features(document)
    try:
        # Through JSON, since YAML and JSON both write a tuple as a list.
        return Config.model_validate_json(json.dumps(document, default=_plain))
    except (ValidationError, TypeError) as error:
        raise UserError(f"{file}: {_explain(error)}") from error


def _plain(value: object) -> object:
    """Return what YAML would have in place of a path, or of a number or an array of numpy."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__}")


def _judge_external_features(document: dict[str, Any]) -> None:
    """Let the probe read the features of another encoder, where the user says nothing else."""
    probe = document.setdefault("probe", {})
    if isinstance(probe, dict) and _replaces_network(document):
        probe.setdefault("features", ["external"])


def _read(file: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the mapping in ``file`` over that which it extends."""
    if not _is(Path.is_file, file):
        known = sorted(p.stem for p in file.parent.glob("*.yaml"))
        guess = _nearest(file.stem, [*known, *(p.stem for p in shipped("configs").glob("*.yaml"))])
        there = ", ".join(known) or "none"
        raise UserError(f"no configuration {file}{guess}; in {file.parent} there are: {there}")
    if file.resolve() in extended_by:
        raise UserError(f"{file} extends itself; remove 'extends' from one of the files")
    try:
        document = parse_yaml(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not plain YAML: it is no text in UTF-8") from error
    except UserError as error:
        raise UserError(f"{file} is not plain YAML: {error}") from error
    if not isinstance(document, dict):
        raise UserError(f"{file} must hold a YAML mapping with at least 'name' and 'source'")
    _resolve_paths(document, file)
    base = document.pop("extends", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise UserError(f"{file}: 'extends' is not the name or the file of a configuration")
    other = config_file(base)
    other = file.parent / other if base.endswith((".yaml", ".yml")) else other
    extended = _read(other, (*extended_by, file.resolve()))
    if _replaces_network(document) and "encoder" not in extended:
        probe = extended.get("probe")
        if isinstance(probe, dict):
            probe.pop("features", None)
            if document["encoder"].get("kind") == "table":
                probe.pop("whitening", None)  # a table has no random versions to whiten by
    return _merged(extended, document)


def _replaces_network(document: Mapping[str, Any]) -> bool:
    """Say whether another encoder is named, and no VQ-VAE beside it."""
    encoder = document.get("encoder")
    return isinstance(encoder, dict) and not encoder.get("with_vqvae")


def _resolve_paths(document: dict[str, Any], file: Path) -> None:
    """Make the paths in a configuration relative to its file."""
    encoder, source = document.get("encoder"), document.get("source")
    for section, names in ((encoder, ("file", "python")), (source, ("folder",))):
        if isinstance(section, dict):
            for name in names:
                path = section.get(name)
                if path and isinstance(path, str) and not path.startswith("~"):  # "" is refused
                    section[name] = str(file.parent / path)
    if not isinstance(source, dict):
        return
    labels = source.get("labels")
    names_table = isinstance(labels, str) and labels != "folders"
    if names_table or (isinstance(labels, dict) and "file" in labels):
        source.setdefault("beside", str(file.parent))


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    kind = changes.get("kind")
    if kind is not None and base.get("kind", kind) != kind:
        return dict(changes)  # keys of one kind mean nothing to another
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = _merged(base[key], value) if both else value
    return base


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}' is not of the form key=value, e.g. seed=1")
    try:
        return key, parse_yaml(text)
    except UserError as error:
        quoted = _quoted(override)
        raise UserError(f"override '{quoted}': the value is not plain YAML: {error}") from error


def _override(document: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    target = document
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise UserError(f"override '{key}={value}': '{section}' is a value, not a section")
    both = isinstance(value, dict) and isinstance(target.get(leaf), dict)
    target[leaf] = _merged(target[leaf], value) if both else value


def _explain(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return f"a value is of a type that YAML alone cannot say plainly ({error})"
    reasons = []
    for detail in error.errors()[:3]:
        key, section = _key(detail["loc"])
        value = detail["input"]
        shown = "" if isinstance(value, dict) else f"={_quoted(repr(value))}"
        message = _WORDS.get(detail["type"], detail["msg"].removeprefix("Value error, "))
        if detail["type"] == "less_than_equal" and detail["ctx"]["le"] == 1:
            message += " (a share: 0.05 for 5%)"
        if key in RENAMED:
            message = f"this key is called {RENAMED[key]} now"
        elif detail["type"] == "union_tag_not_found":
            message = f"its 'kind' is missing ({', '.join(_ALTERNATIVES[key])})"
        elif detail["type"] == "extra_forbidden" and section is not None:
            guess = (
                _other_kinds(key, section)
                or _nearest(key.rpartition(".")[2], section.model_fields)
                or _elsewhere(key)
            )
            message = f"no such key{guess} (allowed: {', '.join(section.model_fields)})"
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
            inside = [kind for tag, kind in _KINDS.items() if tag == part]
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


def _is(what: Callable[[Path], bool], path: Path) -> bool:
    try:
        return what(path)
    except (OSError, ValueError):  # no name that a file may have
        return False


def _quoted(text: str) -> str:
    return text if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]}..."


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return a question after the one of the known names that a name is a misspelling of."""
    nearest = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def _other_kinds(key: str, section: type[BaseModel]) -> str:
    """Return a question after the kinds of the same section that have a key."""
    parent, _, name = key.rpartition(".")
    kinds = [
        kind for kind, other in _ALTERNATIVES.get(parent, {}).items() if name in other.model_fields
    ]
    if not kinds:
        return ""
    where = (
        " of a published data set, which any other kind names"
        if section is SOURCES["published"]
        else ""
    )
    return f"{where}; is its kind {', '.join(kinds)}?"


def _elsewhere(key: str) -> str:
    """Return a question after the keys of that name in other sections."""
    name = key.rpartition(".")[2]
    others = dict.fromkeys(k for k in _keys(Config) if k.rpartition(".")[2] == name)
    return f"; did you mean {' or '.join(others)}?" if others else ""


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if name != "source":
            for inner in _sections(field.annotation):
                yield from _keys(inner, f"{prefix}{name}.")
