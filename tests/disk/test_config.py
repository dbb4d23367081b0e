"""Our own settings: which of several places decides, and what is said when one is wrong."""

import os
import re
from pathlib import Path

import pytest

from dcmtools.disk.config import Settings, load_settings
from dcmtools.disk.places import default_archive, state_folder, user_config
from dcmtools.model.errors import ConfigurationError, UsageError
from dcmtools.model.node import Local

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DCMTOOLS_"):
            monkeypatch.delenv(name)
    for name in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("DCMTOOLS_SYSTEM_CONFIG", str(tmp_path / "system"))
    (tmp_path / "system").mkdir()
    (tmp_path / "config" / "dcmtools").mkdir(parents=True)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    return tmp_path / "config" / "dcmtools" / "config.ini"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    return tmp_path / "system" / "config.ini"


def plain(settings: Settings) -> tuple[Local, Path, str | None, dict[str, object]]:
    return settings.local, settings.archive, settings.zone, dict(settings.defaults)


def test_without_any_file_the_defaults_hold(tmp_path: Path) -> None:
    settings = load_settings()

    assert plain(settings) == (Local("DCMTOOLS", 11112, ""), tmp_path / "data" / "dcmtools" / "archive", None, {})
    assert settings.state == tmp_path / "state" / "dcmtools"
    assert settings.registry.nodes == ()
    assert set(settings.origins.values()) == {"default"}


def test_every_value_comes_from_the_first_place_that_has_it(
    user: Path, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.write_text("[local]\nae_title = SYSTEM\nport = 1\nbind = ::1\nzone = UTC\n[defaults]\njobs = 1\n")
    user.write_text("[defaults]\njobs = 2\nprogress = never\n\n[local]\nae_title = USER\nport = 2\nzone = Asia/Tokyo\n")
    monkeypatch.setenv("DCMTOOLS_AE_TITLE", "ENVIRONMENT")
    monkeypatch.setenv("DCMTOOLS_PORT", "3")
    monkeypatch.setenv("DCMTOOLS_ZONE", "")

    settings = load_settings(options={"ae_title": "OPTION"})

    assert settings.local == Local("OPTION", 3, "::1")
    assert settings.zone == "Asia/Tokyo"
    assert dict(settings.defaults) == {"jobs": 2, "progress": "never"}
    assert dict(settings.origins) == {
        "ae_title": "--ae-title",
        "port": "$DCMTOOLS_PORT",
        "bind": f"{system}:4",
        "archive": "default",
        "zone": f"{user}:8",
        "jobs": f"{user}:2",
        "progress": f"{user}:3",
    }
    assert settings.files == (system, user)


def test_every_key_has_its_meaning(user: Path) -> None:
    user.write_text(
        "[local]\nae_title = ME\nport = 104\nbind = 127.0.0.1\narchive = a/b\nzone = Europe/Brussels\n"
        "[Defaults]\njobs = 3\ndeadline = 1h30m\nformat = TABLE\nlog_format = json\nprogress = always\n"
    )

    assert plain(load_settings()) == (
        Local("ME", 104, "127.0.0.1"),
        user.parent / "a" / "b",
        "Europe/Brussels",
        {"jobs": 3, "deadline": "1h30m", "format": "table", "log_format": "json", "progress": "always"},
    )


def test_archive_is_relative_to_what_names_it(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    user.write_text("[local]\narchive = ~/dicom\n")
    assert load_settings().archive == tmp_path / "home" / "dicom"

    monkeypatch.setenv("DCMTOOLS_ARCHIVE", "here")
    assert load_settings().archive == tmp_path / "here"
    assert load_settings(options={"archive": "/there/../else"}).archive == Path("/else")


def test_named_file_replaces_the_users(
    user: Path, system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.write_text("[local]\nport = 1\n")
    user.write_text("[local]\nae_title = USER\n")
    (tmp_path / "mine.ini").write_text("[local]\nzone = UTC\n")

    assert plain(load_settings(tmp_path / "mine.ini"))[0] == Local("DCMTOOLS", 1)
    monkeypatch.setenv("DCMTOOLS_CONFIG", str(tmp_path / "mine.ini"))
    assert load_settings().zone == "UTC"


def test_named_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.ini: is not there"):
        load_settings(tmp_path / "none.ini")


def test_all_mistakes_of_all_files_and_of_the_environment_are_told_in_one_go(
    user: Path, system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.write_text("[local]\nport = 1x\n[PACS]\nae_title = A\n")
    user.write_text("[local]\nzone = Mars/Olympus\njobs = 1\naetitle = X\n[defaults]\njobs = 0\ndeadline = soon\n")
    (user.parent / "nodes.ini").write_text("[A]\nx = 1\n")
    monkeypatch.setenv("DCMTOOLS_PORT", "none")

    with pytest.raises(ConfigurationError) as failure:
        load_settings()

    told = failure.value.reason.replace(str(tmp_path), "")
    assert [
        line in told
        for line in (
            "$DCMTOOLS_PORT: 'none' is not a port",
            "/config/dcmtools/config.ini:2: zone: 'Mars/Olympus' is not a time zone",
            "/config/dcmtools/config.ini:3: jobs: is not known",
            "/config/dcmtools/config.ini:4: aetitle: is not known; did you mean ae_title?",
            "/config/dcmtools/config.ini:6: jobs: '0' is not a number from 1 to 9999",
            "/config/dcmtools/config.ini:7: deadline: 'soon' is not a duration",
            "/config/dcmtools/nodes.ini:2: x: is not known",
            "/system/config.ini:2: port: '1x' is not a port",
            "/system/config.ini:3: [PACS]: is not known; nodes belong into nodes.ini",
        )
    ] == [True] * 9


def test_mistake_in_a_file_of_nodes_stops_only_who_asks_for_them(user: Path) -> None:
    (user.parent / "nodes.ini").write_text("[A]\nx = 1\n")

    settings = load_settings()

    assert settings.local == Local()
    with pytest.raises(ConfigurationError, match=r"nodes\.ini:2: x: is not known"):
        _ = settings.registry


def test_wrong_option_is_a_mistake_of_the_call() -> None:
    with pytest.raises(UsageError, match="--port: '0x' is not a port"):
        load_settings(options={"port": "0x"})


@pytest.mark.parametrize("zone", ["../etc/passwd", "/etc/localtime", "Europe", "", "\u00e9", "posix"])
def test_no_zone_is_read_from_elsewhere(user: Path, zone: str) -> None:
    user.write_text(f"[local]\nzone = {zone}\n")

    with pytest.raises(ConfigurationError, match="2: zone: "):
        load_settings()


def test_relative_folders_of_the_environment_count_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert user_config() == tmp_path / ".config" / "dcmtools"
    assert default_archive() == tmp_path / ".local" / "share" / "dcmtools" / "archive"
    assert state_folder() == tmp_path / ".local" / "state" / "dcmtools"


def test_user_without_a_home_still_has_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_CONFIG_HOME")

    assert user_config() == Path("/var/lib/dcmtools/.config/dcmtools")


def test_sample_of_nodes_can_be_used_with_all_switched_on(user: Path) -> None:
    sample = (ROOT / "etc" / "nodes.ini").read_text()
    (user.parent / "nodes.ini").write_text(re.sub(r"(?m)^#(?=\w+ = )", "", sample))

    assert [node.name for node in load_settings().registry.nodes] == ["PACS"]
