"""What a stranger meets first: README, documentation, set-up, wheel and import."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import itertools
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import medvq
import numpy as np
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/how-to").glob("*.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def by_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_targets_and_variables_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"(?:^ *|`)make((?: +[A-Za-z_=./-]+)+)", page.read_text(), re.MULTILINE)
    words = [word for command in commands for word in command.split()]
    targets = {word for word in words if re.fullmatch("[a-z-]+", word)}
    variables = {word.partition("=")[0] for word in words if "=" in word}
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    # Recipes take some from the environment, as "$$IN".
    used = set(re.findall(r"\$\((\w+)\)|\$\$(\w+)", makefile))
    assert variables <= {name for pair in used for name in pair}


def test_recipes_take_a_folder_of_any_name(tmp_path: Path) -> None:
    artifacts = tmp_path / "a?b%20c #d'e\"f ö;&"
    (artifacts / "tiny").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    make = ["make", "-o", "setup", f"BIN={Path(sys.executable).parent}", f"ARTIFACTS={artifacts}"]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    for target, files in (("mlflow-sync", ["a", artifacts.name]), ("clean", ["a"])):
        subprocess.run([*make, target], cwd=ROOT, check=True, env=os.environ | path)
        assert sorted(file.name for file in tmp_path.iterdir()) == files


def arguments(tmp_path: Path, *make: str, **environment: str) -> list[str]:
    """Return what a target gives to Python, the module's name first."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    python.chmod(0o755)
    command = ["make", "-s", "-o", "setup", f"BIN={tmp_path}", *make]
    # Make takes every variable of the environment: those of whoever runs the tests are not asked.
    own = {"PATH": os.environ["PATH"]} | environment
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[1:-1]


def following(given: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(given) if name == option]


def test_values_reach_a_stage_as_they_were_written(tmp_path: Path) -> None:
    value = "a 'b\" `false` ö;& c"
    make = [f"{name}={value}" for name in ("DATASET", "SEED", "LABEL_FRACTION", "CLASS", "DEVICE")]
    given = arguments(tmp_path, "sample", *make, 'SET=description="two words" x=1')
    assert given[:2] == ["medvq", "sample"]
    assert following(given, "--config") == following(given, "--device") == [value]
    assert following(given, "--settings") == ['description="two words" x=1']
    assert following(given, "--set") == [
        f"seed={value}", f"probe.label_fraction={value}", f'sample.class_name="{value}"',
    ]  # fmt: skip


def test_the_demo_is_the_phantom_and_its_settings_the_users(tmp_path: Path) -> None:
    given = arguments(tmp_path, "demo", "DATASET=kermany", "SEED=7", DATASET="mnist")
    assert following(given, "--config") == ["phantom"]
    assert following(given, "--set") == ["seed=7"]


def test_suggestions_among_all_patients_are_a_switch(tmp_path: Path) -> None:
    assert "--all" in arguments(tmp_path, "suggest-labels", "ALL=1")
    assert "--all" not in arguments(tmp_path, "suggest-labels", "ALL=0")


def test_clean_never_removes_the_project(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    make = ["make", "-s", "-o", "setup", "clean"]
    for artifacts, status in (
        (".", 2),
        ("..", 2),
        (str(tmp_path), 2),
        ("none", 0),
        ("artifacts", 0),
    ):
        command = [*make, f"ARTIFACTS={artifacts}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert ("is not removed" in done.stderr) == (status == 2)
    assert [file.name for file in tmp_path.iterdir()] == ["Makefile"]


def test_files_to_preview_may_have_any_name(tmp_path: Path) -> None:
    one = tmp_path / "Ann O'Brien (1).png"
    one.touch()
    assert arguments(tmp_path, "preview", f"IN={one}")[-1:] == [str(one)]
    several = f'{ROOT}/*.toml "{one}"'
    assert arguments(tmp_path, "preview", f"IN={several}")[-2:] == [
        str(ROOT / "pyproject.toml"), str(one),
    ]  # fmt: skip


def test_a_switch_that_is_0_is_off(tmp_path: Path) -> None:
    switches = {"FORCE": "--force", "ACCEPT_CODE": "--accept-code", "JSON": "--json"}
    for value, expected in (("0", set()), ("", set()), ("1", set(switches.values()))):
        make = [f"{name}={value}" for name in switches]
        assert set(arguments(tmp_path, "data", *make)) & set(switches.values()) == expected
    assert "--force" not in arguments(tmp_path, "data", FORCE="0")


def refused(*values: str, **environment: str) -> str:
    """Return the one line that make refuses variables with."""
    done = subprocess.run(
        ["make", "-n", "-o", "setup", "data", *values],
        cwd=ROOT, env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_switch_that_is_neither_on_nor_off_is_refused() -> None:
    assert "ACCEPT_CODE=false: give 1 or 0" in refused("ACCEPT_CODE=false")
    assert "FORCE=no: give 1 or 0" in refused(FORCE="no")
    assert "TYPICALITY=off: give 1 or 0" in refused("TYPICALITY=off")


def test_a_misspelt_variable_is_refused_and_those_of_others_are_not(tmp_path: Path) -> None:
    said = refused("LABEL_FRACTON=0.01", "seed=3")
    assert "LABEL_FRACTON" in said
    assert "seed" in said
    others = ("TRACKING=required", "ARTIFACTS_MODE=group", "OMP_NUM_THREADS=2", "https_proxy=a")
    assert (
        arguments(tmp_path, "data", *others, "SEED=3", "N=3", LABEL_FRACTON="0.01")[-1] == "seed=3"
    )


@pytest.mark.parametrize("target", ["preview", "explain", "similar", "suggest-labels", "predict"])
def test_where_to_write_is_heard_from_the_environment_too(tmp_path: Path, target: str) -> None:
    assert following(arguments(tmp_path, target, OUT="mine"), "--out") == ["mine"]
    assert following(arguments(tmp_path, target, "OUT=mine", OUT="other"), "--out") == ["mine"]
    (default,) = following(arguments(tmp_path, target, "ARTIFACTS=a"), "--out")
    assert default.startswith("a/")


@pytest.mark.parametrize("number", ["abc", "0", "-1", "2.5", "2 3"])
def test_a_number_of_processes_that_is_none_is_one_line(number: str) -> None:
    assert "NPROC is no number of processes: give 1 or more" in refused(f"NPROC={number}")


def test_the_readme_names_what_is_public() -> None:
    names = set(re.findall(r"\bmedvq\.([a-z_]+)\(", (ROOT / "README.md").read_text()))
    assert names <= set(medvq.__all__)


def test_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == medvq.__version__


def script(name: str) -> dict[str, Any]:
    """Return what a script of ours defines."""
    return runpy.run_path(str(ROOT / "scripts" / name))


def test_the_lock_satisfies_what_is_needed() -> None:
    pins = script("licences.py")["pinned"]()
    extras = PROJECT["optional-dependencies"]
    for text in (*PROJECT["dependencies"], *extras["dev"], *extras["docs"]):
        needed = Requirement(text)
        assert pins[re.sub("[-_.]+", "-", needed.name).lower()] in needed.specifier


def test_the_lock_has_hashes_of_everything_and_of_torchs_builds_for_the_cpu() -> None:
    """``pip install --require-hashes`` takes nothing else."""
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=[a-z])", text.strip())
    hashes = {
        block.partition("==")[0]: re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)
        for block in blocks
    }
    assert len(hashes) == len(blocks) > 150
    assert [name for name, found in hashes.items() if not found] == []
    version, of_torch = script("lock.py")["torch_hashes"](text)
    assert {f"sha256:{one}" for one in hashes["torch"]} == of_torch
    # The build of this machine, where it is known which one that is.
    places = Path(os.environ.get("PIP_FIND_LINKS", "none"))
    for wheel in places.glob(f"torch-{version}+cpu-*.whl"):
        with wheel.open("rb") as stream:
            assert hashlib.file_digest(stream, "sha256").hexdigest() in hashes["torch"]


def test_hashes_of_builds_for_the_cpu_are_read_from_their_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = script("lock.py")
    names = {
        "a": "torch-2.13.0%2Bcpu-cp312-cp312-manylinux_2_28_x86_64.whl",
        "b": "torch-2.13.0+cpu-cp311-cp311-linux_aarch64.whl",
        "c": "torch-2.13.0%2Bcpu-cp312-cp312-win_amd64.whl",  # on PyPI, too
        "d": "torch-2.13.0%2Bcpu-cp314-cp314t-manylinux_2_28_x86_64.whl",
        "e": "torch-2.13.1%2Bcpu-cp312-cp312-manylinux_2_28_x86_64.whl",
    }
    page = "".join(f'<a href="/whl/cpu/{name}#sha256={64 * key}">' for key, name in names.items())

    def index(address: str, timeout: float) -> io.BytesIO:
        return io.BytesIO(page.encode())

    monkeypatch.setitem(lock["cpu_hashes"].__globals__, "urlopen", index)
    assert lock["cpu_hashes"]("2.13.0") == {f"sha256:{64 * key}" for key in "ab"}


@pytest.mark.parametrize(
    ("machine", "locks"),
    [
        ("cpu", ["torch.lock", "cpu.lock"]),
        ("no build for the CPU", ["torch.lock", "requirements.lock"]),
        ("gpu", ["requirements.lock"]),
    ],
)
def test_set_up_installs_nothing_without_a_hash(
    tmp_path: Path, machine: str, locks: list[str]
) -> None:
    """What pip is asked for, by a pip that only notes it, on a Linux machine of any kind."""
    tools, venv = tmp_path / "tools", tmp_path / "venv"
    for folder in (tools, venv / "bin"):
        folder.mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    for name in ("awk", "bash", "cat", "cut", "dirname", "du", "grep", "sed"):
        (tools / name).symlink_to(str(shutil.which(name)))
    refused = "case $* in *torch.lock*) exit 1;; esac" if machine.startswith("no") else ""
    stubs = {
        tools / "uname": "echo Linux",
        venv / "bin/pip": f"echo $* >> {tmp_path}/calls\n{refused}",
    }
    if machine == "gpu":
        stubs[tools / "nvidia-smi"] = "exit 0"
    for file, text in stubs.items():
        file.write_text(f"#!{tools / 'bash'}\n{text}\n")
        file.chmod(0o755)
    command = [str(tools / "bash"), str(ROOT / "scripts/setup.sh"), str(venv)]
    done = subprocess.run(
        command, env={"PATH": str(tools)}, capture_output=True, text=True, check=True
    )
    assert ("cannot be had" in done.stderr) == bool(refused)
    *packages, itself = (tmp_path / "calls").read_text().splitlines()
    hashed = [re.search(r"--require-hashes --requirement (\S+)", call) for call in packages]
    assert [Path(found[1]).name for found in hashed if found] == locks
    assert len(locks) == len(packages)
    assert itself.endswith("--no-deps --no-build-isolation --editable .")
    if machine == "cpu":
        names = re.findall(r"^([a-z0-9-]+)==(\S+)", (venv / "cpu.lock").read_text(), re.MULTILINE)
        assert f"{script('licences.py')['pinned']()['torch']}+cpu" == dict(names)["torch"]
        assert [n for n, _ in names if n.startswith(("nvidia-", "cuda-", "triton"))] == []
        assert len(names) > 150


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="wheels of other platforms contain other libraries",
)
def test_licences_are_allowed_and_their_table_is_that_of_the_lock() -> None:
    page, problems = script("licences.py")["page"]()
    assert problems == []
    assert (ROOT / "docs/licences.md").read_text() == page  # make licences
    assert "| opencv-python-headless | FFmpeg | LGPL-2.1-or-later |" in page


def test_other_licences_are_not_allowed() -> None:
    licences = script("licences.py")
    for expression in ("AGPL-3.0-only", "MIT AND GPL-3.0-only", "", "UNKNOWN", licences["NVIDIA"]):
        (line,) = licences["problem"]("some", expression, licences["ALLOWED"])
        assert line.startswith(f"some has the licence {expression!r}: allow it in licences.py")
    fine = "(MIT OR Apache-2.0) AND Apache-2.0 WITH LLVM-exception"
    assert licences["problem"]("some", fine, licences["ALLOWED"]) == []


def test_the_wheel_holds_what_it_needs_to_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = (ROOT / "configs", ROOT / "data_manifests")
    shipped = [path for folder in folders for path in folder.rglob("*.*")]
    package = [
        path.relative_to(ROOT / "pipeline")
        for path in (ROOT / "pipeline/medvq").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    expected = {f"medvq/{by_name(path)}" for path in shipped} | {p.as_posix() for p in package}
    metadata = f"medvq-{medvq.__version__}.dist-info"
    assert names == expected | {
        f"{metadata}/{file}"
        for file in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }


def test_importing_changes_nothing_and_loads_nothing_heavy() -> None:
    script = (
        "import json, os, sys, warnings\n"
        "def state(): return dict(os.environ), list(warnings.filters), list(sys.path)\n"
        "before = state()\n"
        "import medvq, medvq.cli\n"
        "heavy = {'numpy', 'torch', 'monai', 'mlflow', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "print(json.dumps([before == state(), sorted(heavy)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == [True, []]


def test_what_predicts_and_explains_does_without_monai() -> None:
    """Its import takes longer than to predict a few images."""
    script = (
        "import sys\n"
        "import medvq.prediction.predictor, medvq.explain.explanation, medvq.report.report_page\n"
        "sys.exit('monai' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_page_of_results_is_in_the_menu_of_the_documentation() -> None:
    menu = re.findall(r"results/[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(menu) == sorted(f"results/{p.name}" for p in (ROOT / "docs/results").glob("*.md"))


def test_the_documentation_is_built_without_a_warning(tmp_path: Path) -> None:
    """And it loads nothing from elsewhere: links aside, every address is a file of the site."""
    if importlib.util.find_spec("mkdocs") is None and not os.environ.get("MEDVQ_REQUIRE_DATA"):
        pytest.skip("needs the extra `docs`: make setup")  # not in CI
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\"\s>]+)", text)
        loaded += re.findall(r"<link[^>]*rel=\"?stylesheet\"?[^>]*href=\"?([^\"\s>]+)", text)
        assert [address for address in loaded if re.match("(https?:)?//", address)] == []
        assert "arithmatex" not in text  # every equation became MathML


def architecture_example(title: str) -> dict[str, Any]:
    """Run the Python block below a heading of the architecture page; return what it defines."""
    page = (ROOT / "docs/architecture.md").read_text()
    section = page[page.index(f"## Example: {title}") :]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    namespace: dict[str, Any] = {"__name__": f"example_{title.replace(' ', '_')}"}
    sys.modules[namespace["__name__"]] = SimpleNamespace(**namespace)  # type: ignore[assignment]
    exec(compile(code, "docs/architecture.md", "exec"), namespace)
    return namespace


def test_the_example_of_a_stage_is_right(tmp_path: Path) -> None:
    stage = architecture_example("add a stage")["MEANS"]
    manifest = pd.DataFrame(
        {
            "image_id": list("abcd"),
            "subject_id": list("abcd"),
            "split": ["train", "train", "train", "test"],
            "label": [0, 0, 1, 1],
            "label_name": ["N", "N", "P", "P"],
        }
    )
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    images = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)
    np.save(tmp_path / "images.npy", images)
    context = SimpleNamespace(folder=tmp_path, inputs={"ingest": SimpleNamespace(folder=tmp_path)})
    summary = stage.run(context)
    assert stage.table(summary) == ["  mean images of 2 classes"]
    with np.load(tmp_path / "means.npz") as means:
        assert means["N"].tolist() == images[:2].mean(0).tolist()
        assert means["P"].tolist() == images[2].tolist()


def test_the_example_of_a_data_set_is_right(tmp_path: Path) -> None:
    dataset = architecture_example("add a data set")["DATASET"]
    for name in ("test/opacity/7_0.png", "train/normal/3_1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    images = [
        (image.shown_path, image.subject, image.split, image.label)
        for image in dataset.list_images(tmp_path)
    ]
    assert images == [
        ("train/normal/3_1.png", "3", "train", "normal"),
        ("test/opacity/7_0.png", "7", "test", "opacity"),
    ]
