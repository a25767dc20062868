"""Which room may import which, and that every module says what it is and what it offers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS = [
    "errors",
    "text",
    "config",
    "data",
    "model",
    "objectives",
    "privacy",
    "training",
    "adaptation",
    "aggregation",
    "evaluation",
    "explore",
    "recommender",
    "secure",
    "merchant",
    "deploy",
    "export",
    "report",
    "wire",
    "serve",
    "tracking",
    "cli",
]
FEDREC = {f"fedrec.{room}" for room in ROOMS}
LIBRARY = FEDREC - {"fedrec.cli", "fedrec.serve", "fedrec.tracking"} | {"fedrec"}
AWAY = LIBRARY - {"fedrec.recommender", "fedrec.explore", "fedrec.export"}
"""For what sends messages or sees a gradient: a merchant's own layer, and what it learned by trying, stay at the merchant."""


def rooms(*names: str) -> set[str]:
    return {f"fedrec.{name}" for name in names}


MAY_IMPORT = {
    "fedrec": rooms("recommender"),
    "fedrec.errors": set(),
    "fedrec.text": set(),
    "fedrec.config": rooms("errors"),
    "fedrec.data": rooms("privacy", "config", "errors", "text"),
    "fedrec.model": rooms("data", "config", "errors"),
    "fedrec.privacy": rooms("config", "errors"),
    "fedrec.objectives": rooms("data", "model", "config", "errors"),
    "fedrec.training": rooms("objectives", "model", "privacy", "data", "config", "errors", "text"),
    "fedrec.adaptation": rooms("model", "data", "config", "errors"),
    "fedrec.aggregation": rooms("model", "config", "errors"),
    "fedrec.evaluation": rooms("data", "model", "config", "errors"),
    "fedrec.explore": rooms("errors"),
    "fedrec.recommender": rooms("data", "model", "evaluation", "explore", "merchant", "config", "errors", "text"),
    "fedrec.export": rooms("recommender", "merchant", "evaluation", "model", "data", "config", "errors"),
    "fedrec.secure": rooms("config", "errors"),
    "fedrec.merchant": rooms("data", "privacy", "config", "errors", "text"),
    "fedrec.deploy": rooms("merchant", "secure", "data", "privacy", "config", "errors"),
    "fedrec.report": rooms("config", "errors", "privacy", "merchant", "text"),
    "fedrec.wire": rooms("model", "secure", "privacy", "training", "config", "errors", "text"),
    "fedrec.serve": {"fedrec"}
    | rooms("recommender", "data", "model", "merchant", "report", "privacy", "config", "errors", "text"),
    "fedrec.tracking": rooms("config", "errors"),
    "fedrec.cli": FEDREC | {"fedrec", "server", "clients", "simulations"},
    "server": AWAY,
    "clients": AWAY,
    "simulations": LIBRARY | {"server", "clients"},
}
FLOWER_ALLOWED = {"fedrec/wire/records.py", "fedrec/wire/messages.py", "fedrec/cli/terminal.py"}
APPS = {"server/app.py", "clients/app.py"}

MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("fedrec", "server", "clients", "simulations")
    for path in (ROOT / folder).rglob("*.py")
)


def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), module)


def dotted(module: str) -> str:
    return module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.Module, package: str) -> Iterator[str]:
    """The dotted names that are imported anywhere in a module, lazily or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            # `from fedrec import wire` is an arrow to fedrec.wire.
            yield from (f"{source}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """The room a dotted name lives in, None for other people's packages."""
    first, _, rest = name.partition(".")
    if first == "fedrec":
        room = f"fedrec.{rest.partition('.')[0]}"
        return room if room in FEDREC else "fedrec"
    return first if first in MAY_IMPORT else None


def package_of(module: str) -> str:
    name = dotted(module)
    return name if module.endswith("__init__.py") else name.rpartition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    room = room_of(dotted(module))
    assert room is not None
    arrows = {target for name in imports(tree_of(module), package_of(module)) if (target := room_of(name))}
    assert arrows - {room} <= MAY_IMPORT[room], f"{module} may not import {sorted(arrows - {room} - MAY_IMPORT[room])}"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("fedrec/")])
def test_only_the_wire_of_fedrec_knows_flower(module: str) -> None:
    uses = [name for name in imports(tree_of(module), package_of(module)) if name.split(".")[0] == "flwr"]
    assert not uses or module in FLOWER_ALLOWED
    if module == "fedrec/cli/terminal.py":
        assert uses == ["flwr"]


def test_fedrec_itself_imports_its_rooms_only_when_asked() -> None:
    at_import = [node for node in tree_of("fedrec/__init__.py").body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in at_import if (getattr(node, "module", None) or "").startswith("fedrec")]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("fedrec.cli.main", ("numpy", "pandas", "torch", "flwr")),
        ("fedrec.deploy.layout", ("torch", "scipy", "opacus", "dp_accounting", "flwr")),
        ("clients.node", ("torch", "opacus")),
    ],
)
def test_what_many_processes_start_with_is_quick_to_import(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(tree_of(module))


def public_names(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            # `A, B = ...` binds two.
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return {name for name in names if not name.startswith("_") or name == "__version__"}


@pytest.mark.parametrize("module", [module for module in MODULES if module not in APPS])
def test_a_module_lists_its_public_names_and_each_is_there(module: str) -> None:
    tree = tree_of(module)
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    assert listed or not public_names(tree)
    if listed:
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        brought = {alias.asname or alias.name for node in froms for alias in node.names}
        assert set(listed[0]) <= public_names(tree) | brought


# The walker itself, on arrows that must be seen.


@pytest.mark.parametrize(
    ("source", "package", "seen"),
    [
        ("import server.app", "fedrec.data", {"server"}),
        ("from fedrec import wire", "fedrec.data", {"fedrec.wire"}),
        ("from fedrec import __version__", "fedrec.data", {"fedrec"}),
        ("from ..privacy import Ledger", "fedrec.data", {"fedrec.privacy"}),
        ("from . import wire", "fedrec", {"fedrec.wire"}),
        ("def f():\n    from clients.app import app", "fedrec.data", {"clients"}),
        ("import numpy", "fedrec.data", set()),
    ],
)
def test_the_walker_sees_an_arrow(source: str, package: str, seen: set[str]) -> None:
    found = {room for name in imports(ast.parse(source), package) if (room := room_of(name))}
    assert found == seen
