"""What another site's folders say of its images."""

import warnings

import pytest
from medvq.config import DicomFolderSource, ImageFolderSource, Labels, PhantomSource, Source
from medvq.errors import Notice
from medvq.stages.evaluate import _is_no_class

FOLDERS = ImageFolderSource(kind="image_folder", folder=".")


def test_the_one_folder_of_all_images_is_no_class_unless_the_probe_knows_it() -> None:
    with pytest.warns(Notice, match=r"folder 'images', which is no class .*ILL, WELL.*without a l"):
        assert _is_no_class(["images"], ["ILL", "WELL"], FOLDERS)


@pytest.mark.parametrize(
    ("classes", "trained", "source"),
    [
        (["well"], ["ILL", "WELL"], FOLDERS),
        (["1"], ["ILL", "WELL"], FOLDERS),
        (["images", "well"], ["ILL", "WELL"], FOLDERS),
        ([], ["ILL", "WELL"], DicomFolderSource(kind="dicom_folder", folder=".")),
        (["images"], [], FOLDERS),  # a probe of numbers
        (["images"], ["ILL"], PhantomSource(kind="phantom")),
        (
            ["images"],
            ["ILL", "WELL"],
            ImageFolderSource(kind="image_folder", folder=".", labels=Labels(file="labels.csv")),
        ),
    ],
)
def test_other_classes_are_matched_or_refused(
    classes: list[str], trained: list[str], source: Source
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _is_no_class(classes, trained, source)
