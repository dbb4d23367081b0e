from typing import Any

import pytest

from dcmtools.model.errors import UsageError
from dcmtools.model.filters import Filter, parse_filter


@pytest.mark.parametrize(
    ("text", "passing", "failing"),
    [
        ("Modality=MR", "mr", "CT"),
        ("StudyDescription=*brain*", "Brain routine", "Knee"),
        ("StudyDate=20240101-20240131", "20240115", "20240201"),
        ("Modality!=MR", None, "MR"),
        ("ImageType!=DERIVED", ["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"]),
        ("SliceThickness<=1.5", 1.5, 1.51),
        ("SliceThickness<1.5", 1, None),
        ("Rows>512", 1024, 512),
        ("StudyDate>=20240101", "20240101", "20231231"),
        ("PixelSpacing<0.5", [0.4, 0.4], [0.5, 0.5]),
        ("size>=1000000", 1000000, 999999),
        ("TransferSyntaxUID=1.2.840.10008.1.2", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"),
        ("00191001=x", "x", "y"),
    ],
)
def test_filter_lets_pass_what_it_says(text: str, passing: Any, failing: Any) -> None:
    condition = parse_filter(text)

    assert condition.passes(passing)
    assert not condition.passes(failing)


def test_value_may_hold_signs_itself() -> None:
    assert parse_filter(" StudyDescription = a=b<c ") == Filter("StudyDescription", "=", "a=b<c")


@pytest.mark.parametrize(
    ("text", "help_with"), [("Modality", "KEYWORD=VALUE"), ("Modalty=MR", "Modality"), ("sise>5", "size")]
)
def test_filter_on_what_no_record_has_is_a_usage_error(text: str, help_with: str) -> None:
    with pytest.raises(UsageError, match=help_with):
        parse_filter(text)
