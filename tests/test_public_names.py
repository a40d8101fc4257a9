import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import cartok

SOURCE = Path(cartok.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public_definitions(node, prefix=""):
    """Every class, function and method that a user may call, as (name, syntax)."""
    for child in node.body:
        if isinstance(child, ast.If | ast.Try):
            yield from public_definitions(child, prefix)
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield f"{prefix}{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child, f"{prefix}{child.name}.")


def first_line_of(node):
    return (ast.get_docstring(node) or "").split("\n\n")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_public_name_says_in_a_sentence_what_it_gives(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = {"the module": first_line_of(tree)}
    lines |= {name: first_line_of(node) for name, node in public_definitions(tree)}
    assert not [name for name, line in lines.items() if not line.strip()]
    assert not [name for name, line in lines.items() if line.rstrip()[-1] not in ".:?!"]


def test_the_search_for_public_names_finds_methods_and_skips_private_ones():
    text = (
        "def one():\n    def inside(): ...\n"
        "class Two:\n    def three(self): ...\n    def _four(self): ...\n"
        "    def __len__(self): ...\n"
        "class _Five:\n    def six(self): ...\n"
    )
    assert [name for name, _ in public_definitions(ast.parse(text))] == ["one", "Two", "Two.three"]


def test_the_package_offers_what_its_docstring_shows():
    assert set(cartok.__all__) == {*cartok._HOMES, "__version__"}
    for name, home in cartok._HOMES.items():
        offered = getattr(cartok, name)
        assert offered is getattr(import_module(home), name)
        assert inspect.isclass(offered)
        assert offered.__module__ == home
        assert name in cartok.__doc__


def test_a_type_checker_sees_the_names_that_python_looks_up():
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == cartok._HOMES


def test_a_name_that_is_not_offered_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'cartok' has no attribute 'Tokeniser'"):
        cartok.Tokeniser  # noqa: B018
    with pytest.raises(ImportError):
        from cartok import Tokeniser  # noqa: F401


def test_the_version_is_that_of_the_project():
    text = (SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{cartok.__version__}"' in text
