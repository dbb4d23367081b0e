"""The nodes of all files: found by name, refused when wrong, changed only where they are the user's."""

import subprocess
import sys
from pathlib import Path

import pytest

from dcmtools.disk.registry import Registry, load_registry, read_registry
from dcmtools.model.errors import CannotCreate, ConfigurationError, Refused
from dcmtools.model.node import Node

PACS = "[PACS]\nae_title = ARCHIVE\nhost = pacs.example.org\nport = 104\n"
OTHER = "[Other-1]\nae_title = OTHER\nhost = ::1\nport = 11113\n"


class Places:
    """A user's folder and a system's folder."""

    def __init__(self, folder: Path) -> None:
        self.user = folder / "config" / "dcmtools" / "nodes.ini"
        self.system = folder / "system" / "nodes.ini"
        for path in (self.user, self.system):
            path.parent.mkdir(parents=True)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.delenv("DCMTOOLS_NODES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DCMTOOLS_SYSTEM_CONFIG", str(tmp_path / "system"))
    return Places(tmp_path)


def node_with(places: Places, line: str) -> Node:
    places.user.write_text(PACS + line + "\n")
    return load_registry().get("PACS")


def reason_of(places: Places, text: str) -> str:
    places.user.write_text(text)
    with pytest.raises(ConfigurationError) as failure:
        load_registry()
    return failure.value.reason.replace(f"{places.user}:", "")


def test_node_is_found_by_its_name_in_any_case(places: Places) -> None:
    places.user.write_text("# mine\n" + PACS)

    node = load_registry().get("pacs")

    assert (node.name, node.ae_title, node.host, node.port) == ("PACS", "ARCHIVE", "pacs.example.org", 104)
    assert (node.origin, node.administered) == (f"{places.user}:2", False)


def test_node_can_be_an_address(places: Places) -> None:
    node = load_registry().get("ANY-SCP@[::1]:11112")

    assert (node.name, node.host, node.origin) == ("ANY-SCP@[::1]:11112", "::1", "command line")


def test_unknown_node_names_near_ones_the_files_and_the_remedy(places: Places) -> None:
    places.user.write_text(PACS)

    with pytest.raises(ConfigurationError) as failure:
        load_registry().get("PACSS")

    assert str(failure.value) == (
        f"no node PACSS; did you mean PACS? files looked in: {places.system} (not there), {places.user}; "
        "add it with: dcmtools nodes add PACSS AET@host:port"
    )
    assert (failure.value.exit_code, failure.value.where["node"]) == (78, "PACSS")


def test_word_that_can_be_no_name_is_not_advised_to_be_added(places: Places) -> None:
    with pytest.raises(ConfigurationError, match=r"a node is written as a name or as AET@host:port"):
        load_registry().get("pacs:104")


def test_local_is_our_own_side_and_no_node(places: Places) -> None:
    with pytest.raises(ConfigurationError, match="dcmtools nodes show local"):
        load_registry().get("Local")


def test_all_layers_count_and_the_systems_come_first(places: Places) -> None:
    places.system.write_text(PACS)
    (places.system.parent / "nodes.d").mkdir()
    (places.system.parent / "nodes.d" / "b.ini").write_text("[B]\nae_title = B\nhost = b\nport = 1\n")
    (places.system.parent / "nodes.d" / "a.ini").write_text("[A]\nae_title = A\nhost = a\nport = 1\n")
    (places.system.parent / "nodes.d" / "no.txt").write_text("not read")
    places.user.write_text(OTHER)

    nodes = load_registry().nodes

    assert [(node.name, node.administered) for node in nodes] == [
        ("PACS", True),
        ("A", True),
        ("B", True),
        ("Other-1", False),
    ]


def test_named_file_replaces_the_users_and_not_the_systems(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.system.write_text(PACS)
    places.user.write_text("broken")
    (tmp_path / "mine.ini").write_text(OTHER)
    monkeypatch.setenv("DCMTOOLS_NODES", str(tmp_path / "mine.ini"))

    by_environment, by_option = load_registry(), load_registry(tmp_path / "mine.ini")

    assert [node.name for node in by_environment.nodes] == ["PACS", "Other-1"]
    assert by_option.nodes == by_environment.nodes


def test_named_file_that_is_not_there_is_told(places: Places, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.ini: is not there"):
        load_registry(tmp_path / "none.ini")


def test_same_name_in_system_and_user_is_refused_with_both_lines(places: Places) -> None:
    places.system.write_text("\n" + PACS)
    places.user.write_text(OTHER + PACS.replace("PACS", "pacs"))

    with pytest.raises(ConfigurationError) as failure:
        load_registry()

    assert failure.value.reason == (
        f"{places.user}:5: [pacs]: stands already in {places.system}:2, the administrator's file; "
        "give one of them another name"
    )


def test_all_mistakes_of_all_files_are_told_in_one_go(places: Places) -> None:
    places.system.write_text("[A]\nae_title = A\nhost = a\nport = 0\n")
    places.user.write_text("[B]\nae_title = toolongforanaetitle\nprot = 4\n[C]\n  x\n")

    with pytest.raises(ConfigurationError) as failure:
        load_registry()

    assert [(Path(one["path"]).parent.name, one["line"], one["key"]) for one in failure.value.where["problems"]] == [
        ("dcmtools", 1, "[B]"),
        ("dcmtools", 1, "[B]"),
        ("dcmtools", 2, "ae_title"),
        ("dcmtools", 3, "prot"),
        ("dcmtools", 4, "[C]"),
        ("dcmtools", 4, "[C]"),
        ("dcmtools", 4, "[C]"),
        ("dcmtools", 5, ""),
        ("system", 4, "port"),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("port = 104", "5: port: stands already in line 4"),
        (
            "listen_port = 104 ; ours",
            "5: listen_port: '104 ; ours' is not a port; use a number from 1 to 65535; a c",
        ),
        ("listen-port = 104", "5: listen-port: is not known; did you mean listen_port?"),
        ("compresion = rle", "5: compresion: is not known; did you mean compression?"),
        (
            "compression = j2k-losless",
            "5: compression: 'j2k-losless' is not a transfer syntax; did you mean j2k-loss",
        ),
        ("compression = 1.2.840.10008.1.2.4.7", "5: compression: '1.2.840.10008.1.2.4.7' is not a transfer syntax"),
        ("charset = utf-9", "5: charset: 'utf-9' is not a character set of DICOM"),
        ("calling_ae_title = a\\b", "5: calling_ae_title: 'a\\b' is not an AE title"),
        ('calling_ae_title = "ME"', "5: calling_ae_title: is in quotes"),
        ("calling_ae_title =", "5: calling_ae_title: is empty"),
        ("tls = perhaps", "5: tls: 'perhaps' is neither yes nor no"),
        ("tls_ca = ca.pem", "5: tls_ca: has no effect without TLS; write tls = yes"),
        ("tls = yes\ntls_key = k", "6: tls_key: needs its certificate; write tls_cert too"),
        ("retrieve = pull", "5: retrieve: 'pull' is none of auto, move, get"),
        ("acse_timeout = 0", "5: acse_timeout: '0' is not a number of seconds"),
        ("dimse_timeout = inf", "5: dimse_timeout: 'inf' is not a number of seconds"),
        ("max_associations = 0", "5: max_associations: '0' is not a number from 1 to 9999"),
        ("allowed_hours = 20-6", "5: allowed_hours: '20-6' are not hours of a day"),
    ],
)
def test_mistake_in_a_key_is_told_with_its_line(places: Places, line: str, expected: str) -> None:
    assert reason_of(places, PACS + line + "\n")[: len(expected)] == expected


@pytest.mark.parametrize("host", ["pacs:104", "a b", "a/b", "::zz", "-@-", "a..b", "x" * 254])
def test_host_that_can_be_none_is_refused(places: Places, host: str) -> None:
    assert "is not a host" in reason_of(places, PACS.replace("pacs.example.org", host))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("[::1]", "::1"), ("fe80::1%eth0", "fe80::1%eth0"), ("pacs_1.local.", "pacs_1.local."), ("klinik-süd.de",) * 2],
)
def test_host_can_be_an_address_or_a_name(places: Places, host: str, expected: str) -> None:
    places.user.write_text(PACS.replace("pacs.example.org", host))

    assert load_registry().get("PACS").host == expected


@pytest.mark.parametrize("name", ["a@b", "a b", "ä", "-a", "..", "a/b", "LOCAL", "a,b"])
def test_name_that_a_command_line_would_not_take_is_refused(places: Places, name: str) -> None:
    assert reason_of(places, PACS.replace("PACS", name)).startswith(f"1: [{name}]: '{name}'")


def test_every_key_has_its_meaning(places: Places, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch(mode=0o600)

    node = node_with(
        places,
        f"""\
listen_port = 11113
calling_ae_title = ME
compression = JPEG-LS, jpeg lossless, first-order prediction, 1.2.840.10008.1.2.4.90, 1.2.840.113619.5.2, j2k-lossless
charset = iso_ir 100\\ISO 2022 IR 87
description = "the" archive # one
tls = yes
tls_verify = no
tls_ca = ca.pem
tls_cert = ~nobody-at-all/cert.pem
tls_key = {key}
retrieve = GET
connect_timeout = 2.5
acse_timeout = 3
dimse_timeout = 4
max_associations = 2
allowed_hours = 20:00-06:00,12:00-13:00""",
    )

    assert node == Node(
        "PACS",
        "ARCHIVE",
        "pacs.example.org",
        104,
        listen_port=11113,
        calling_ae_title="ME",
        compression=(
            "1.2.840.10008.1.2.4.80",
            "1.2.840.10008.1.2.4.70",
            "1.2.840.10008.1.2.4.90",
            "1.2.840.113619.5.2",
        ),
        charset="ISO_IR 100\\ISO 2022 IR 87",
        description='"the" archive # one',
        tls=True,
        tls_verify=False,
        tls_ca=str(places.user.parent / "ca.pem"),
        tls_cert=str(places.user.parent / "~nobody-at-all" / "cert.pem"),
        tls_key=str(key),
        retrieve="get",
        connect_timeout=2.5,
        acse_timeout=3,
        dimse_timeout=4,
        max_associations=2,
        allowed_hours="20:00-06:00, 12:00-13:00",
        origin=f"{places.user}:1",
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
@pytest.mark.parametrize("keys", ["tls_cert = cert.pem\ntls_key = k.pem", "tls_cert = k.pem"])
def test_key_that_others_can_read_is_refused_when_its_node_is_used(places: Places, mode: int, keys: str) -> None:
    key = places.user.parent / "k.pem"
    key.touch()
    key.chmod(mode)
    places.user.write_text(f"{PACS}tls = yes\n{keys}\n{OTHER}")
    registry = load_registry()

    with pytest.raises(Refused, match=r"chmod 600 .*k\.pem"):
        registry.get("PACS")

    assert registry.get("other-1").name == "Other-1"


def test_key_that_is_not_there_is_told_when_its_node_is_used(places: Places) -> None:
    with pytest.raises(ConfigurationError, match=r"k\.pem: No such file"):
        node_with(places, "tls = yes\ntls_cert = c.pem\ntls_key = k.pem")


def test_ae_title_finds_its_node_and_refuses_to_choose_between_two(places: Places) -> None:
    places.user.write_text(PACS + PACS.replace("PACS", "COPY") + OTHER)
    registry = load_registry()

    assert registry.by_ae_title(" ARCHIVE ") == registry.get("PACS")
    assert registry.by_ae_title("archive") is None

    places.user.write_text(PACS + PACS.replace("PACS", "COPY").replace("104", "105"))
    with pytest.raises(ConfigurationError, match=r"several nodes: PACS .*, COPY"):
        load_registry().by_ae_title("ARCHIVE")


KEYS = {"ae_title": "ARCHIVE", "host": "pacs.example.org", "port": "104"}


def test_node_is_added_to_the_users_file(places: Places) -> None:
    places.user.write_text("# mine\n" + OTHER)

    change = load_registry().add("PACS", KEYS)

    assert places.user.read_text() == "# mine\n" + OTHER + "\n" + PACS
    assert (change.state, change.node) == ("added", load_registry().get("PACS"))


def test_node_is_added_to_a_file_that_is_not_there_yet(places: Places, tmp_path: Path) -> None:
    read_registry(tmp_path / "new" / "nodes.ini").add("PACS", KEYS)

    assert (tmp_path / "new" / "nodes.ini").read_text() == PACS


def test_node_added_twice_is_unchanged_and_another_one_of_its_name_is_refused(places: Places) -> None:
    registry = load_registry()
    registry.add("PACS", KEYS)

    assert registry.add("pacs", {**KEYS, "port": "0104"}).state == "unchanged"
    with pytest.raises(CannotCreate, match="dcmtools nodes edit PACS") as failure:
        registry.add("PACS", {**KEYS, "port": "105"})

    assert failure.value.exit_code == 73
    assert places.user.read_text() == PACS


def test_administrators_node_is_not_changed_only_copied(places: Places) -> None:
    places.system.write_text("# theirs\n" + PACS + "tls=yes\ntls_ca = ca.pem\n")
    before = places.system.read_bytes()
    registry = load_registry()

    with pytest.raises(Refused, match="dcmtools nodes copy PACS NEWNAME") as refusal:
        registry.edit("pacs", {"port": "105"})
    with pytest.raises(Refused, match="dcmtools nodes copy PACS NEWNAME"):
        registry.remove("PACS")
    with pytest.raises(ConfigurationError, match="dcmtools nodes copy PACS NEWNAME"):
        registry.add("Pacs", KEYS)
    copied = registry.copy("pacs", "MINE").node

    assert refusal.value.exit_code == 77
    assert copied
    assert (copied.name, copied.administered) == ("MINE", False)
    assert copied.tls_ca == str(places.system.parent / "ca.pem")
    assert places.system.read_bytes() == before


def test_node_is_changed_and_the_rest_of_the_file_is_not(places: Places) -> None:
    places.user.write_text("# mine\n" + PACS + "# a comment\ncharset = GBK\n\n" + OTHER)

    change = load_registry().edit("pacs", {"port": "105", "charset": None, "description": "ours"})

    assert change.state == "changed"
    assert change.node == load_registry().get("PACS")
    assert places.user.read_text() == (
        "# mine\n" + PACS.replace("104", "105") + "# a comment\ndescription = ours\n\n" + OTHER
    )


def test_change_to_what_is_there_already_is_none(places: Places) -> None:
    places.user.write_text(PACS)

    assert load_registry().edit("PACS", {"port": "104"}).state == "unchanged"


def test_removed_node_is_gone(places: Places) -> None:
    places.user.write_text(PACS + "\n" + OTHER)

    change = load_registry().remove("pacs")

    assert (change.state, change.name, change.node and change.node.port) == ("removed", "PACS", 104)
    assert places.user.read_text() == OTHER
    with pytest.raises(ConfigurationError, match="no node pacs"):
        load_registry().remove("pacs")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"port": "x"}, "port: 'x' is not a port"),
        ({"prot": "4"}, "'prot' is not a key of a node; did you mean port?"),
        ({"port": None}, r"\[PACS\]: has no port"),
        ({"tls_ca": "ca.pem"}, "tls_ca: has no effect without TLS"),
        ({"description": "a\n[B]"}, "cannot stand in an INI file"),
    ],
)
def test_change_that_would_break_the_file_is_refused(
    places: Places, keys: dict[str, str | None], expected: str
) -> None:
    places.user.write_text(PACS)

    with pytest.raises(ConfigurationError, match=expected):
        load_registry().edit("PACS", keys)

    assert places.user.read_text() == PACS


def test_dry_run_tells_the_same_and_writes_nothing(places: Places) -> None:
    registry = load_registry()

    assert registry.add("PACS", KEYS, dry_run=True).state == "added"
    assert not places.user.exists()

    places.user.write_text(PACS)
    assert registry.edit("PACS", {"port": "1"}, dry_run=True).state == "changed"
    assert registry.remove("PACS", dry_run=True).state == "removed"
    assert load_registry().copy("PACS", "B", dry_run=True).state == "added"
    assert places.user.read_text() == PACS


def test_broken_node_can_be_mended_or_taken_away(places: Places) -> None:
    broken = PACS.replace("104", "104x")
    places.user.write_text(broken)
    assert read_registry().edit("PACS", {"port": "104"}).state == "changed"

    places.user.write_text(OTHER + broken + "x\n")
    read_registry().remove("PACS")

    assert [node.name for node in load_registry().nodes] == ["Other-1"]


def test_registry_of_broken_files_still_has_the_nodes_that_are_right(places: Places) -> None:
    places.user.write_text(PACS + OTHER.replace("11113", "x"))

    assert [node.name for node in read_registry().nodes] == ["PACS"]


def test_administrators_file_that_is_named_can_be_changed_by_who_may(places: Places) -> None:
    places.system.write_text(PACS)

    change = load_registry(places.system).edit("PACS", {"port": "105"})

    assert (change.state, change.node and change.node.port) == ("changed", 105)


def test_registry_needs_nothing_but_the_standard_library_and_the_model() -> None:
    code = (
        "import sys; before = set(sys.modules); import dcmtools.disk.config; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert set(answer.stdout.split()) - {"msgspec", "typing_extensions"} == {"dcmtools"}


def test_registry_of_one_empty_layer_has_no_nodes(places: Places) -> None:
    registry: Registry = load_registry()

    assert (registry.nodes, registry.user_file) == ((), places.user)
