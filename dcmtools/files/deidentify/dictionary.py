"""The dictionaries of PS3.6 as pydicom has them, loaded without the rest of it, which takes a quarter of a second."""

from collections.abc import Mapping
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def _loaded(name: str) -> ModuleType:
    package = find_spec("pydicom")  # which does not import it
    assert package  # noqa: S101 - it is a dependency
    assert package.origin  # noqa: S101
    spec = spec_from_file_location(f"pydicom.{name}", Path(package.origin).with_name(f"{name}.py"))
    assert spec  # noqa: S101
    assert spec.loader  # noqa: S101
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Tag -> VR (several with "or" between them), value multiplicity, name, whether it is retired, keyword.
ELEMENTS: Mapping[int, tuple[str, str, str, str, str]] = _loaded("_dicom_dict").DicomDictionary
# The UIDs that the standard names (PS3.6 Annex A).
UIDS: frozenset[str] = frozenset(_loaded("_uid_dict").UID_dictionary)
