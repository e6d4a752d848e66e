"""The house rules a machine can check: names, sizes, reasons, words."""

from __future__ import annotations

import ast
import inspect
import io
import re
import subprocess
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tiermem"

MAX_LINES = 400
MAX_PUBLIC_METHODS = 12
# These carry the verbs of the public contract; every other class must do with fewer methods.
FACES_OF_THE_API = {"Memory", "Reads", "Writes", "AsyncMemory", "Namespace", "AsyncNamespace"}

MODULES = sorted(PACKAGE.rglob("*.py"))
PYTHON = sorted({*MODULES, ROOT / "conftest.py", *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")})
PROSE = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"})


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_module = pytest.mark.parametrize("path", MODULES, ids=_name)
each_source = pytest.mark.parametrize("path", PYTHON, ids=_name)
each_text = pytest.mark.parametrize("path", [*PYTHON, *PROSE], ids=_name)


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(io.StringIO(file.read()).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


# ------------------------------------------------------------------------------------------------------ public names


def _public() -> dict[str, object]:
    tiermem = pytest.importorskip("tiermem")
    if not hasattr(tiermem, "__all__"):
        pytest.skip("tiermem exports nothing yet")
    return {name: getattr(tiermem, name) for name in tiermem.__all__}


def test_all_lists_exactly_the_public_names() -> None:
    exported = _public()
    import tiermem

    present = {
        name
        for name in dir(tiermem)
        if not name.startswith("_") and not inspect.ismodule(getattr(tiermem, name)) and name != "annotations"
    }
    assert present == {name for name in exported if not name.startswith("_")}
    assert len(tiermem.__all__) == len(exported), "a name is listed twice"


def test_public_names_are_documented_and_our_own() -> None:
    for name, value in _public().items():
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        assert value.__module__.partition(".")[0] == "tiermem", f"{name} is defined in {value.__module__}"
        doc = inspect.getdoc(value) or ""
        # Dataclasses and named tuples without one are given their signature for a docstring.
        own = doc and not doc.startswith(f"{name}(")
        assert own, f"{name} has no docstring of its own"


def test_public_methods_are_documented() -> None:
    undocumented = [
        f"{name}.{attribute}"
        for name, value in _public().items()
        if inspect.isclass(value)
        for attribute, member in vars(value).items()
        if not attribute.startswith("_")
        and inspect.isfunction(member)
        and not inspect.getdoc(getattr(value, attribute))
    ]
    assert undocumented == []


def test_the_version_is_the_one_of_the_distribution() -> None:
    _public()
    import tiermem

    assert tiermem.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_importing_is_light(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """No thread, no store, no faiss: an import costs what reading the modules costs."""
    _public()
    done = run_python(
        """
        import os, sys, threading
        opened = []
        def watch(event, args):
            if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
                opened.append(args[0])
        sys.dont_write_bytecode = True
        sys.addaudithook(watch)
        import tiermem
        assert not opened, f"opened for writing: {opened}"
        assert threading.active_count() == 1, threading.enumerate()
        assert "faiss" not in sys.modules, "faiss was imported"
        assert not os.listdir("."), os.listdir(".")
        print("light")
        """
    )
    assert done.stdout.split() == ["light"]


# ------------------------------------------------------------------------------------------------------------- sizes


@each_module
def test_a_module_has_a_docstring_and_at_most_400_lines(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


@each_module
def test_a_class_has_at_most_12_public_methods(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ClassDef) or node.name in FACES_OF_THE_API:
            continue
        methods = {
            item.name
            for item in node.body
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
            and not item.name.startswith(("_", "test_"))
            and not any(isinstance(mark, ast.Name) and mark.id == "property" for mark in item.decorator_list)
        }
        assert len(methods) <= MAX_PUBLIC_METHODS, f"{node.name}: {sorted(methods)}"


# Documented by their owners in spite of the underscore.
UNDERSCORED_BUT_PUBLIC = {
    "_asdict",
    "_exit",
    "_field_defaults",
    "_fields",
    "_is_owned",
    "_get_config",
    "_getframe",
    "_make",
    "_replace",
}


@each_module
def test_private_attributes_stay_private_to_their_file(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used: dict[str, int] = {}
    # Slots are strings; functions, classes and names cover what a class body or a module binds.
    bound = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if own or isinstance(node.ctx, ast.Store):
                bound.add(node.attr)
            elif node.attr.startswith("_") and not node.attr.endswith("__"):
                used.setdefault(node.attr, node.lineno)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    strangers = {name: line for name, line in used.items() if name not in bound | UNDERSCORED_BUT_PUBLIC}
    assert strangers == {}, "private attributes of another file, by line"


# ----------------------------------------------------------------------------------------------------------- reasons

# A suppression, then whatever codes it names, then the reason.
SUPPRESSION = re.compile(
    r"#\s*(?:(?:ruff:\s*)?noqa(?::\s*[A-Z]+\d+(?:[,\s]+[A-Z]+\d+)*)?"
    r"|type:\s*ignore(?:\[[^\]]*\])?"
    r"|mypy:\s*\S+"
    r"|pragma:\s*no\s+(?:cover|branch)"
    r"|fmt:\s*(?:off|skip))"
    r"(?P<reason>[^#]*)"
)


def _unexplained(comment: str) -> bool:
    """A reason is at least two words behind a suppression; one stands for all suppressions of the same line."""
    found = list(SUPPRESSION.finditer(comment))
    tail = comment[found[-1].end("reason") :] if found else ""
    words = [re.findall(r"[^\W\d_]{2,}", match["reason"]) for match in found]
    return bool(found) and all(len(some) < 2 for some in words) and len(re.findall(r"[^\W\d_]{2,}", tail)) < 2


@pytest.mark.parametrize(
    ("comment", "unexplained"),
    [
        ("# noqa: BLE001", True),
        ("# noqa", True),
        ("# noqa: BLE001, S110 - door", True),
        ("# type: ignore[misc]", True),
        ("# type: ignore[misc]  # noqa: S603", True),
        ("# pragma: no cover", True),
        ("# noqa: BLE001 - the door of the program", False),
        ("# type: ignore[misc]  # stubs lack it", False),
        ("# type: ignore[misc]  # noqa: S603 - our own interpreter", False),
        ("# pragma: no cover - only on other systems", False),
        ("# a plain comment", False),
    ],
)
def test_a_reason_is_recognised(comment: str, unexplained: bool) -> None:
    assert _unexplained(comment) is unexplained


@each_source
def test_every_suppression_has_a_reason(path: Path) -> None:
    assert [(line, comment) for line, comment in _comments(path) if _unexplained(comment)] == []


def test_every_ignore_in_the_configuration_has_a_reason() -> None:
    inside, bare = False, []
    for number, line in enumerate((ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r'(ignore|"\S*(\*\*|\.py)\S*") = \[$', line):
            inside = True
        elif line == "]":
            inside = False
        elif inside and not re.search(r"# .*\w\W+\w", line):
            bare.append((number, line))
    assert bare == []


# ------------------------------------------------------------------------------------------------------------- words

# Spelled apart, so that this file passes its own test.
UNFINISHED = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
LOCAL_PATH = re.compile(r"(?<![\w.*~/-])/" + r"(?:wo" + r"rk|ho" + r"me|ro" + r"ot)(?=[/\s\"'`)]|$)")


@each_text
def test_nothing_unfinished_and_no_path_of_this_machine(path: Path) -> None:
    found = [
        (number, line.strip())
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line) or LOCAL_PATH.search(line)
    ]
    assert found == []
