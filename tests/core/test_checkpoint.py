import ast
import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import cartok
from cartok.core.checkpoint import (
    TrainingState,
    digest_of_weights,
    load_model,
    load_state,
    put_optimizer,
    put_tensors,
    save_model,
    save_state,
    tensors_of_optimizer,
)
from cartok.core.config import config
from cartok.core.errors import UserError


@config
class NetConfig:
    width: int = 3


class Net(nn.Module):
    """All that a state may hold: a shared weight, a scalar, counts, half precision, nothing."""

    def __init__(self, width: int):
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("coarse", torch.randn(2, width).to(torch.bfloat16))
        self.register_buffer("turned", torch.randn(width, 2).T)
        self.register_buffer("none", torch.zeros(0, width))


def net(seed=0, width=3):
    torch.manual_seed(seed)
    return Net(width)


@pytest.fixture
def folder(tmp_path):
    """A stored model."""
    save_model(tmp_path / "model", net(), kind="net", config=NetConfig(), extra={"names": ["a"]})
    return tmp_path / "model"


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ------------------------------------------------------------------ models


def test_a_stored_model_comes_back_bit_for_bit(folder):
    stored = load_model(folder, kind="net")
    again = net(seed=1)
    put_tensors(again, stored.tensors, "the net")
    assert same(again.state_dict(), net().state_dict())
    assert stored.config == {"width": 3}
    assert stored.extra == {"names": ["a"]}


def test_a_model_is_found_in_its_runs_folder_too(folder):
    by_run = load_model(str(folder.parent), kind="net")
    assert by_run.digest == load_model(folder, kind="net").digest


def test_the_digest_names_config_and_weights_and_nothing_else(folder, tmp_path):
    save_model(tmp_path / "again", net(), kind="net", config=NetConfig(), extra={"other": 1})
    digest = load_model(folder, kind="net").digest
    assert digest == load_model(tmp_path / "again", kind="net").digest
    assert digest == digest_of_weights({"width": 3}, net().state_dict())
    assert digest != digest_of_weights({"width": 4}, net().state_dict())
    for name, value in net().state_dict().items():
        if value.numel():
            changed = net().state_dict() | {name: value + 1}
            assert digest_of_weights({"width": 3}, changed) != digest, name


def test_saving_again_replaces_the_model(folder):
    save_model(folder, net(seed=1), kind="net", config=NetConfig())
    assert same(load_model(folder, kind="net").tensors, dict(net(seed=1).state_dict()))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_a_model_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch):
    def fail(tensors, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr("cartok.core.checkpoint.save_file", fail)
    with pytest.raises(UserError, match="the disk is full"):
        save_model(folder, net(seed=1), kind="net", config=NetConfig())
    assert same(load_model(folder, kind="net").tensors, dict(net().state_dict()))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def refusal_of(source, kind="net"):
    with pytest.raises(UserError) as refusal:
        load_model(source, kind=kind)
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


def test_another_kind_of_model_is_refused(folder):
    assert "should hold a prior, but it holds net" in refusal_of(folder, kind="prior")


@pytest.mark.parametrize(
    "description", ["{}", "[]", "null", '{"kind": "net"}', '{"kind": "net", "config": 3}',
                    '{"kind": "net", "config": {}, "extra": 3}', "{", ""]
)  # fmt: skip
def test_a_damaged_description_is_refused(folder, description):
    (folder / "config.json").write_text(description)
    assert str(folder) in refusal_of(folder)


def test_damaged_or_missing_weights_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:7], whole[:-5], b"\xff" * 200, whole[:8] + b"\0" + whole[9:]):
        path.write_bytes(damaged)
        assert f"the weights of {folder} cannot be read" in refusal_of(folder)
    path.unlink()
    assert "holds none; has its run ended?" in refusal_of(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert "does not exist" in refusal_of(tmp_path / "none")
    assert "does not exist" in refusal_of("none")


def test_weights_of_another_shape_or_name_are_refused_in_one_line(folder):
    tensors = load_model(folder, kind="net").tensors
    for unfit in (net(width=4), nn.Linear(3, 3)):
        with pytest.raises(UserError, match="the weights do not fit the net") as refusal:
            put_tensors(unfit, tensors, "the net")
        assert len(str(refusal.value).splitlines()) == 1


def test_a_hub_name_without_a_network_is_refused_in_one_line(monkeypatch):
    asked = []

    def offline(name, **settings):
        asked.append((name, settings))
        raise ConnectionError("many\nlines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert "the hub did not give it (ConnectionError)" in refusal_of("someone/some-model")
    # Nothing but the two files is asked for: a repository may hold pickles beside them.
    allowed = {"allow_patterns": ["config.json", "model.safetensors"]}
    assert asked == [("someone/some-model", allowed)]


def test_a_model_of_the_hub_is_read_like_a_folder(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **settings: str(folder))
    assert load_model("someone/some-model", kind="net").config == {"width": 3}


def test_a_folder_that_is_there_is_never_asked_of_the_hub(tmp_path, monkeypatch):
    def asked(name, **settings):
        raise AssertionError(name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    assert "holds none; has its run ended?" in refusal_of("runs/demo")


# ------------------------------------------------------------------ nothing is unpickled


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(params=["pickle", "torch"])
def bomb(request, tmp_path):
    """A function that plants a pickle at a path; and the mark that it leaves if it goes off."""
    mark = tmp_path / "boom"

    def plant(path):
        if request.param == "pickle":
            path.write_bytes(pickle.dumps(Bomb(mark)))
        else:
            with open(path, "wb") as file:  # torch takes no name that begins with a dot
                torch.save({"weight": Bomb(mark)}, file)
        return mark

    yield plant
    trial = tmp_path / "trial"
    plant(trial)
    if request.param == "pickle":
        pickle.loads(trial.read_bytes())
    else:
        torch.load(trial, weights_only=False)
    assert mark.exists()  # so it would have gone off


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pickle_in_a_models_place_is_refused_and_not_run(folder, bomb, name):
    mark = bomb(folder / name)
    refusal_of(folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_pickle_in_a_states_place_is_refused_and_not_run(tmp_path, bomb, name):
    save_state(tmp_path / "checkpoints", TrainingState(3, {"a": torch.zeros(2)}))
    mark = bomb(tmp_path / "checkpoints" / "step-00000003" / name)
    with pytest.raises(UserError):
        load_state(tmp_path / "checkpoints")
    assert not mark.exists()


def test_no_module_unpickles():
    """But one, which reads what others publish and lets a pickle call nothing but its own.

    And one writes an empty file in memory, for a constructor of others that reads a file.
    """
    found = []
    for path in sorted(Path(cartok.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found += [f"{path.name}:{node.lineno} {why}" for why in unsafe_things(node)]
    empty, restricted = found
    assert re.fullmatch(r"inception_v3\.py:\d+ torch\.save", empty)
    assert re.fullmatch(r"pickles\.py:\d+ pickle", restricted)


def unsafe_things(node):
    """What in a piece of syntax could run code that a file brings along."""
    unpicklers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    if isinstance(node, ast.Import):
        yield from {alias.name.split(".")[0] for alias in node.names} & unpicklers
    elif isinstance(node, ast.ImportFrom):
        yield from {(node.module or "").split(".")[0]} & unpicklers
    elif isinstance(node, ast.Call):
        called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in ("eval", "exec", "torch.save", "torch.hub.load"):
            yield called
        loads = called == "torch.load" or called.endswith("load_state_dict_from_url")
        if loads and given.get("weights_only") != "True":
            yield called
        if given.get("allow_pickle", "False") != "False" or given.get("weights_only") == "False":
            yield called


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "torch.load(path)", "eval('1')",
     "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)"],
)  # fmt: skip
def test_the_search_for_unpickling_finds_it(line):
    assert any(list(unsafe_things(node)) for node in ast.walk(ast.parse(line)))
    assert not list(unsafe_things(ast.parse("torch.load(path, weights_only=True)").body[0].value))


# ------------------------------------------------------------------ states


def state(step, **values):
    return TrainingState(step, {"weight": torch.full((2,), float(step))}, values)


def kept(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_bit_for_bit(tmp_path):
    tensors = {"a/b": torch.randn(3, 2), "n": torch.tensor(7), "r": torch.get_rng_state(),
               "d": torch.randn(2, dtype=torch.float64)}  # fmt: skip
    save_state(tmp_path, TrainingState(5, tensors, {"best": None, "seconds": 0.1}))
    found = load_state(tmp_path)
    assert found.step == 5
    assert same(found.tensors, tensors)
    assert {name: tensor.dtype for name, tensor in found.tensors.items()} == {
        name: tensor.dtype for name, tensor in tensors.items()
    }
    assert found.values == {"best": None, "seconds": 0.1}


def test_there_is_no_state_before_the_first(tmp_path):
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "checkpoints") is None


def test_only_the_newest_state_is_kept_when_none_is_the_best(tmp_path):
    for step in (9, 10, 99_999_999, 100_000_000):
        save_state(tmp_path, state(step))
        assert kept(tmp_path) == [f"step-{step:08d}"]
        assert load_state(tmp_path).step == step


def test_the_best_state_is_kept_beside_the_newest_until_a_better_one(tmp_path):
    expected = {1: [1], 2: [1, 2], 3: [1, 3], 4: [4], 5: [4, 5]}
    for step, steps in expected.items():
        save_state(tmp_path, state(step), is_best=step in (1, 4))
        assert kept(tmp_path) == [f"step-{step:08d}" for step in steps]
        assert load_state(tmp_path).step == step


def test_a_copy_that_a_person_keeps_is_neither_read_nor_removed(tmp_path):
    save_state(tmp_path, state(1))
    for name in ("step-00000001-before-surgery", "step-notes.txt", "step-final"):
        (tmp_path / name).mkdir()
    save_state(tmp_path, state(2))
    assert load_state(tmp_path).step == 2
    assert kept(tmp_path) == [
        "step-00000001-before-surgery", "step-00000002", "step-final", "step-notes.txt"
    ]  # fmt: skip


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    save_state(tmp_path, state(1))

    def fail(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cartok.core.checkpoint.save_file", fail)
    with pytest.raises(UserError, match=r"the disk is full: .*step-00000002 was not written"):
        save_state(tmp_path, state(2))
    assert kept(tmp_path) == ["step-00000001"]
    assert load_state(tmp_path).step == 1


@pytest.mark.parametrize("content", [b"", b"\x10", b"\xff" * 99])
def test_a_damaged_state_is_refused_with_the_folder_to_delete(tmp_path, content):
    save_state(tmp_path, state(1), is_best=True)
    save_state(tmp_path, state(2))
    (tmp_path / "step-00000002" / "state.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"step-00000002 is damaged .*; delete that folder"):
        load_state(tmp_path)


@pytest.mark.parametrize("head", ["{}", "[]", "3", "{", ""])
def test_a_state_with_a_damaged_head_is_refused(tmp_path, head):
    save_state(tmp_path, state(1))
    (tmp_path / "step-00000001" / "state.json").write_text(head)
    with pytest.raises(UserError) as refusal:
        load_state(tmp_path)
    assert len(str(refusal.value).splitlines()) == 1


def test_the_one_before_is_read_once_a_damaged_state_is_deleted(tmp_path):
    save_state(tmp_path, state(1), is_best=True)
    save_state(tmp_path, state(2))
    for path in (tmp_path / "step-00000002").iterdir():
        path.unlink()
    (tmp_path / "step-00000002").rmdir()
    assert load_state(tmp_path).step == 1
    save_state(tmp_path, state(3))
    assert kept(tmp_path) == ["step-00000001", "step-00000003"]


# ------------------------------------------------------------------ states of several ranks


@pytest.fixture(scope="module")
def shares(toy, apart, tmp_path_factory):
    """The folder of a network that two ranks divided, moved once and stored."""
    folder = tmp_path_factory.mktemp("shares")
    assert apart(toy.Errand(str(folder), {}), ranks=2, call="divide") == [0, 0]
    return folder


SHARES = ["state-00001-of-00002.safetensors", "state-00002-of-00002.safetensors"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_divide_a_network_move_it_and_store_it_as_one_would(
    toy, apart, shares, tmp_path, ranks
):
    """Five rows and one row: shared unevenly, and not at all."""
    if ranks == 3:
        shares = tmp_path
        assert apart(toy.Errand(str(shares), {}), ranks=3, call="divide") == [0, 0, 0]
    assert kept(shares / "checkpoints") == ["step-00000002"]
    files = [f"state-0000{rank + 1}-of-0000{ranks}.safetensors" for rank in range(ranks)]
    assert kept(shares / "checkpoints" / "step-00000002") == [*files, "state.json"]
    seen = load_file(shares / "seen")
    net = nn.Sequential(nn.Linear(toy.WIDTH, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    net.load_state_dict({k: v for k, v in seen.items() if not k.startswith("moved/")})
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.25)
    net(toy.sample_values(torch.arange(12)).double()).square().mean().backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    optimizer.step()
    assert norm > 0.1
    found = load_state(shares / "checkpoints").tensors
    wanted = {f"net/{k}": v for k, v in net.state_dict().items()} | {"norm": norm}
    wanted |= {f"optimizer/{k}": v for k, v in tensors_of_optimizer(optimizer).items()}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12)
    for name in net.state_dict():
        assert torch.equal(seen[f"moved/{name}"], found[f"net/{name}"])


@pytest.fixture
def copied(shares, tmp_path):
    """That checkpoint's folder, to be damaged."""
    return Path(shutil.copytree(shares / "checkpoints", tmp_path / "checkpoints"))


@pytest.mark.parametrize("name", [*SHARES, "state.json", ".metadata"])
def test_a_pickle_in_a_shares_place_is_refused_and_not_run(copied, bomb, name):
    """``.metadata`` is what torch's own checkpoints have and unpickle: here it is not read."""
    mark = bomb(copied / "step-00000002" / name)
    if name == ".metadata":
        assert load_state(copied).step == 2
    else:
        with pytest.raises(UserError) as refusal:
            load_state(copied)
        assert len(str(refusal.value).splitlines()) == 1
    assert not mark.exists()


def test_a_state_that_lacks_a_ranks_rows_is_refused(copied):
    """Else they would stay what they were before, and nobody would know."""
    folder = copied / "step-00000002"
    tensors = load_file(folder / SHARES[1])
    save_file({k: v[:1] for k, v in tensors.items()}, folder / SHARES[1])
    with pytest.raises(UserError, match=r"is damaged \(not all rows of .* are there\); delete"):
        load_state(copied)
    save_file({}, folder / SHARES[1])
    with pytest.raises(UserError, match="is damaged"):
        load_state(copied)
    (folder / SHARES[1]).unlink()
    with pytest.raises(UserError, match=f"is damaged .*{SHARES[1]}"):
        load_state(copied)


@pytest.mark.parametrize(
    "change",
    [{"ranks": 3}, {"ranks": 0}, {"ranks": -1}, {"ranks": "2"}, {"ranks": None}, {"rows": []},
     {"rows": {"other": [1, 1]}}, {"rows": {"net/0.weight": 3}}, {"ranks": 1}],
)  # fmt: skip
def test_an_index_that_does_not_fit_its_files_is_refused_in_one_line(copied, change):
    path = copied / "step-00000002" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as refusal:
        load_state(copied)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("strike", "at", "said"),
    [
        ("full", 1, ["another rank failed; its own message says why", "the disk is full: "]),
        ("full", 0, ["the disk is full: ", "another rank failed; its own message says why"]),
        ("late", 0, ["the disk is full: ", "another rank failed; its own message says why"]),
        ("apart", 1, ["another rank failed", "give --out on a disk that all machines share"]),
        ("killed", 1, ["", None]),
    ],
)
def test_a_rank_that_cannot_store_its_share_leaves_the_state_before(
    toy, apart, tmp_path, strike, at, said
):
    errand = toy.Errand(str(tmp_path), {}, strike=strike, at=at)
    ends = [2 if words is not None else -signal.SIGKILL for words in said]
    assert apart(errand, ranks=2, call="divide") == ends
    for rank, words in enumerate(said):
        if words is not None:
            assert words in (tmp_path / f"{rank}.error").read_text()
    assert kept(tmp_path / "checkpoints") == ["step-00000001"]
    assert load_state(tmp_path / "checkpoints").step == 1


# ------------------------------------------------------------------ optimizers


def stepped(optimizer, module, steps):
    for step in range(steps):
        module.zero_grad()
        module(torch.full((2, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "amsgrad", "Muon"])
def test_an_optimizer_goes_on_from_its_stored_state_bit_for_bit(kind, tmp_path):
    def make():
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        groups = [{"params": [module.weight], "weight_decay": 0.1}, {"params": [module.bias]}]
        if kind == "SGD":
            return module, torch.optim.SGD(groups, lr=0.01, momentum=0.9)
        if kind == "Muon":
            return module, torch.optim.Muon([module.weight], lr=0.01)
        return module, torch.optim.AdamW(groups, lr=0.01, amsgrad=kind == "amsgrad")

    module, optimizer = make()
    stepped(optimizer, module, 3)
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    save_state(tmp_path, TrainingState(3, tensors_of_optimizer(optimizer)))
    stepped(optimizer, module, 2)

    other, resumed = make()
    other.load_state_dict(weights)
    put_optimizer(resumed, load_state(tmp_path).tensors)
    stepped(resumed, other, 2)
    assert same(dict(other.state_dict()), dict(module.state_dict()))


def test_an_optimizer_that_never_stepped_is_restored_as_such():
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    assert tensors_of_optimizer(optimizer) == {}
    put_optimizer(optimizer, {})
    stepped(optimizer, module, 1)
    assert float(optimizer.state[module.weight]["step"]) == 1


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_an_optimizers_state_lies_in_memory_as_its_parameters_do(tmp_path, kind):
    """Also after a checkpoint, whose tensors are contiguous; fused optimizers refuse another."""

    def make():
        module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        options = {"momentum": 0.9} if kind == "SGD" else {}
        return module, getattr(torch.optim, kind)(module.parameters(), lr=0.1, **options)

    def stepped_once(module, optimizer):
        module(torch.randn(1, 3, 5, 5)).sum().backward()
        optimizer.step()

    module, optimizer = make()
    stepped_once(module, optimizer)
    save_state(tmp_path, TrainingState(1, tensors_of_optimizer(optimizer)))
    other, resumed = make()
    put_optimizer(resumed, load_state(tmp_path).tensors)
    pairs = [
        (parameter, value, optimizer.state[before][key])
        for parameter, before in zip(other.parameters(), module.parameters(), strict=True)
        for key, value in resumed.state[parameter].items()
        if value.ndim
    ]
    assert len(pairs) == (2 if kind == "SGD" else 4)
    assert all(value.stride() == parameter.stride() for parameter, value, _ in pairs)
    assert all(torch.equal(value, before) for _, value, before in pairs)


def test_the_rate_and_the_decay_stay_those_of_the_config():
    module = nn.Linear(3, 2)
    old = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.5)
    stepped(old, module, 1)
    new = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.25)
    put_optimizer(new, tensors_of_optimizer(old))
    assert (new.param_groups[0]["lr"], new.param_groups[0]["weight_decay"]) == (0.02, 0.25)


def test_a_states_head_is_strict_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_state(tmp_path, state(1, value=float("nan")))
    assert not kept(tmp_path)
    save_state(tmp_path, state(1, value=None))
    head = json.loads((tmp_path / "step-00000001" / "state.json").read_text())
    assert head == {"step": 1, "best": "", "values": {"value": None}}
