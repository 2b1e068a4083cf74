"""What a stage of the flow is: one typed object, which is all that generic code knows of it.

A module in ``stages/`` is light to import: what computes (numpy, torch, MONAI, scikit-learn) is
imported inside the functions that use it, so that an up-to-date stage answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from medvq.config import Config
from medvq.storage.artifacts import Artifact, StageContext
from medvq.summaries import Summary

S = TypeVar("S", bound=Summary)
InputArtifacts = dict[str, dict[str, Artifact]]
"""By stage name, inputs that it gets instead of those that it would make for itself."""


@dataclass(frozen=True)
class RunOptions:
    """What a run is told beside the configuration; paths may be given as text.

    Attributes
    ----------
    data_root : folder of data sets, looked in first.
    data_mirror : a folder of data sets, read in place, or an address to download from.
    artifacts : folder that stages write to.
    device : ``auto``, ``cpu`` or ``cuda``.
    force : run the stage although it is up to date.
    accept_code : use an artifact that other code made, where code is the only difference.
    probe : the artifact of a fitted probe, for the stage that judges one on another data set.
    overrides : what the configuration was changed by, as ``key=value``; the record says it.
    """

    data_root: Path = Path("data")
    data_mirror: str | None = None
    artifacts: Path = Path("artifacts")
    device: str = "auto"
    force: bool = False
    accept_code: bool = False
    probe: Path | None = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("data_root", "artifacts", "probe"):
            if isinstance(path := getattr(self, name), str):
                object.__setattr__(self, name, Path(path))

    @property
    def cache(self) -> Path:
        """A folder beside the data sets' artifacts that may be deleted at any time."""
        return self.artifacts / ".cache"


class Ensure(Protocol):
    """Make the artifact of a stage, or find it up to date."""

    def __call__(
        self, stage: Stage[Any], config: Config, inputs: InputArtifacts, why: str = ""
    ) -> Artifact: ...


@dataclass(frozen=True)
class Stage(Generic[S]):
    """One step of the flow.

    Attributes
    ----------
    name : of its artifacts' folder and of its command.
    help : one line for the command line.
    settings : the part of the configuration that its fingerprint hashes, as JSON values.
    run : does the work and writes into ``context.folder``; in several processes, where
        ``distributed``, every one runs it and what the first returns counts.
    summary : the class of what ``run`` returns.
    table : lines for people.
    reads : the stages whose artifacts it is given.
    draw : draws its figures into ``context.figures``.
    distributed : whether all processes do it together, where there are several.
    outside : fingerprints of what it reads besides artifacts, by name: files of a data set.
    check : refuses settings that the stage cannot be run with; called with the inputs of each stage
        that it waits for before that one runs, so that the error comes before a training, and with
        its own.
    prepare : makes inputs that ``reads`` does not name and may change the configuration.
    label : words that tell its MLflow runs apart.
    page : makes a page for people from a published artifact, and returns what to open.
    needed : whether the stages that read it need it.
    content : a hash of what it reads of its inputs, where that is less than all: an artifact that
        was made of other inputs with the same content is up to date.
    """

    name: str
    help: str
    settings: Callable[[Config], dict[str, Any]]
    run: Callable[[StageContext], S]
    summary: type[S]
    table: Callable[[S], list[str]]
    reads: tuple[Stage[Any], ...] = ()
    draw: Callable[[StageContext, S], None] | None = None
    distributed: bool = False
    outside: Callable[[Config, RunOptions], Mapping[str, str]] | None = None
    check: Callable[[Config, Mapping[str, Artifact]], None] | None = None
    prepare: (
        Callable[[Config, RunOptions, Ensure], tuple[Config, Mapping[str, Artifact]]] | None
    ) = None
    label: Callable[[Config], str] | None = None
    page: Callable[[Artifact], Path] | None = None
    needed: Callable[[Config], bool] = lambda _: True
    content: Callable[[Mapping[str, Artifact]], str] | None = None
