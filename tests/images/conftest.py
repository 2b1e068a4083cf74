"""A second opinion on DICOM: dcmtk, whose code shares nothing with ours."""

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def dcmtk() -> None:
    if shutil.which("dcm2pnm"):
        return
    if os.environ.get("MEDVQ_REQUIRE_DATA"):
        pytest.fail("MEDVQ_REQUIRE_DATA is set, and dcmtk is not installed (apt-get install dcmtk)")
    # Not a Python package, so that no lock file brings it.
    pytest.skip("needs dcmtk's dcm2pnm as a second opinion: apt-get install dcmtk")  # not in CI
