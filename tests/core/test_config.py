import dataclasses
import json
import math
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Discriminator, TypeAdapter, ValidationError

from cartok.core.config import (
    ConfigError,
    config,
    config_of,
    dict_of,
    digest_of,
    explain,
    nearest,
    read_config,
)


@config
class Leaf:
    width: int = 3
    rate: float = 0.5
    kind: Literal["plain", "fancy"] = "plain"

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be at least 1, but is {self.width}")


@config
class Tree:
    name: str
    leaf: Leaf = Leaf()
    leaves: tuple[Leaf, ...] = ()
    spare: Leaf | None = None
    sizes: tuple[int, int] = (1, 2)
    flag: bool = False


finite = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.builds(
    Leaf, width=st.integers(1, 10**9), rate=finite, kind=st.sampled_from(["plain", "fancy"])
)
trees = st.builds(
    Tree,
    name=st.text(st.characters(codec="utf-8")),
    leaf=leaves,
    leaves=st.lists(leaves, max_size=3).map(tuple),
    spare=st.none() | leaves,
    sizes=st.tuples(st.integers(), st.integers()),
    flag=st.booleans(),
)


def shuffled(plain):
    """The same JSON value with the keys of every object in another order."""
    if isinstance(plain, dict):
        return {key: shuffled(plain[key]) for key in reversed(plain)}
    return [shuffled(part) for part in plain] if isinstance(plain, list) else plain


@given(trees)
def test_json_and_back_gives_an_equal_config_of_equal_digest(tree):
    plain = json.loads(json.dumps(dict_of(tree), allow_nan=False))
    again = config_of(Tree, plain)
    assert again == tree
    assert digest_of(again) == digest_of(tree)


@given(trees)
def test_the_digest_is_that_of_the_content_whatever_the_order_of_keys(tree):
    plain = dict_of(tree)
    assert digest_of(shuffled(plain)) == digest_of(plain) == digest_of(tree)
    assert digest_of(config_of(Tree, shuffled(plain))) == digest_of(tree)


def test_the_digest_is_stable_over_versions_and_machines():
    assert digest_of(Tree(name="oak")) == "c074ff5aabd002ca"


@given(trees, trees)
def test_configs_that_differ_have_digests_that_differ(one, other):
    assert (digest_of(one) == digest_of(other)) == (dict_of(one) == dict_of(other))


def test_a_whole_number_for_a_rate_gives_the_same_digest():
    assert digest_of(Leaf(rate=1)) == digest_of(Leaf(rate=1.0))


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"name": "a", "leef": {}}, "unknown key 'leef'; did you mean 'leaf'?"),
        ({"name": "a", "leaf": {"witdh": 3}}, "'leaf.witdh'; did you mean 'leaf.width'?"),
        ({"name": "a", "spare": {"witdh": 3}}, "'spare.witdh'; did you mean 'spare.width'?"),
        ({"name": "a", "leaves": [{}, {"witdh": 3}]}, "'leaves.1.witdh'; did you mean "),
        ({"name": "a", "zzz": 1}, "choose one of: name, leaf, leaves, spare, sizes, flag"),
        ({}, "the key 'name' is missing"),
    ],
)
def test_an_unknown_or_missing_key_is_refused_in_one_line_with_the_nearest(plain, said):
    with pytest.raises(ConfigError) as refusal:
        config_of(Tree, plain)
    assert said in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"name": 3}, "'name'"),
        ({"name": "a", "leaf": {"width": "many"}}, "'leaf.width'"),
        ({"name": "a", "leaf": {"width": 3.5}}, "'leaf.width'"),
        ({"name": "a", "leaf": {"width": None}}, "'leaf.width'"),
        ({"name": "a", "leaf": {"width": 0}}, "'leaf': width must be at least 1, but is 0"),
        ({"name": "a", "leaf": {"rate": math.nan}}, "'leaf.rate'"),
        ({"name": "a", "leaf": {"rate": math.inf}}, "'leaf.rate'"),
        ({"name": "a", "leaf": {"kind": "odd"}}, "'plain' or 'fancy', but got 'odd'"),
        ({"name": "a", "leaf": 7}, "'leaf'"),
        ({"name": "a", "sizes": [1]}, "'sizes.1"),
        ({"name": "a", "flag": "perhaps"}, "'flag'"),
        ([1, 2], "Tree"),
        ("oak", "Tree"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_the_key(plain, said):
    with pytest.raises(ConfigError) as refusal:
        config_of(Tree, plain)
    assert said in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@config
class Fern:
    kind: Literal["fern"] = "fern"
    fronds: int = 4


@config
class Moss:
    kind: Literal["moss"] = "moss"
    depth: float = 0.5

    def __post_init__(self):
        if self.depth < 0:
            raise ValueError(f"depth must not be negative, but is {self.depth:g}")


@config
class Bed:
    plant: Annotated[Fern | Moss, Discriminator("kind")] = Fern()
    plants: tuple[Annotated[Fern | Moss, Discriminator("kind")], ...] = ()


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"plant": {"kind": "moss", "dept": 3}}, "'plant.dept'; did you mean 'plant.depth'?"),
        ({"plant": {"kind": "fern", "frond": 3}}, "'plant.frond'; did you mean 'plant.fronds'?"),
        ({"plants": [{"kind": "moss", "dept": 3}]}, "did you mean 'plants.0.depth'?"),
        ({"plant": {"kind": "mos"}}, "'plant' has no kind 'mos'; did you mean 'moss'?"),
        ({"plant": {"kind": "moss", "depth": "x"}}, "'plant.depth': "),
        ({"plant": {"kind": "moss", "depth": -1}}, "'plant': depth must not be negative, but is"),
        ({"plnt": {}}, "unknown key 'plnt'; did you mean 'plant'?"),
    ],
)
def test_a_mistake_in_one_of_several_kinds_of_config_names_the_keys_that_were_written(plain, said):
    with pytest.raises(ConfigError) as refusal:
        config_of(Bed, plain)
    assert said in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_config_checks_itself_however_it_is_built():
    with pytest.raises(ConfigError, match="width must be at least 1, but is -1"):
        Leaf(width=-1)
    with pytest.raises(ConfigError, match="unknown key 'wdith'"):
        Leaf(wdith=1)  # type: ignore
    with pytest.raises(ConfigError, match="width must be at least 1"):
        dataclasses.replace(Leaf(), width=0)


def test_replace_changes_one_field_and_leaves_the_original():
    tree = Tree(name="oak", leaves=(Leaf(),))
    changed = dataclasses.replace(tree, leaf=dataclasses.replace(tree.leaf, width=9))
    assert (tree.leaf.width, changed.leaf.width) == (3, 9)
    assert changed.leaves == tree.leaves
    assert digest_of(changed) != digest_of(tree)


def test_a_config_is_frozen_keyword_only_and_hashable():
    leaf = Leaf()
    with pytest.raises(dataclasses.FrozenInstanceError):
        leaf.width = 4  # type: ignore
    with pytest.raises((ConfigError, TypeError)):
        Leaf(4)  # type: ignore
    assert hash(leaf) == hash(Leaf())


def test_a_config_file_is_read_with_or_without_its_runs_frame(tmp_path):
    tree = Tree(name="oak", leaf=Leaf(width=5))
    bare, framed = tmp_path / "bare.json", tmp_path / "framed.json"
    bare.write_text(json.dumps(dict_of(tree)))
    framed.write_text(json.dumps({"kind": "tree", "digest": "0", "config": dict_of(tree)}))
    assert read_config(Tree, bare) == read_config(Tree, framed) == tree


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"\x80\x04K\x01.", b"null"])
def test_a_config_file_that_is_no_json_object_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="a config is a JSON") as refusal:
        read_config(Tree, path)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_missing_config_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match="a config is a JSON file"):
            read_config(Tree, path)


def test_a_fault_can_be_explained_without_the_config_it_came_from():
    with pytest.raises(ValidationError) as fault:
        TypeAdapter(Leaf).validate_python({"q": 1})
    assert explain(object, fault.value) == "unknown key 'q'; take it out"


def test_the_nearest_choice_is_named_or_all_when_none_is_near():
    assert nearest("widht", ["width", "rate"]) == "did you mean 'width'?"
    assert nearest("qqq", ["width", "rate"]) == "choose one of: width, rate"
