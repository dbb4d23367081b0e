"""The nodes that we know: the administrator's nodes.ini files and the user's, as one registry (DESIGN §7).

The user's file is the one that an option or $DCMTOOLS_NODES names, else nodes.ini in the user's folder. The
administrator's are nodes.ini and nodes.d/*.ini in the system's folder. They always count: a node of the administrator's
can be neither changed nor shadowed, only copied under another name.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dcmtools.disk import ini
from dcmtools.disk.ini import Document, Problem, Section
from dcmtools.disk.node_keys import FILES, OUR_SIDE, check_keys, check_name, node_of
from dcmtools.disk.places import system_config, user_config
from dcmtools.disk.trust import check_keys_of
from dcmtools.model.errors import CannotCreate, ConfigurationError, Refused
from dcmtools.model.node import Node, is_address, node_from_address

State = Literal["added", "changed", "removed", "unchanged"]


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a node in the user's file; the node is None when what was removed could not be read."""

    state: State
    name: str
    node: Node | None


@dataclass(frozen=True, slots=True)
class _Layer:
    """One file of the registry."""

    document: Document
    administered: bool

    @property
    def path(self) -> Path:
        return self.document.path


@dataclass(frozen=True, slots=True)
class _Found:
    """A node's section and the layer that has it."""

    section: Section
    layer: _Layer

    @property
    def origin(self) -> str:
        return f"{self.layer.path}:{self.section.line}"


_Plan = Callable[["Registry", str], tuple[State, str]]  # the registry and the user's text -> the state and the new text


class Registry:
    """All nodes of all layers; the last layer is the user's file, which add, edit, remove and copy change.

    `problems` is what is wrong in the files. A registry that has some can be changed and completed from, but not relied
    upon: see `load_registry`.
    """

    def __init__(self, layers: Sequence[_Layer]) -> None:
        self._layers = tuple(layers)
        self._found: dict[str, _Found] = {}
        self._nodes: dict[str, Node] = {}
        self.problems: list[Problem] = []
        for layer in layers:
            self.problems += layer.document.problems
            for name, section in layer.document.sections.items():
                self._take(name, _Found(section, layer))

    def _take(self, name: str, found: _Found) -> None:
        section, layer = found.section, found.layer
        if first := self._found.get(name):
            self.problems.append(Problem(layer.path, section.line, f"[{section.name}]", _shadows(first)))
            return
        self._found[name] = found
        node, problems = node_of(section, layer.path, administered=layer.administered)
        self.problems += problems
        if node:
            self._nodes[name] = node

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, the administrator's first, in the order of their files."""
        return tuple(self._nodes.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """The files looked in, whether they are there or not."""
        return tuple(layer.path for layer in self._layers)

    @property
    def user_file(self) -> Path:
        """The file that can be changed."""
        return self._layers[-1].path

    def get(self, text: str) -> Node:
        """The node of this name in any case, or the one written as AET@host:port.

        ConfigurationError when there is none, or when others can read its key.
        """
        if is_address(text):
            return node_from_address(text)
        if not (node := self.find(text)):
            raise self._unknown(text)
        check_keys_of(node)
        return node

    def find(self, name: str) -> Node | None:
        """The node of this name in any case, when it is there and can be read."""
        return self._nodes.get(name.casefold())

    def by_ae_title(self, ae_title: str) -> Node | None:
        """The node with this AE title; ConfigurationError when several at different addresses have it."""
        found = [node for node in self.nodes if node.ae_title == ae_title.strip(" ")]
        if len({(node.host.casefold(), node.port) for node in found}) > 1:
            names = ", ".join(node.where for node in found)
            raise ConfigurationError(f"{ae_title} is the AE title of several nodes: {names}", "name the one you mean")
        return found[0] if found else None

    def add(self, name: str, keys: Mapping[str, str], *, dry_run: bool = False) -> Change:
        """Adds a node.

        When there is another of this name: CannotCreate, or ConfigurationError if it is the administrator's.
        """
        check_name(name)
        check_keys(keys)

        def plan(now: Registry, text: str) -> tuple[State, str]:
            if found := now._found.get(name.casefold()):
                now._check_same(name, keys, found)
                return "unchanged", text
            now._check(name, keys)
            return "added", ini.add_section(text, name, keys)

        return self._change(name, plan, dry_run=dry_run)

    def edit(self, name: str, keys: Mapping[str, str | None], *, dry_run: bool = False) -> Change:
        """Changes keys of a node of the user's; None takes a key away, so that its default holds."""
        check_keys(keys)

        def plan(now: Registry, text: str) -> tuple[State, str]:
            found = now._editable(name)
            merged = {**found.section.values, **keys}
            now._check(found.section.name, {key: value for key, value in merged.items() if value is not None})
            changed = ini.set_keys(text, name, keys)
            return ("unchanged" if changed == text else "changed"), changed

        return self._change(name, plan, dry_run=dry_run)

    def remove(self, name: str, *, dry_run: bool = False) -> Change:
        """Takes a node of the user's away."""

        def plan(now: Registry, text: str) -> tuple[State, str]:
            now._editable(name)
            return "removed", ini.remove_section(text, name)

        return self._change(name, plan, dry_run=dry_run)

    def copy(self, name: str, new_name: str, *, dry_run: bool = False) -> Change:
        """Adds a node that is like another one, the administrator's or the user's, under a new name."""
        if not (found := self._found.get(name.casefold())):
            raise self._unknown(name)
        keys = found.section.values
        for key in FILES:
            if key in keys:  # relative to a file that may lie elsewhere
                keys[key] = os.path.join(found.layer.path.parent, os.path.expanduser(keys[key]))
        return self.add(new_name, keys, dry_run=dry_run)

    def _change(self, name: str, plan: _Plan, *, dry_run: bool) -> Change:
        """Applies a plan to the user's file as it is now, or only tells what would become of it."""
        changes: list[Change] = []

        def change(text: str) -> str:
            now = self._with(text)
            state, changed = plan(now, text)
            after = self._with(changed)
            if state != "removed":
                ini.refuse(after.problems)
            node = (now if state == "removed" else after).find(name)
            changes.append(Change(state, node.name if node else name, node))
            return changed

        if dry_run:
            change(ini.text_of(self.user_file)[0])
        else:
            ini.rewrite(self.user_file, change)
        return changes[0]

    def _with(self, text: str) -> "Registry":
        """The registry as it is when the user's file says this."""
        users = _Layer(ini.parse(text, self.user_file), administered=False)
        return Registry([*self._layers[:-1], users])

    def _editable(self, name: str) -> _Found:
        """The section of a node that the user may change."""
        if not (found := self._found.get(name.casefold())):
            raise self._unknown(name)
        if found.layer.administered:
            raise Refused(
                f"{found.section.name} is the administrator's node ({found.origin}) and cannot be changed",
                f"make one of your own: dcmtools nodes copy {found.section.name} NEWNAME",
                node=found.section.name,
                cause="administered",
            )
        return found

    def _check(self, name: str, keys: Mapping[str, str]) -> Node:
        """The node that these keys would make; ConfigurationError when they make none."""
        entries = {key: ini.Entry(key, value, 0) for key, value in keys.items()}
        node, problems = node_of(Section(name, 0, entries), self.user_file, administered=False)
        ini.refuse(problems)
        assert node  # noqa: S101 - there is one where there is no problem
        return node

    def _check_same(self, name: str, keys: Mapping[str, str], found: _Found) -> None:
        """Refuses to add a node that is there already, unless it would be the very same."""
        if found.layer.administered:
            raise ConfigurationError(
                f"there is a node {found.section.name} of the administrator's already ({found.origin})",
                f"use it as it is, or choose another name: dcmtools nodes copy {found.section.name} NEWNAME",
                node=name,
                cause="exists",
            )
        there = self.find(name)
        if there is None or replace(self._check(there.name, keys), origin=there.origin) != there:
            raise CannotCreate(
                f"there is a node {found.section.name} already ({found.origin})",
                f"change it with: dcmtools nodes edit {found.section.name}",
                node=name,
                cause="exists",
            )

    def _unknown(self, text: str) -> ConfigurationError:
        if text.casefold() == OUR_SIDE:
            return ConfigurationError(
                f"'{text}' is our own side and no node", "see it with: dcmtools nodes show local", node=text
            )
        near = ini.nearest(text, [node.name for node in self.nodes]).removeprefix("; ")
        looked = ", ".join(f"{path}" if path.exists() else f"{path} (not there)" for path in self.files)
        try:
            add = f"add it with: dcmtools nodes add {check_name(text)} AET@host:port"
        except ConfigurationError:
            add = "a node is written as a name or as AET@host:port"
        advice = "; ".join([f"{near} files looked in: {looked}".strip(), add])
        return ConfigurationError(f"no node {text}", advice, node=text, cause="unknown-node")


def load_registry(nodes_file: Path | None = None) -> Registry:
    """The registry; ConfigurationError that tells of everything that is wrong in any of its files."""
    registry = read_registry(nodes_file)
    ini.refuse(registry.problems)
    return registry


def read_registry(nodes_file: Path | None = None) -> Registry:
    """The registry as far as it can be read, with its problems."""
    named = nodes_file or (Path(value) if (value := os.environ.get("DCMTOOLS_NODES")) else None)
    users = named.expanduser() if named else user_config() / "nodes.ini"
    document = ini.read(users)
    if named and not named.exists():
        document.problems.append(Problem(named, 0, "", "is not there; make it with: dcmtools nodes add"))
    layers = [_Layer(ini.read(path), administered=True) for path in system_files() if not _same(path, users)]
    return Registry([*layers, _Layer(document, administered=False)])


def system_files() -> list[Path]:
    """The administrator's files: nodes.ini and nodes.d/*.ini by name."""
    first, more = system_config() / "nodes.ini", system_config() / "nodes.d"
    try:
        names = sorted(name for name in os.listdir(more) if name.endswith(".ini") and name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return [first]
    except OSError:
        return [first, more]  # to read it will fail as well, which is then told
    return [first, *(more / name for name in names)]


def _same(first: Path, second: Path) -> bool:
    """Whether both are one file: who names the administrator's means to change it, as far as the system lets her."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return os.path.abspath(first) == os.path.abspath(second)


def _shadows(first: _Found) -> str:
    whose = ", the administrator's file" if first.layer.administered else ""
    return f"stands already in {first.origin}{whose}; give one of them another name"
