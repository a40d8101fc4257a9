"""The house rules: who may import whom, what touches disk, clock and network, what imports do.

Everything here reads the source as syntax; only the last tests import the package, in processes of
their own. A new room is placed in ``ROOMS`` and given its line in ``MAY_IMPORT``.
"""

import ast
import graphlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import cartok

SOURCE = Path(cartok.__file__).parent

# A picture's way through the system, top to bottom.
ROOMS = ["core", "layers", "data", "frozen", "tokenizer", "prior", "sampling", "metrics", "scaling",
         "interop", "recipes", "lab", "verbs", "__main__"]  # fmt: skip

MAY_IMPORT = {
    "core": [],
    "layers": ["core"],
    "data": ["core"],
    "frozen": ["core"],
    "tokenizer": ["core", "layers", "data", "frozen"],
    "prior": ["core", "layers", "data"],  # any tokenizer's tokens, so never the tokenizer
    "sampling": ["core", "layers", "tokenizer", "prior"],
    "metrics": ["core", "data", "frozen"],  # anyone's pictures, so no network of ours
    "scaling": ["core"],  # records alone, so it runs on a laptop
    "interop": ROOMS[:9],  # what others publish, in and out; nothing but the verbs builds on it
    "recipes": ROOMS[:9],
    "lab": [*ROOMS[:9], "recipes"],
    "verbs": ROOMS[:12],
    "__main__": [room for room in ROOMS[:13] if room != "lab"],  # through the verbs
}

# Inside a room what does things imports what things are, never the other way round.
DOERS = {"train", "extract", "suite", "report"}

# Pure networks: tensors in, tensors out.
NETWORKS = ["layers", "tokenizer.codec", "tokenizer.blocks", "tokenizer.fused",
            "tokenizer.quantize", "tokenizer.causal", "tokenizer.forms", "tokenizer.order",
            "tokenizer.controls", "tokenizer.alignment", "tokenizer.critic",
            "tokenizer.losses", "tokenizer.model", "prior.model",
            "sampling.guidance"]  # fmt: skip


@dataclass(frozen=True)
class Module:
    """A file of the package, as syntax."""

    name: str
    """Without the package's: ``tokenizer.model``, or '' for the package itself."""
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


def read(path: Path) -> Module:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8")))


MODULES = {module.name: module for module in map(read, sorted(SOURCE.rglob("*.py")))}


def imports_of(module: Module) -> set[str]:
    """The package's modules that a module imports, anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "cartok"}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module.name}: an import is absolute"
            if (node.module or "").split(".")[0] == "cartok":
                found |= {target_of(node.module, alias.name) for alias in node.names}
        elif is_text(node) and re.fullmatch(r"cartok(\.\w+)+", node.value):
            found.add(node.value)  # for import_module, and nothing else
    return {name.removeprefix("cartok").removeprefix(".") for name in found} - {module.name}


def target_of(package: str, name: str) -> str:
    """A name taken from a package is its submodule if there is one, else the package's own."""
    whole = f"{package}.{name}"
    return whole if whole.removeprefix("cartok.") in MODULES else package


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def docstrings_of(tree: ast.Module) -> set[int]:
    """The identities of all strings that stand alone: docstrings, and notes under a field."""
    alone = (node for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {id(node.value) for node in alone if is_text(node.value)}


def texts_of(module: Module) -> list[str]:
    """The strings of a module that are values, not documentation."""
    notes = docstrings_of(module.tree)
    return [n.value for n in ast.walk(module.tree) if is_text(n) and id(n) not in notes]


def names_of(module: Module) -> set[str]:
    """Every dotted name a module uses, each as ``a.b.c``, and every module it imports."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute | ast.Name):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def inside(name: str, places: list[str]) -> bool:
    """True if a module is one of some places, or below one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def listed(faults) -> str:
    return "\n" + "\n".join(sorted(faults))


# ------------------------------------------------------------------ who imports whom


def test_every_room_has_its_place():
    rooms = {module.room for module in MODULES.values()} - {""}
    assert rooms <= set(ROOMS), "place the new room in ROOMS and MAY_IMPORT"
    assert list(MAY_IMPORT) == ROOMS


def test_rooms_may_import_only_from_above():
    for number, room in enumerate(ROOMS):
        assert set(MAY_IMPORT[room]) <= set(ROOMS[:number]), room


def test_rooms_import_only_what_their_line_of_the_table_says():
    faults = [
        f"{module.name} imports {target}"
        for module in MODULES.values()
        if module.name
        for target in imports_of(module)
        if target and target.split(".")[0] not in [*MAY_IMPORT[module.room], module.room]
    ]
    assert not faults, listed(faults)


def test_the_package_itself_is_asked_for_its_version_alone():
    faults = [
        f"{module.name} takes {alias.name} from the package"
        for module in MODULES.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "cartok"
        for alias in node.names
        if alias.name != "__version__" and alias.name not in MODULES
    ]
    assert not faults, listed(faults)


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imports_of(module) for name, module in MODULES.items() if name}
    graph = {name: {t for t in targets if t in graph} for name, targets in graph.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_things_never_import_doers():
    faults = [
        f"{module.name} imports {target}"
        for module in MODULES.values()
        if module.name.split(".")[-1] not in DOERS
        for target in imports_of(module)
        if target.split(".")[0] == module.room and target.split(".")[-1] in DOERS
    ]
    assert not faults, listed(faults)


def test_the_search_for_imports_sees_every_kind():
    text = (
        "import cartok.core.run\n"
        "from cartok.data import images\n"
        "def later():\n"
        "    from cartok import verbs, __version__\n"
        "    import_module('cartok.lab.demo')\n"
    )
    found = imports_of(Module("tokenizer.x", Path("x.py"), ast.parse(text)))
    assert found == {"core.run", "data.images", "verbs", "", "lab.demo"}


# ------------------------------------------------------------------ who touches the world


def test_ranks_talk_in_two_modules_alone():
    faults = [
        name
        for name, module in MODULES.items()
        if name not in ("core.parallel", "core.checkpoint")
        and any("torch.distributed" in used for used in names_of(module))
    ]
    assert not faults, listed(faults)


def test_networks_touch_neither_disk_nor_screen_nor_environment_nor_rank():
    forbidden = re.compile(
        r"(print|open|input)|(os|sys|io|time|logging|socket|subprocess|shutil|warnings)(\..*)?"
        r"|cartok\.core\.(parallel|run|loop|files|progress|trackers)(\..*)?"
        r"|torch\.(save|load|hub|distributed)(\..*)?"
        r"|.*\.(environ|read_text|write_text|read_bytes|write_bytes|mkdir|unlink|get_rank)"
    )
    networks = [module for name, module in MODULES.items() if inside(name, NETWORKS)]
    assert len(networks) >= len(NETWORKS)
    faults = [
        f"{module.name} uses {used}"
        for module in networks
        for used in names_of(module)
        if forbidden.fullmatch(used)
    ]
    assert not faults, listed(faults)


def test_only_the_command_line_prints():
    faults = [
        name
        for name, module in MODULES.items()
        if module.room not in ("verbs", "__main__") and "print" in names_of(module)
    ]
    assert not faults, listed(faults)


def test_the_clock_is_read_where_time_is_told_to_people():
    readers = ["core.clock", "core.ahead", "core.run", "core.progress", "lab"]
    faults = [
        name
        for name, module in MODULES.items()
        if not inside(name, readers)
        and {"time", "datetime", "time.time", "time.monotonic", "time.perf_counter"}
        & names_of(module)
    ]
    assert not faults, listed(faults)


def test_the_environment_is_touched_to_join_the_ranks_and_to_start_alone():
    faults = [
        name
        for name, module in MODULES.items()
        if name not in ("core.parallel", "__main__")
        and {"os.environ", "os.getenv"} & names_of(module)
    ]
    assert not faults, listed(faults)


def test_no_randomness_but_torchs_and_numpys_generators():
    """The states of ``random`` and of numpy's global generator are not saved with a training."""
    old = re.compile(r"random(\..*)?|(np|numpy)\.random\.(?!default_rng|Generator|PCG64|Philox)\w+")
    faults = [
        f"{name} uses {used}"
        for name, module in MODULES.items()
        for used in names_of(module)
        if old.fullmatch(used)
    ]
    assert not faults, listed(faults)


# ------------------------------------------------------------------ constants


# Holds the addresses that weights are published at, each with its file's hash.
ADDRESS_BOOK = "frozen.weights"


def test_no_machine_is_named():
    machine = (
        r"(?<![\w.])/(home|root|work|mnt|data|usr|opt|Users|private|tmp|var|scratch|srv|nfs)/"
        r"|\blocalhost\b|\b127\.0\.0\.1\b|\b[\w-]+\.(internal|local|lan)\b"
    )
    named = re.compile(machine + r"|https?://(?!www\.w3\.org/)")
    named_in = {ADDRESS_BOOK: re.compile(machine + r"|http://")}
    faults = [
        f"{name}: {text[:60]!r}"
        for name, module in MODULES.items()
        for text in texts_of(module)
        if named_in.get(name, named).search(text)
    ]
    assert not faults, listed(faults)


def test_data_sets_are_named_in_recipes_alone():
    """And in the names of files and of protocols that others publish."""
    faults = []
    for name, module in MODULES.items():
        numbers = {n.value for n in ast.walk(module.tree) if isinstance(n, ast.Constant)}
        words = " ".join([*texts_of(module), *names_of(module)]).lower()
        may_name = module.room == "recipes" or name in ("interop.published", "metrics.presets")
        if not may_name and (1281167 in numbers or "imagenet" in words):
            faults.append(name)
    assert not faults, listed(faults)


def test_no_module_is_named_after_nothing():
    vague = {"utils", "util", "helpers", "misc", "common", "manager", "tools", "stuff"}
    assert not [name for name in MODULES if name.split(".")[-1] in vague]


def test_no_file_is_longer_than_a_person_reads():
    lengths = {
        str(path.relative_to(SOURCE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCE.rglob("*.py")
    }
    assert not {path: length for path, length in lengths.items() if length > 320}


# ------------------------------------------------------------------ what importing does


def answer_of(program: str, folder: Path) -> dict:
    """What a program in a new interpreter says on its last line, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


IMPORT_ALL = """
import importlib, json, logging, os, random, signal, sys, threading
import numpy as np
import rich.console  # draws numbers for its styles from random
import torch

def state():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "random": str(random.getstate()),
        "threads": torch.get_num_threads(),
        "running": sorted(thread.name for thread in threading.enumerate()),
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "exact": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
                  torch.get_float32_matmul_precision()],
        "environment": dict(os.environ),
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)],
        "handlers": len(logging.getLogger().handlers),
        "files": sorted(os.listdir(".")),
    }

before = state()
for name in %s:
    importlib.import_module(name)
after = state()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""


def test_importing_every_module_prints_nothing_and_changes_nothing(tmp_path):
    names = [f"cartok.{name}" for name in MODULES if name]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL % names],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


HEAVY = ("torch", "numpy", "scipy", "pydantic", "rich", "tyro", "PIL", "matplotlib")


@pytest.mark.parametrize(
    "program",
    [
        "import cartok; cartok.__version__",
        "import cartok.__main__",
        "from cartok.__main__ import main; assert main(['--help']) == 0",
        "from cartok.__main__ import main; assert main([]) == 0",
        "from cartok.__main__ import main; assert main(['--version']) == 0",
        "from cartok.__main__ import main; assert main(['smaple']) == 2",
    ],
)
def test_help_and_version_answer_before_anything_heavy_is_imported(program, tmp_path):
    ending = f"import json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    assert answer_of(f"{program}\nprint()\n{ending}", tmp_path) == []


def test_the_package_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cartok", "--help"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert "usage: cartok VERB" in done.stdout
    assert not list(tmp_path.iterdir())


def imports_from_below(name: str) -> set[str]:
    """The names that a package takes from its own modules."""
    taken = [node for node in MODULES[name].tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in taken for alias in node.names}


def test_every_verb_has_its_function_and_its_line_of_help(capsys):
    from cartok.__main__ import VERBS, main

    defined = imports_from_below("verbs")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in VERBS:
        assert verb.function in defined
        assert f"{verb.name} " in shown
        assert verb.summary in shown
