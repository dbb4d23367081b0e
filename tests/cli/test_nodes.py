"""dcmtools nodes as a process: records out, files changed or left alone, exit codes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunDcmtools

PACS = "[PACS]\nae_title = ARCHIVE\nhost = 127.0.0.1\nport = 104\n"


@pytest.fixture(autouse=True)
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """No administrator's file of the machine itself."""
    return environment | {"DCMTOOLS_SYSTEM_CONFIG": str(tmp_path / "system")}


@pytest.fixture
def user(environment: dict[str, str]) -> Path:
    path = Path(environment["XDG_CONFIG_HOME"]) / "dcmtools" / "nodes.ini"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def system(tmp_path: Path) -> Path:
    path = tmp_path / "system" / "nodes.ini"
    path.parent.mkdir()
    return path


def records(answer: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_node_added_is_listed_with_its_origin(dcmtools: RunDcmtools, user: Path) -> None:
    added = dcmtools("nodes", "add", "PACS", "ARCHIVE@[::1]:104", "--compression", "jpeg-ls,rle", "--tls")
    listed = dcmtools("nodes", "list")

    assert (added.returncode, added.stderr, listed.returncode, listed.stderr) == (0, "", 0, "")
    assert user.read_text() == (
        "[PACS]\nae_title = ARCHIVE\nhost = ::1\nport = 104\ncompression = jpeg-ls,rle\ntls = yes\n"
    )
    (record,) = records(listed)
    assert (
        record
        | {
            "type": "node",
            "node": "PACS",
            "ae_title": "ARCHIVE",
            "host": "::1",
            "port": 104,
            "listen_port": None,
            "compression": ["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"],
            "tls": True,
            "tls_verify": True,
            "origin": f"{user}:1",
            "administered": False,
        }
        == record
    )
    assert records(added) == [{**record, "state": "added"}]


def test_every_key_can_be_given_as_an_option(dcmtools: RunDcmtools, user: Path, tmp_path: Path) -> None:
    keys = {
        "listen_port": "11113",
        "calling_ae_title": "ME",
        "charset": "ISO_IR 100",
        "description": "the archive",
        "retrieve": "get",
        "connect_timeout": "1",
        "acse_timeout": "2",
        "dimse_timeout": "3.5",
        "max_associations": "2",
        "allowed_hours": "20:00-06:00",
    }
    options = [word for key, value in keys.items() for word in (f"--{key.replace('_', '-')}", value)]

    dcmtools("nodes", "add", "PACS", "A@h:1", *options, "--tls", "--tls-ca", "ca.pem", "--tls-cert", "c.pem")

    written = dict(line.split(" = ") for line in user.read_text().splitlines()[1:])
    assert written == {
        "ae_title": "A",
        "host": "h",
        "port": "1",
        "tls": "yes",
        **keys,
        "tls_ca": str(tmp_path / "ca.pem"),
        "tls_cert": str(tmp_path / "c.pem"),
    }


def test_second_add_is_unchanged_when_the_same_and_73_when_not(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text(PACS)

    same = dcmtools("nodes", "add", "PACS", "ARCHIVE@127.0.0.1:104")
    other = dcmtools("nodes", "add", "PACS", "ARCHIVE@127.0.0.1:105")

    assert (same.returncode, records(same)[0]["state"]) == (0, "unchanged")
    assert other.returncode == 73
    assert "dcmtools nodes edit PACS" in other.stderr
    assert user.read_text() == PACS


def test_edit_changes_what_was_given_and_nothing_else(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text("# ours\n\n# the archive\n" + PACS + "charset = GBK\n\n[B]\nae_title = B\nhost = b\nport = 1\n")

    changes = ("--port", "105", "--unset", "charset", "--max-associations", "3")
    answer = dcmtools("nodes", "edit", "pacs", "NEW@pacs:11112", *changes)

    assert (answer.returncode, records(answer)[0]["state"], records(answer)[0]["max_associations"]) == (0, "changed", 3)
    assert user.read_text() == (
        "# ours\n\n# the archive\n[PACS]\nae_title = NEW\nhost = pacs\nport = 105\nmax_associations = 3\n"
        "\n[B]\nae_title = B\nhost = b\nport = 1\n"
    )


def test_remove_and_copy_change_the_users_file(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text(PACS)

    copied = dcmtools("nodes", "copy", "PACS", "NEW")
    removed = dcmtools("nodes", "remove", "PACS")

    assert [records(answer)[0]["state"] for answer in (copied, removed)] == ["added", "removed"]
    assert user.read_text() == PACS.replace("PACS", "NEW")


def test_dry_run_plans_and_changes_nothing(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text(PACS)

    for words, plan in [
        (("add", "NEW", "A@b:1"), "added"),
        (("edit", "PACS", "--port", "1"), "changed"),
        (("remove", "PACS"), "removed"),
        (("copy", "PACS", "NEW"), "added"),
    ]:
        answer = dcmtools("nodes", *words, "--dry-run")

        assert (answer.returncode, records(answer)[0]["state"], records(answer)[0]["plan"]) == (0, "planned", plan)
    assert user.read_text() == PACS


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("edit", "PACS", "--port", "105"), 77),
        (("remove", "PACS"), 77),
        (("add", "pacs", "A@b:1"), 78),
        (("copy", "PACS", "MINE"), 0),
    ],
)
def test_administrators_node_is_left_alone(
    dcmtools: RunDcmtools, user: Path, system: Path, words: tuple[str, ...], code: int
) -> None:
    system.write_text(PACS)

    answer = dcmtools("nodes", *words)

    assert answer.returncode == code, answer.stderr
    assert code == 0 or "dcmtools nodes copy PACS NEWNAME" in answer.stderr
    assert system.read_text() == PACS
    assert user.exists() == (code == 0)


def test_unknown_node_ends_with_78_and_near_names(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text(PACS)

    answer = dcmtools("nodes", "show", "PACSS")

    assert answer.returncode == 78
    assert "no node PACSS; did you mean PACS? files looked in: " in answer.stderr
    assert "add it with: dcmtools nodes add PACSS AET@host:port" in answer.stderr
    assert records(answer)[0]["cause"] == "unknown-node"


def test_one_unknown_node_of_several_ends_with_3(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text(PACS)

    answer = dcmtools("nodes", "show", "nobody", "pacs", "A@b:1")

    assert answer.returncode == 3
    assert [record.get("node") for record in records(answer)] == ["nobody", "PACS", "A@b:1"]


def test_every_mistake_in_any_file_is_told_with_its_line(dcmtools: RunDcmtools, user: Path, system: Path) -> None:
    system.write_text(PACS + "prot = 1\n")
    user.write_text("[pacs]\nae_title = A\nhost = b\nport = 1\n  2\n")

    answer = dcmtools("nodes", "list")

    assert answer.returncode == 78
    for mistake in (
        f"{user}:1: [pacs]: stands already in {system}:1, the administrator's file",
        f"{user}:5: is indented",
        f"{system}:5: prot: is not known; did you mean port?",
    ):
        assert mistake in answer.stderr


def test_file_with_a_mistake_can_be_mended(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text(PACS.replace("104", "1o4"))

    answer = dcmtools("nodes", "edit", "PACS", "--port", "104")

    assert (answer.returncode, user.read_text()) == (0, PACS)


def test_named_file_is_made_by_add_and_used_by_list(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    before = dcmtools("nodes", "list", "--nodes", "mine.ini")
    dcmtools("nodes", "add", "PACS", "ARCHIVE@127.0.0.1:104", "--nodes", "mine.ini")
    after = dcmtools("nodes", "list", env={"DCMTOOLS_NODES": "mine.ini"})

    assert before.returncode == 78
    assert (tmp_path / "mine.ini").read_text() == PACS
    assert [record["node"] for record in records(after)] == ["PACS"]


def test_node_without_verification_is_told_of_at_each_use(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text(PACS + "tls = yes\ntls_verify = no\n")

    answer = dcmtools("nodes", "show", "PACS")

    assert answer.returncode == 0
    assert "the certificate of PACS (ARCHIVE@127.0.0.1:104) is not verified" in answer.stderr


def test_local_tells_what_to_register_at_each_node(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text(PACS + "[B]\nae_title = B\nhost = localhost\nport = 1\nlisten_port = 4006\ncalling_ae_title = US\n")
    user.with_name("config.ini").write_text("[local]\nae_title = OURS\nport = 11113\n")

    answer = dcmtools("nodes", "show", "local")

    shown = [(one["node"], one["towards"], one["ae_title"], one["port"]) for one in records(answer)]
    assert shown == [("local", "PACS", "OURS", 11113), ("local", "B", "US", 4006)]
    assert records(answer)[0]["host"] == "127.0.0.1"
    assert records(answer)[1]["host"] in {"127.0.0.1", "::1"}


def test_local_without_nodes_tells_what_it_can(dcmtools: RunDcmtools) -> None:
    (record,) = records(dcmtools("nodes", "show", "LOCAL", env={"DCMTOOLS_AE_TITLE": "OURS"}))

    assert (record["ae_title"], record["port"], record["host"]) == ("OURS", 11112, None)


def test_local_names_a_node_that_cannot_be_found_and_goes_on(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text("[GONE]\nae_title = A\nhost = nowhere.invalid\nport = 1\n" + PACS)

    answer = dcmtools("nodes", "show", "local")

    assert answer.returncode == 3
    assert [(one["type"], one.get("cause"), one.get("towards")) for one in records(answer)] == [
        ("error", "unknown-host", None),
        ("node", None, "PACS"),
    ]
    assert "cannot tell our address towards GONE (A@nowhere.invalid:1)" in answer.stderr


def test_local_sends_nothing_to_the_node(dcmtools: RunDcmtools, user: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as node:
        node.bind(("127.0.0.1", 0))
        node.setblocking(False)
        user.write_text(PACS.replace("104", str(node.getsockname()[1])))

        dcmtools("nodes", "show", "local")

        with pytest.raises(BlockingIOError):
            node.recv(1)


def test_bound_address_is_the_one_to_register(dcmtools: RunDcmtools, user: Path) -> None:
    user.write_text(PACS)
    user.with_name("config.ini").write_text("[local]\nbind = 192.0.2.7\n")

    (record,) = records(dcmtools("nodes", "show", "local"))

    assert record["host"] == "192.0.2.7"


def test_file_that_cannot_be_written_ends_with_73(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    answer = dcmtools("nodes", "add", "PACS", "A@b:1", "--nodes", tmp_path / "file" / "nodes.ini")

    assert answer.returncode == 73
    assert str(tmp_path / "file") in answer.stderr


def test_listing_loads_no_heavy_library(environment: dict[str, str], user: Path) -> None:
    user.write_text(PACS)
    code = (
        "import sys; sys.argv = ['dcmtools', 'nodes', 'list']\n"
        "from dcmtools.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )

    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)

    heavy = {"numpy", "pydicom", "pynetdicom", "nibabel", "PIL", "rich", "socket"}
    assert heavy & set(answer.stderr.split()) == set()


def completed(environment: dict[str, str], *words: str) -> list[str]:
    """What bash is given for the last word."""
    answer = subprocess.run(
        [sys.executable, "-m", "dcmtools"],
        env=environment
        | {"_DCMTOOLS_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)},
        capture_output=True,
        check=False,
        text=True,
        cwd=os.environ.get("TMPDIR", "/"),
    )
    assert answer.stderr == ""
    return answer.stdout.split()


def test_names_of_all_layers_are_completed_whatever_the_files_are_like(
    environment: dict[str, str], user: Path, system: Path
) -> None:
    system.write_text(PACS)
    user.write_text("broken\n[PROD]\nae_title = A\nhost = b\nport = 1\n[OTHER]\nae_title = A\nhost = b\nport = 1\n")

    assert completed(environment, "dcmtools", "nodes", "show", "P") == ["PACS", "PROD"]
