"""Files that must be private, and nodes that cannot be trusted as they are set up (DESIGN §5.9, §7)."""

import os
import stat
from pathlib import Path

from dcmtools.model.errors import ConfigurationError, Refused
from dcmtools.model.node import Node


def check_private(path: Path, **where: str) -> None:
    """Refuses a file with a secret that others than its owner can read.

    ConfigurationError when it is not there, or is no regular file: to read from a pipe could take for ever.
    """
    try:
        there = os.stat(path).st_mode
    except OSError as problem:
        raise ConfigurationError(f"cannot use {path}: {problem.strerror}", "check the path", **where) from None
    if not stat.S_ISREG(there):
        raise ConfigurationError(f"cannot use {path}: it is not a regular file", "check the path", **where)
    mode = stat.S_IMODE(there)
    if mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        reason = f"others than its owner can read or change the key in {path} (mode {mode:04o})"
        raise Refused(reason, f"chmod 600 {path}", cause="key-not-private", **where)


def check_keys_of(node: Node) -> None:
    """Refuses a node whose TLS key others can read; without tls_key it stands in tls_cert."""
    if node.tls and (secret := node.tls_key or node.tls_cert):
        check_private(Path(secret), node=node.name)


def warnings(node: Node) -> list[str]:
    """What a user must be told at each use of a node."""
    if node.tls and not node.tls_verify:
        return [f"the certificate of {node.where} is not verified (tls_verify = no): anybody could be in its place"]
    return []
