"""Keys that others can read, and connections that anybody could answer."""

from pathlib import Path

import pytest

from dcmtools.disk.trust import check_keys_of, check_private, warnings
from dcmtools.model.errors import ConfigurationError, Refused
from dcmtools.model.node import Node


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_key_of_its_owner_alone_is_fine(tmp_path: Path, mode: int) -> None:
    (tmp_path / "key").touch()
    (tmp_path / "key").chmod(mode)

    check_private(tmp_path / "key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_key_that_others_can_read_or_change_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    (tmp_path / "key").touch()
    (tmp_path / "key").chmod(mode)

    with pytest.raises(Refused, match=f"mode 0{mode:o}.*chmod 600") as refusal:
        check_private(tmp_path / "key", node="PACS")

    assert (refusal.value.exit_code, refusal.value.record()["node"]) == (77, "PACS")


def test_key_that_is_not_there_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        check_private(tmp_path / "key")


def test_keys_of_a_node_without_tls_do_not_matter(tmp_path: Path) -> None:
    check_keys_of(Node("A", "A", "b", 1, tls_key=str(tmp_path / "none")))


def test_only_tls_without_verification_is_told_of() -> None:
    assert warnings(Node("A", "A", "b", 1, tls=True)) == []
    assert warnings(Node("A", "A", "b", 1, tls_verify=False)) == []
    assert warnings(Node("A", "A", "b", 1, tls=True, tls_verify=False)) == [
        "the certificate of A (A@b:1) is not verified (tls_verify = no): anybody could be in its place"
    ]
