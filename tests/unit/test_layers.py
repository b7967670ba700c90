"""The layers (DESIGN, section 4): which part of the package may import which."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import waly_cdc

ROOT = Path(waly_cdc.__file__).parent

VOCABULARY = {
    "config",
    "durable",
    "embedded",
    "errors",
    "failpoints",
    "findings",
    "lsn",
    "plugins",
    "points",
    "relations",
    "sizes",
    "tables",
}
"""Modules beside the layers, which every layer may use."""

MAY_IMPORT: dict[str, set[str]] = {
    "decode": set(),
    "source": {"decode"},
    "journal": set(),
    "archive": {"decode"},
    "capture": {"source", "journal", "decode", "archive"},
    "context": set(),
    "history": {"decode", "archive"},
    "upkeep": {"decode", "archive", "history"},
    "restore": {"decode", "archive", "history", "source"},
    "verify": {"decode", "archive", "history", "restore", "source"},
    "demo": {"source"},
    "cli": {
        "demo",
        "source",
        "journal",
        "decode",
        "archive",
        "capture",
        "history",
        "upkeep",
        "restore",
        "verify",
    },
}
"""For each layer, lowest first, the others that it may import."""

STREAMING = {"waly_cdc.source.stream", "waly_cdc.source.slot"}
"""What reads changes from the server: for capture alone, and for the command line."""

PENDING = "waly_cdc.history.pending"
"""The one reader that may read the journal: it decodes what is not sealed yet."""

APPLICATIONS = "context"
"""For the user's applications: runs in them, on connections of their own."""

IO_MODULES = {"asyncio", "io", "os", "pathlib", "select", "socket", "subprocess", "time", "psycopg"}


@dataclass(frozen=True)
class Module:
    name: str
    layer: str
    imports: frozenset[str]
    lazy: frozenset[str]
    """Those of `imports` that are imported inside of functions or for type checking only."""


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (_target(node.module, alias.name) for alias in node.names)


def _target(module: str, name: str) -> str:
    """What `from module import name` imports: a module of the package, or the module named."""
    path = ROOT.parent.joinpath(*module.split("."), name)
    if module.split(".")[0] == "waly_cdc" and (path.is_dir() or path.with_suffix(".py").exists()):
        return f"{module}.{name}"
    return module


def _read(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(["waly_cdc", *parts]).removesuffix(".__init__")
    tree = ast.parse(path.read_text(), str(path))
    eager = {target for node in tree.body if _runs(node) for target in _imported(node)}
    every = frozenset(_imported(tree))
    return Module(name, parts[0], every, every - eager)


def _runs(node: ast.stmt) -> bool:
    """Whether imports in a statement of a module happen when the module is imported."""
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Try)


MODULES = [_read(path) for path in sorted(ROOT.rglob("*.py")) if "queries" not in path.parts]


def _layer(module: str) -> str:
    return [*module.split("."), "waly_cdc"][1]


def _own(module: Module) -> set[str]:
    return {name for name in module.imports if name.split(".")[0] == "waly_cdc"}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_a_module_imports_only_lower_layers(module: Module) -> None:
    allowed = VOCABULARY | MAY_IMPORT.get(module.layer, set()) | {module.layer, "waly_cdc"}
    if module.name == "waly_cdc.__main__":
        allowed = {"cli"}
    if module.name == PENDING:
        allowed |= {"journal"}
    assert not {name for name in _own(module) if _layer(name) not in allowed}


def test_every_folder_and_module_is_in_a_layer() -> None:
    known = VOCABULARY | MAY_IMPORT.keys() | {"__init__", "__main__"}
    assert {module.layer for module in MODULES} <= known


def test_no_two_layers_import_each_other() -> None:
    reached: dict[str, set[str]] = {}
    for layer, lower in MAY_IMPORT.items():
        assert lower <= reached.keys(), f"{layer} stands above what it may import"
        reached[layer] = lower


def test_the_vocabulary_is_standard_library_and_itself_when_imported() -> None:
    for module in MODULES:
        if module.layer in VOCABULARY:
            eager = module.imports - module.lazy
            foreign = {name.split(".")[0] for name in eager} - sys.stdlib_module_names
            assert foreign <= {"waly_cdc"}, module.name


def test_decode_does_no_input_or_output_and_reads_no_clock() -> None:
    for module in MODULES:
        if module.layer == "decode":
            assert not {name.split(".")[0] for name in module.imports} & IO_MODULES, module.name


def test_source_alone_and_what_stands_on_it_speaks_to_a_server() -> None:
    above = {layer for layer, lower in MAY_IMPORT.items() if "source" in lower}
    above |= {"source", APPLICATIONS}
    for module in MODULES:
        if any(name.split(".")[0] == "psycopg" for name in module.imports - module.lazy):
            assert module.layer in above, module.name


def test_what_applications_import_is_light() -> None:
    (core,) = (module for module in MODULES if module.name == "waly_cdc.context")
    assert {name.split(".")[0] for name in core.imports} <= sys.stdlib_module_names


def test_readers_do_not_touch_the_stream() -> None:
    for module in MODULES:
        if module.layer in ("history", "upkeep", "restore", "verify"):
            assert not module.imports & STREAMING, module.name
