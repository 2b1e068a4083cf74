"""MedVQ's probe as a model of MLflow: ``mlflow.pyfunc.load_model("models:/medvq-kermany/1")``.

It takes a table of features (what an encoder returns, or the feature store read by pandas) and
returns one of probabilities, a column per class, or of the predicted number. What is stored is
:mod:`medvq.storage.probe_file`'s file and the name of this module, which reads it: nothing of it
can be executed, and the name of this module must stay, since registries keep it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvq import __version__
from medvq.storage.probe_file import FILE, load_probe

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.tracking import MlflowClient

_PREDICTION = "prediction"
_ABOUT = """\
Linear probes of MedVQ on one data set. Each takes features that `medvq.load_encoder` or the feature
store gives, and returns probabilities by class. Not a medical device.
"""


class ServedProbe:
    """A probe as MLflow calls it.

    Parameters
    ----------
    classes : names of the classes of the data set, which also one of a number may have.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.probe = load_probe(folder)
        self.classes = list(classes) if hasattr(self.probe[-1], "classes_") else []

    @property
    def inputs(self) -> list[str]:
        """The feature sets that it reads."""
        return list(self.probe[0].names)

    @property
    def outputs(self) -> list[str]:
        """The columns that it returns."""
        if not self.classes:
            return [_PREDICTION]
        return [self.classes[number] for number in self.probe[-1].classes_]

    def predict(self, table: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return probabilities by class, or the predicted number, one row per image."""
        import pandas as pd

        if self.classes:
            return pd.DataFrame(self.probe.predict_proba(table), columns=self.outputs)
        return pd.DataFrame({_PREDICTION: self.probe.predict(table)})


def _load_pyfunc(data: str, config: dict[str, Any]) -> ServedProbe:
    """Read the model, as MLflow asks for it."""
    return ServedProbe(Path(data).parent, config["classes"])


def write_model(folder: Path, classes: Sequence[str], target: Path, identity: str = "") -> None:
    """Write the probe of an artifact's folder into ``target``, a folder that MLflow can load.

    Parameters
    ----------
    identity : MLflow's id of the model.
    """
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    probe = ServedProbe(folder, classes)
    features = [ColSpec(Array(DataType.float), name) for name in probe.inputs]
    found = [ColSpec(DataType.double, name) for name in probe.outputs]
    model = Model(
        signature=ModelSignature(Schema(features), Schema(found)), model_id=identity or None
    )
    config = {"classes": list(classes)}
    pyfunc.add_to_model(model, loader_module=__name__, data=FILE, model_config=config)
    (target / FILE).write_bytes((folder / FILE).read_bytes())
    (target / "requirements.txt").write_text(f"medvq=={__version__}\n", encoding="utf-8")
    model.save(str(target / "MLmodel"))


def register(
    client: MlflowClient, experiment: str, run: str, name: str, folder: Path, classes: Sequence[str]
) -> None:
    """Log the probe of an artifact with a run and in the registry; once, however often called."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    found = client.search_logged_models([experiment], f"source_run_id = '{run}'")
    model = found[0] if found else client.create_logged_model(experiment, "probe", run)
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as target:
            write_model(folder, classes, Path(target), model.model_id)
            client.log_model_artifacts(model.model_id, target)
        client.finalize_logged_model(model.model_id, "READY")
    outputs = client.get_run(run).outputs
    if not (outputs and outputs.model_outputs):
        client.log_outputs(run, [LoggedModelOutput(model.model_id, step=0)])
    name = f"medvq-{re.sub('[^A-Za-z0-9_-]', '_', name)}"
    try:
        client.create_registered_model(name, description=_ABOUT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if not client.search_model_versions(f"name = '{name}' and run_id = '{run}'"):
        # A source "models:/..." would be looked for in the store of the process, not in this one.
        place, identity = model.artifact_location, model.model_id
        client.create_model_version(name, place, run, model_id=identity, await_creation_for=0)
