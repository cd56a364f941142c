"""The rules of the house: links, directions between the parts, sizes, and what a tracked file may contain."""

import ast
import contextlib
import graphlib
import hashlib
import importlib
import io
import itertools
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

from ppma.cli import COMMANDS
from ppma.config.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("ppma", "loaders", "kernels", "slurm")
LINKED = ("loaders", "kernels", "slurm")

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_NESTING = 600, 80, 4
MAX_TRACKED_BYTES = 5 * 2**20

MAY_IMPORT = {
    "loaders": {"torch", "nvidia", "av", "ffcv", "numpy", "numba", "cv2", "pyarrow", "filelock", "tomlkit", "fsspec",
                "aiohttp"},
    "kernels": {"torch", "triton", "einops"},
}  # fmt: skip
"""Third-party packages of the two lower parts (see CONTRIBUTING.md)."""

FLOORS = (
    {"kernels", "config"},
    {"common", "models", "cli"},
    {"loaders"},
    {"data", "synthetic", "training"},
    {"transfer", "privacy"},
    {"inference", "phases", "compile_check"},
    {"study", "benchmarks", "doctor"},
    {"slurm"},
)
"""The floors of CONTRIBUTING.md, lowest first: a room imports only from lower floors, and never from its own floor."""


@cache
def tracked() -> tuple[Path, ...]:
    """Files under version control, links left out; where there is no git (an unpacked archive) every file of the parts."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [ROOT / name for name in done.stdout.split("\0") if name]
    if done.returncode:
        names = [p for part in (*PARTS, "tests", "benchmarks") for p in (ROOT / part).rglob("*") if p.suffix != ".pyc"]
    return tuple(p for p in names if p.is_file() and not p.is_symlink())


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources(*folders: str) -> list[Path]:
    return [p for p in tracked() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in folders]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path: Path) -> str:
    """The name under which a file is imported: ppma/config/loader.py is ppma.config.loader."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in LINKED:
        parts.insert(0, "ppma")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Every module that a file imports; `from a import b` counts as a.b, so that submodules are seen."""
    found = set()
    nodes = tree(path).body if top_level_only else list(ast.walk(tree(path)))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import; write the full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


# ---------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("name", LINKED)
def test_links_are_links(name):
    link = ROOT / "ppma" / name
    message = (
        f"ppma/{name} is not a symbolic link to ../{name}: a zip download turns links into plain files. "
        f"Clone with git, or: ln -sfn ../{name} ppma/{name}"
    )
    assert link.is_symlink() and link.readlink() == Path("..") / name, message


@pytest.mark.parametrize("name", LINKED)
def test_parts_are_no_top_level_modules(name):
    """Installed as `kernels`, ours would destroy Hugging Face's package of that name."""
    code = f"import importlib.util, sys; spec = importlib.util.find_spec({name!r}); sys.exit(spec.origin if spec and spec.origin else 0)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert str(ROOT) not in done.stderr, f"{name} is importable as a top-level module: {done.stderr}"
    files = metadata.files("ppma") or []
    assert not [f for f in files if f.parts[0] == name]


def test_every_package_is_listed_for_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {dotted(p) for p in sources(*PARTS) if p.name == "__init__.py"}
    assert listed == there


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_parts_as_files(tmp_path):
    """Built from the sdist of a fresh clone, so that both are seen: the links must have become folders, and nothing may lie at the top."""
    clone, unpacked = tmp_path / "clone", tmp_path / "unpacked"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(unpacked)], check=True)
    assert {p.name for p in unpacked.iterdir()} == {"ppma", f"{wheel.name.split('-py3')[0]}.dist-info"}
    for part in PARTS:
        for path in filter(Path.is_file, (clone / part).rglob("*")):
            if path.suffix not in (".py", ".toml") and path.parent.name not in ("assets", "templates"):
                continue
            inside = path.relative_to(clone) if part == "ppma" else Path("ppma") / path.relative_to(clone)
            assert (unpacked / inside).read_bytes() == path.read_bytes(), inside


# ----------------------------------------------------------------------------------------------------------- directions


def room(module: str) -> str | None:
    """Return the room of a module, or None for the face of the package (`ppma`, `ppma.__main__`) and foreign modules."""
    parts = module.split(".")
    if parts[0] == "benchmarks":
        return "benchmarks"
    if parts[0] != "ppma" or len(parts) < 2 or parts[1].startswith("__"):
        return None
    return parts[1]


@cache
def import_graph() -> dict[str, set[str]]:
    """Return every product module with the product modules it imports, at the top or inside a function."""
    modules = {dotted(path): path for path in sources(*PARTS, "benchmarks")}

    def known(name: str) -> str:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    return {module: {known(name) for name in imports(path)} - {"", module} for module, path in modules.items()}


def test_every_room_has_a_floor():
    assert {found for module in import_graph() if (found := room(module))} == set().union(*FLOORS)


def test_a_room_imports_only_rooms_of_lower_floors():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    wrong = {
        f"{module} imports {other}"
        for module, others in import_graph().items()
        for other in others
        if room(module) and room(other) not in (None, room(module)) and floor[room(other)] >= floor[room(module)]
    }
    assert not wrong


def test_modules_import_each_other_in_no_circle():
    graph = {
        module: {other for other in others if not module.startswith(f"{other}.")}  # a package's own __init__
        for module, others in import_graph().items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_the_lowest_rooms_need_few_libraries():
    for path in sources(*MAY_IMPORT):
        foreign = {module.split(".")[0] for module in imports(path)} - {"ppma"} - sys.stdlib_module_names
        assert foreign <= MAY_IMPORT[relative(path).split("/")[0]], relative(path)


def test_slurm_imports_the_training_inside_the_job_only():
    for path in sources("slurm"):
        for module in imports(path, top_level_only=True):
            heavy = any(within(module, package) for package in ("ppma.phases", "ppma.transfer.evaluate", "torch"))
            assert not heavy, f"{relative(path)} imports {module} when it is loaded; a login node need not"


def test_nothing_but_tests_imports_benchmarks():
    for path in sources(*PARTS):
        assert not any(within(m, "benchmarks") or within(m, "tests") for m in imports(path)), relative(path)


def test_configs_and_the_loader_package_import_no_torch():
    """Configs are read on login nodes, `ppma.loaders` in every worker process."""
    configs = [p for p in sources("ppma") if room(dotted(p)) == "config"]
    modules = sorted({dotted(p) for p in configs} | {"ppma.loaders"})
    code = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'nvidia.dali', 'av') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"one of {modules} pulls in {done.stdout}"


def test_only_distributed_reads_the_rank():
    """slurm/job.py writes these variables for it."""
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    for path in sources(*PARTS):
        if relative(path) not in ("ppma/training/distributed.py", "slurm/job.py"):
            found = {n.value for n in ast.walk(tree(path)) if isinstance(n, ast.Constant) and n.value in names}
            assert not found, f"{relative(path)} names {found}: ask ppma.training.distributed"


# --------------------------------------------------------------------------------------------------------------- sizes

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)


def nesting(node: ast.AST) -> int:
    """Depth of blocks inside a function; an elif is no deeper than its if."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            continue
        chained = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        deepest = max(deepest, nesting(child) + (isinstance(child, BLOCKS) and not chained))
    return deepest


def test_sizes():
    wrong = []
    for path in sources(*PARTS, "benchmarks"):
        functions = [node for node in ast.walk(tree(path)) if isinstance(node, FUNCTIONS)]
        too_long = [n for n in functions if n.end_lineno - n.lineno >= MAX_FUNCTION_LINES or nesting(n) > MAX_NESTING]
        wrong += [f"{relative(path)}:{node.lineno} {node.name} is too long, or nests too deep" for node in too_long]
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_FILE_LINES:
            wrong.append(f"{relative(path)} is too long")
    assert not wrong


def test_public_names_are_documented():
    wrong = []
    for path in sources(*PARTS):
        named = [node for node in tree(path).body if isinstance(node, (*FUNCTIONS, ast.ClassDef))]
        public = [node for node in named if not node.name.startswith("_") and not ast.get_docstring(node)]
        wrong += [f"{relative(path)}:{node.lineno} {node.name}" for node in public]
        wrong += [] if ast.get_docstring(tree(path)) else [relative(path)]
    assert not wrong


def test_no_exception_is_swallowed():
    for path in sources(*PARTS):
        for node in (node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)):
            broad = node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
            # a future raises its exception again for whoever waits for it
            raises = any(isinstance(n, ast.Raise) or getattr(n, "attr", "") == "set_exception" for n in ast.walk(node))
            assert not broad or raises, f"{relative(path)}:{node.lineno} catches everything and goes on"


# --------------------------------------------------------------------------------------------------------- tracked files

LEFTOVER = re.compile(r"\b(TO(?:DO)|FIX(?:ME)|X{3})\b")
PRIVATE = re.compile(  # with a group in each word, so that this file has none of them
    r"(?<![\w.])/wo(?:rk)/|/ro(?:ot)/|py(?:pi)\.org|python(?:hosted)|download\.py(?:torch)\.org/whl|index-(?:url)|find-(?:links)"
)
FILMS = {".mp4", ".avi", ".mkv", ".webm", ".mov", ".wmv"}


@cache
def text(path: Path) -> str:
    data = path.read_bytes()
    return "" if b"\0" in data[:4096] else data.decode("utf-8")


def test_tracked_text_holds_no_leftovers():
    for path in tracked():
        for number, line in enumerate(text(path).splitlines(), 1):
            assert not LEFTOVER.search(line), f"{relative(path)}:{number}: {line.strip()}"
            assert not PRIVATE.search(line), f"{relative(path)}:{number} names a machine or a registry: {line.strip()}"


def test_no_large_file_and_no_film_is_tracked(real_videos):
    ours = {hashlib.sha256(p.read_bytes()).hexdigest(): relative(p) for p in tracked()}
    assert not [relative(p) for p in tracked() if p.stat().st_size > MAX_TRACKED_BYTES]
    assert not [relative(p) for p in tracked() if p.suffix.lower() in FILMS]
    if real_videos is not None:
        theirs = [p for p in real_videos.rglob("*") if p.is_file() and p.stat().st_size]
        assert not [ours[h] for p in theirs if (h := hashlib.sha256(p.read_bytes()).hexdigest()) in ours]


DOCUMENTS = sorted(p for p in tracked() if p.suffix == ".md")


def test_links_in_documents_exist():
    for path in DOCUMENTS:
        prose = re.sub(r"```.*?```", "", text(path), flags=re.DOTALL)
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)[^)\s]*\)", prose):
            assert (path.parent / target).exists(), f"{relative(path)} links to {target}"


def shell_lines(path: Path) -> list[str]:
    """Commands in the fenced blocks of a document, continued lines joined, comments and prompts taken off."""
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", text(path), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip().removeprefix("$ ") for line in lines]


@cache
def help_of(module: str, *argv: str) -> str:
    """Return the help text of a command, of a recipe all of it; tyro exits with SystemExit, other commands return."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            flag = "--help-all" if RECIPES.keys() & argv[:1] else "--help"
            code = importlib.import_module(module).main([*argv, flag])
        except SystemExit as stop:
            code = stop.code
    assert not code, argv
    return printed.getvalue()


def offered_by(words: list[str]) -> str:
    """Help that must name every flag of a documented command; the launcher hands flags on to the recipe."""
    verb, *positional = itertools.takewhile(lambda word: not word.startswith("-"), words[1:])
    if words[0] == "launch":
        behind = ["ppma", verb] if verb in COMMANDS else ["ppma", "train", "finetune"]
        return help_of("ppma.slurm.launch", verb, *positional) + offered_by(behind)
    return help_of(COMMANDS[verb].module, *positional)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_commands_in_documents_exist(path):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in shell_lines(path):
        line = re.sub(r"^(\S*/)?python[\d.]* slurm/launch\.py", "launch", line)
        words = re.sub(r"^(\S*/)?(python[\d.]* -m )?ppma\b", "ppma", line).split()
        if words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets, f"{relative(path)}: {line}"
        if words[:1] in (["ppma"], ["launch"]) and len(words) > 1 and not words[1].startswith("-"):
            assert words[0] == "launch" or words[1] in COMMANDS, f"{relative(path)}: {line}"
            offered = offered_by(words)
            flags = [word.split("=")[0] for word in words[2:] if word.startswith("--")]
            assert all(flag in offered for flag in flags), f"{relative(path)}: {line}"
