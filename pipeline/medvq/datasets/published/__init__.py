"""Published data sets, one module each.

A module is named as its ``source.kind`` in a configuration and its file in ``data_manifests/``, and
states in ``DATASET`` what generic code asks of the set. To add a data set, add such a module, the
two YAML files and a test; nothing else names it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from medvq.datasets.dataset import Dataset
from medvq.errors import UserError


def published_dataset(kind: str) -> Dataset:
    """Return the published data set of ``kind``.

    Raises
    ------
    UserError
        There is none of this kind.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if kind not in known:
        raise UserError(
            f"source.kind={kind} is no data set that is known here; use one of "
            f"{', '.join(known)}, or a folder of your own (image_folder, dicom_folder, "
            "nifti_folder)"
        )
    dataset: Dataset = import_module(f"{__name__}.{kind}").DATASET
    return dataset
