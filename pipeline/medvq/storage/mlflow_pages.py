"""How MLflow's pages show an experiment: its tags, and the address that opens on them.

MLflow opens an experiment on its pages for language models unless the address says otherwise, and
hides the columns of metrics and parameters. A view that was prepared shows them: MLflow keeps views
that people share as tags of an experiment. The form of such a tag is MLflow's own and may change
with its version, which is why pyproject.toml names one and the tests open the pages in a browser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SHARED = "mlflow.sharedViewState."
_METRIC = "mlflow.experiment.primaryMetric.name"
_NOTE = "mlflow.note.content"
_ABOUT = """\
One run per stage, and one per feature set that a probe was fitted on: `medvq` is the method, the
others are baselines and single feature sets. All runs are flat; filter by `tags.medvq.stage`.
`{metric}` is the mean over label subsets on images held back, its interval `{metric}_ci95_low` and
`{metric}_ci95_high`; on runs of baselines `medvq_minus` is the paired difference to them.
"""


def experiment_tags(metric: str, present: Mapping[str, str], time: int) -> dict[str, str]:
    """Return the tags that an experiment whose probes are compared by ``metric`` lacks.

    Parameters
    ----------
    present : its tags; a view or a note that somebody has changed stays.
    time : now, in milliseconds.
    """
    state = json.dumps(_view(metric))
    view = {"name": "MedVQ", "createdAt": time, "updatedAt": time, "state": state}
    tags = {
        # Read by versions of MLflow whose address does not say it.
        "mlflow.experimentKind": "custom_model_development",
        _NOTE: _ABOUT.format(metric=metric),
        f"{_SHARED}{_key(metric)}": json.dumps(view),
    }
    wanted = {name: value for name, value in tags.items() if name not in present}
    return wanted if present.get(_METRIC) == metric else wanted | {_METRIC: metric}


def address(server: str, experiment: str, tags: Mapping[str, str]) -> str:
    """Return the address of the runs of an experiment, in the prepared view where it has one."""
    page = f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    key = _key(tags.get(_METRIC, ""))
    return f"{page}&viewStateShareKey={key}" if _SHARED + key in tags else page


def _key(metric: str) -> str:
    return f"medvq-{metric}"


def _view(metric: str) -> dict[str, Any]:
    """Return what the page shows: runs of probes by their metric, and charts that begin with it."""
    columns = [
        f"metrics.`{metric}`", "params.`label_fraction`", "params.`features`", "params.`labels`",
        f"metrics.`{metric}_ci95_low`", f"metrics.`{metric}_ci95_high`", "metrics.`medvq_minus`",
    ]  # fmt: skip
    others = [f"attributes.`{name}`" for name in ("Models", "Dataset", "Created")]
    return {
        "searchFilter": "tags.`medvq.stage` = 'probe'",
        "orderByKey": columns[0],
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [*columns, *others],
        "columnOrder": [*columns, *others],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "compareRunSections": [_of_ours(uuid="medvq", name=metric, display=True, isReordered=True)],
        "compareRunCharts": _charts(metric),
    }


def _charts(metric: str) -> list[dict[str, Any]]:
    """Return the first charts; MLflow adds one for each further metric."""
    kinds: dict[str, dict[str, Any]] = {
        "BAR": {"metricKey": metric},
        "SCATTER": {
            "xaxis": {"key": "labels", "type": "PARAM"},
            "yaxis": {"key": metric, "type": "METRIC"},
        },
        "PARALLEL": {
            "selectedParams": ["label_fraction", "features"],
            "selectedMetrics": [metric],
            "showAllRuns": False,
        },
    }
    shared = {"metricSectionId": "medvq", "runsCountToCompare": 100}
    return [
        _of_ours(uuid=f"medvq-{kind.lower()}", type=kind, **shared, **settings)
        for kind, settings in kinds.items()
    ]


def _of_ours(**settings: Any) -> dict[str, Any]:
    return {**settings, "deleted": False, "isGenerated": False}
