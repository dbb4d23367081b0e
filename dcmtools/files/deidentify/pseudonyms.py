"""Keyed pseudonyms: what takes the place of UIDs, identifiers and dates, the same wherever the same key is used.

HMAC-SHA-256 with a word in front of what is hashed, so that equal texts of different kinds have nothing in common.
There is no state: two machines with one key agree without talking. Without the key nobody can try out names
(PS3.15 E.1.1).
"""

import base64
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from dcmtools.disk.atomic import FILE_MODE
from dcmtools.disk.trust import check_private
from dcmtools.files.deidentify.dictionary import UIDS
from dcmtools.model.errors import CannotCreate, ConfigurationError, UsageError, from_os
from dcmtools.model.names import is_uid

KEY_BYTES = 32
UUID_ROOT = "2.25"
MAX_ROOT = 24  # leaves room for a dot and 128 bits in the 64 characters of a UID
DAYS = 3650
_STANDARD = "1.2.840.10008"
_LETTERS = 10  # 50 bits: among a million patients two have one pseudonym with a chance of 4 in 10,000
_MEMORY = 1 << 17


@dataclass(frozen=True, slots=True)
class Key:
    """A secret and what is made with it; equal secrets make equal pseudonyms."""

    secret: bytes = field(repr=False)
    root: str = UUID_ROOT
    days: int = DAYS
    _uids: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def uid(self, old: str) -> str:
        """The UID that takes the place of another; those that PS3.6 Annex A names stand for themselves.

        A well-known frame of reference tells of nobody; others below the standard's root are of devices that use it.

        2.25 and a UUID of version 8 (PS3.5 B.2, RFC 9562), or the same number below a root of one's own.
        """
        if (new := self._uids.get(old)) is None:
            if len(self._uids) >= _MEMORY:
                self._uids.clear()
            new = self._uids[old] = old if not old or is_registered(old) else self._new_uid(old)
        return new

    def patient(self, issuer: str, identifier: str) -> str:
        """The Patient ID and name of a pseudonymous patient."""
        return f"ANON-{self._word('PATIENT', issuer, identifier)}"

    def code(self, kind: str, text: str) -> str:
        """What takes the place of an accession number or a study ID: 16 characters at most, as SH has them."""
        return self._word(kind, text)

    def shift(self, issuer: str, identifier: str) -> int:
        """By how many days the dates of a patient move: back, and at least one day."""
        return -(1 + int.from_bytes(self.digest("DATE", issuer, identifier)[:8], "big") % self.days)

    def digest(self, kind: str, *texts: str) -> bytes:
        """The HMAC of texts of one kind; no two lists of texts are hashed as one."""
        parts = (kind, *texts)
        message = b"".join(
            len(raw).to_bytes(4, "big") + raw for raw in (text.encode("utf-8", "surrogatepass") for text in parts)
        )
        return hmac.digest(self.secret, message, "sha256")

    def fingerprint(self) -> str:
        """By what two runs see that they have the same key and root: it tells nothing of the key."""
        return self.digest("FINGERPRINT", self.root, str(self.days)).hex()[:16]

    def _new_uid(self, old: str) -> str:
        number = int.from_bytes(self.digest("UID", old)[:16], "big")
        number = number & ~(0xF << 76) | 8 << 76  # version
        number = number & ~(0b11 << 62) | 0b10 << 62  # variant
        return f"{self.root}.{number}"

    def _word(self, kind: str, *texts: str) -> str:
        return base64.b32encode(self.digest(kind, *texts)).decode()[:_LETTERS]


def is_registered(uid: str) -> bool:
    """Whether the standard itself names this UID (PS3.6 Annex A)."""
    return uid in UIDS


def random_key(root: str = UUID_ROOT, days: int = DAYS) -> Key:
    """A key for one run: what another one makes of the same files will not fit."""
    return Key(secrets.token_bytes(KEY_BYTES), checked_root(root), days)


def read_key(path: Path, root: str = UUID_ROOT, days: int = DAYS) -> Key:
    """The key in a file that `new_key` made.

    Raises:
        Refused: others than its owner can read the file.
        ConfigurationError: it is not there, or holds no key.
    """
    check_private(path)
    advice = "make one with dcmtools export --new-key FILE"
    try:
        secret = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError):
        raise ConfigurationError(f"{path} holds no key", advice) from None
    if len(secret) < KEY_BYTES:
        raise ConfigurationError(f"the key in {path} is shorter than {KEY_BYTES} bytes", advice)
    return Key(secret, checked_root(root), days)


def new_key(path: Path) -> None:
    """Makes a file with a new key that only its owner can read; CannotCreate when the name is taken."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, FILE_MODE)
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise CannotCreate(f"{path} is there already", "a key is never overwritten: choose another name") from None
    except OSError as problem:
        raise from_os(problem, "writing the key", path) from problem


def checked_root(root: str) -> str:
    """The root, when UIDs can be made below it."""
    if root != UUID_ROOT and not (
        is_uid(root) and "." in root and len(root) <= MAX_ROOT and _has_no_leading_zero(root)
    ):
        raise UsageError(
            f"--uid-root {root[:80]}: is no root for UIDs", f"a registered one, of {MAX_ROOT} characters at most"
        )
    if root.startswith(_STANDARD):
        raise UsageError(f"--uid-root {root}: belongs to the standard", "use a root that is registered for you")
    return root


def _has_no_leading_zero(root: str) -> bool:
    return not any(part.startswith("0") and part != "0" for part in root.split("."))
