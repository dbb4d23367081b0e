import pytest
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom.sop_class import _STORAGE_CLASSES

from dcmtools.model import uids
from dcmtools.model.names import is_uid


@pytest.mark.parametrize("uid", uids.TRANSFER_SYNTAXES)
def test_transfer_syntax_is_one_of_the_standard(uid: str) -> None:
    assert UID(uid).is_transfer_syntax
    assert not UID(uid).is_private


def test_no_transfer_syntax_with_pixels_of_its_own_is_missing() -> None:
    missing = {str(uid) for uid in AllTransferSyntaxes} - set(uids.TRANSFER_SYNTAXES)

    assert {UID(uid).name for uid in missing if "JPIP" not in UID(uid).name and "SMPTE" not in UID(uid).name} == set()


@pytest.mark.parametrize("uid", sorted(map(str, _STORAGE_CLASSES.values())))
def test_storage_class_is_known_as_one(uid: str) -> None:
    assert uids.storage_class(uid)


@pytest.mark.parametrize("uid", [uids.VERIFICATION, uids.STUDY_ROOT_FIND, uids.MEDIA_STORAGE_DIRECTORY, "1.2.3"])
def test_other_classes_are_not(uid: str) -> None:
    assert not uids.storage_class(uid)


def test_our_own_uid_is_one() -> None:
    assert is_uid(uids.IMPLEMENTATION_CLASS_UID)
