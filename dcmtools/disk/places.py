"""Where settings, data, state and caches lie unless somebody says otherwise (DESIGN §7; XDG Base Directory)."""

import os
from pathlib import Path

_WITHOUT_HOME = "/var/lib/dcmtools"  # a service's user, or a container's, may have no home


def user_config() -> Path:
    """The folder with the user's own config.ini and nodes.ini."""
    return _base("XDG_CONFIG_HOME", ".config") / "dcmtools"


def system_config() -> Path:
    """The folder with the administrator's files; $DCMTOOLS_SYSTEM_CONFIG moves it, for containers and tests."""
    return Path(os.environ.get("DCMTOOLS_SYSTEM_CONFIG") or "/etc/dcmtools")


def default_archive() -> Path:
    """The archive of a user who has not chosen one."""
    return _base("XDG_DATA_HOME", ".local/share") / "dcmtools" / "archive"


def state_folder() -> Path:
    """Where transfers and ledgers are kept."""
    return _base("XDG_STATE_HOME", ".local/state") / "dcmtools"


def cache_folder() -> Path:
    """Where what can be made anew is kept."""
    return _base("XDG_CACHE_HOME", ".cache") / "dcmtools"


def _base(variable: str, below_home: str) -> Path:
    """The folder that a variable names; a relative one counts as unset, as the specification wants it."""
    if (named := os.environ.get(variable, "")).startswith("/"):
        return Path(named)
    home = os.path.expanduser("~")
    return Path(home if home.startswith("/") and home != "/" else _WITHOUT_HOME) / below_home
