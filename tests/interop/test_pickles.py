import builtins
import collections
import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.interop import pickles
from cartok.interop.pickle_scan import check_pickle


def read_state_dict(path, **options):
    return pickles.read_state_dict(path, **options).tensors


FORMS = {"archive": True, "stream": False}


def save(content, path, form="archive"):
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form])
    return path


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[key].dtype == expected[key].dtype and torch.equal(found[key], expected[key])
        for key in expected
    )


def some_tensors():
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    return {
        "plain": torch.randn(3, 2), "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "whole numbers": torch.arange(4), "bytes": torch.arange(5, dtype=torch.uint8),
        "double": torch.randn(2).double(), "truth": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "turned": whole.T,
        "part": whole[2:4, 1:3], "stepped": whole[::2], "parameter": torch.nn.Parameter(whole),
    }  # fmt: skip


# ------------------------------------------------------------------ what is read


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_comes_back_as_torch_reads_it(form, tmp_path):
    path = save(some_tensors(), tmp_path / "net.pt", form)
    expected = torch.load(path, weights_only=True)
    found = read_state_dict(path)
    assert same(found, {name: value.detach() for name, value in expected.items()})
    assert all(value.is_contiguous() for value in found.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ["", "model", "module", "state_dict"])
def test_a_networks_tensors_are_found_at_the_top_or_under_the_usual_names(form, key, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = net.state_dict()  # an ordered dict with attributes of its own
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    content = {key: state, "optimizer": optimizer, "steps": 9} if key else state
    assert same(read_state_dict(save(content, tmp_path / "net.pt", form)), dict(state))


def test_running_means_go_before_the_weights_they_are_of(tmp_path):
    content = {"model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}
    assert read_state_dict(save(content, tmp_path / "net.pt"))["a"] == 1


def test_names_to_skip_are_not_read(tmp_path):
    path = save({"net.a": torch.ones(1), "loss.b": torch.ones(9)}, tmp_path / "net.pt")
    assert list(read_state_dict(path, skip=("loss.",))) == ["net.a"]


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_share_a_storage_take_no_more_memory_than_their_numbers(form, tmp_path):
    whole = torch.arange(2**18)  # 2 MiB
    parts = {str(number): part for number, part in enumerate(whole.chunk(32))}
    path = save(parts, tmp_path / "net.pt", form)
    tracemalloc.start()
    try:
        found = read_state_dict(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert same(found, parts)
    assert peak < 2 * 2**21
    assert all(part.untyped_storage().nbytes() == 2**16 for part in found.values())


@pytest.fixture
def lightning():
    """A checkpoint as Lightning writes them: of classes that are not there where it is read."""
    name = "lightning_of_long_ago"
    module = types.ModuleType(name)
    kinds = {}
    for kind, base in {"Checkpoint": object, "Hyper": dict, "Many": list, "Bag": set}.items():
        kinds[kind] = type(kind, (base,), {"__module__": name})
        setattr(module, kind, kinds[kind])
    callback, hyper = kinds["Checkpoint"](), kinds["Hyper"](lr=0.1, more=kinds["Many"]([1, 2]))
    callback.best, callback.path = torch.tensor(0.5), module.Checkpoint
    content = {
        "epoch": 3, "callbacks": {kinds["Checkpoint"]: callback}, "hyper_parameters": hyper,
        "bag": kinds["Bag"]([1]), "counts": collections.defaultdict(int, a=1),
        "recent": collections.deque([1, 2], 5), "shape": torch.Size([1]),
        "device": torch.device("cpu"),
        "state_dict": collections.OrderedDict(weight=torch.arange(3.0)),
    }  # fmt: skip
    sys.modules[name] = module
    yield content
    sys.modules.pop(name, None)


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_full_of_unknown_classes_gives_its_tensors(lightning, form, tmp_path):
    path = save(lightning, tmp_path / "last.ckpt", form)
    sys.modules.pop("lightning_of_long_ago")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert read_state_dict(path)["weight"].tolist() == [0, 1, 2]


# ------------------------------------------------------------------ what is not run


class Bomb:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def bombs(mark):
    """Ways to make a folder at ``mark``, each by another function that a pickle may name."""
    return {
        "os.system": Bomb(os.system, f"mkdir '{mark}'"),
        "os.mkdir": Bomb(os.mkdir, str(mark)),
        "builtins.eval": Bomb(builtins.eval, f"__import__('os').mkdir({str(mark)!r})"),
        "builtins.exec": Bomb(builtins.exec, f"import os; os.mkdir({str(mark)!r})"),
        "getattr": Bomb(getattr, Bomb(__import__, "os"), "mkdir"),
    }


FUSES = ["os.system", "os.mkdir", "builtins.eval", "builtins.exec"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fuse", FUSES)
def test_code_planted_beside_tensors_is_not_run(form, fuse, tmp_path):
    mark = tmp_path / "boom"
    content = {"epoch": bombs(mark)[fuse], "state_dict": {"weight": torch.ones(2)}}
    path = save(content, tmp_path / "net.pt", form)
    assert read_state_dict(path)["weight"].tolist() == [1, 1]
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so it would have gone off


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fuse", [*FUSES, "getattr"])
def test_code_planted_in_a_tensors_place_is_not_run(form, fuse, tmp_path):
    mark = tmp_path / "boom"
    path = save({"weight": bombs(mark)[fuse]}, tmp_path / "net.pt", form)
    with pytest.raises(UserError, match="no named tensors"):
        read_state_dict(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("fuse", FUSES)
def test_a_bare_pickle_of_any_protocol_is_refused_and_not_run(protocol, fuse, tmp_path):
    mark, path = tmp_path / "boom", tmp_path / "net.pt"
    path.write_bytes(pickle.dumps(bombs(mark)[fuse], protocol))
    with pytest.raises(UserError, match="none or is damaged"):
        read_state_dict(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("fuse", FUSES)
def test_code_put_into_an_archives_own_pickle_is_not_run(fuse, tmp_path):
    mark = tmp_path / "boom"
    path = save({"weight": torch.ones(2)}, tmp_path / "net.pt")
    planted = rewritten(path, lambda name, old: pickle.dumps(bombs(mark)[fuse], 2)
                        if name.endswith("data.pkl") else old)  # fmt: skip
    with pytest.raises(UserError, match="no named tensors"):
        read_state_dict(planted)
    assert not mark.exists()


def test_a_pickle_can_call_nothing_but_what_stands_in_for_tensors_and_dicts():
    reader = pickles._Reader(io.BytesIO())
    for module, name in [
        ("os", "system"), ("builtins", "eval"), ("torch", "load"),
        ("collections", "OrderedDict.fromkeys"), ("cartok.interop.pickles", "pickle"),
        ("torch", "FloatStorage.__init__"), ("torch._utils", "_rebuild_sparse_tensor"),
    ]:  # fmt: skip
        assert reader.find_class(module, name) is pickles.Inert
    known = set(map(type, pickles._KNOWN.values()))
    assert known == {type, pickles._Call, torch.dtype}
    assert [value for value in pickles._KNOWN.values() if isinstance(value, type)] == [
        pickles._Named
    ]


@pytest.mark.parametrize(
    "target",
    ["ctorch._utils\n_rebuild_tensor_v2\n", "ccollections\nOrderedDict\n", "ctorch\nFloatStorage\n",
     "cany\nthing\n", "ccollections\nOrderedDict\n)R"],
)  # fmt: skip
def test_a_pickle_sets_nothing_on_what_it_is_given(target):
    """By its opcode for an object's state, on functions, classes and what they make."""
    before = [dict(vars(kind)) for kind in (pickles.Inert, pickles._Named, pickles._Call)]
    program = f"{target}(N(dVitems\nVpwned\nstb."  # state: (None, {"items": "pwned"})
    reader = pickles._Reader(io.BytesIO(program.encode()))
    try:
        made = reader.load()
    except (TypeError, AttributeError, pickle.UnpicklingError):
        made = None
    assert getattr(made, "items", None) != "pwned"
    assert [dict(vars(k)) for k in (pickles.Inert, pickles._Named, pickles._Call)] == before
    assert not hasattr(pickles._KNOWN["torch._utils", "_rebuild_tensor_v2"], "items")


# ------------------------------------------------------------------ what would never end

STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\n%bX\x03\0\0\0cpuK\x01tQ"
DEEP = b"N" + b"\x85" * 200_000
DOUBLED = b"N" + b"2\x86" * 60
CALLS = b"ctorch._utils\n_rebuild_tensor_v2\n(" * 30 + b"N" + b"222tR" * 30
HARM = {
    "a memo of 2**28 places": b"Nr\0\0\0\x10.",
    "a memo in text": b"Np268435456\n.",
    "a storage named by deep tuples": STORAGE % DEEP + b".",
    "a storage named by doubled tuples": STORAGE % DOUBLED + b".",
    "a key of deep tuples": b"}" + DEEP + b"Ns.",
    "a key of doubled tuples": b"}" + DOUBLED + b"Ns.",
    "a set of deep tuples": b"(" + DEEP + b"\x91.",
    "a key of calls in calls": b"}" + CALLS + b"Ns.",
    "a key again and again": b"}N" + b"2\x86" * 12 + b"q\x00Ns" + b"h\x00Ns" * 20_000 + b".",
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "a number of no bytes": b"\x8b" + struct.pack("<i", 2**31 - 1) + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", HARM)
def test_a_small_file_that_asks_for_gigabytes_or_for_ever_is_refused(name, tmp_path):
    path = save({"weight": torch.ones(2)}, tmp_path / "net.pt")
    rewritten(path, lambda n, old: HARM[name] if n.endswith("data.pkl") else old)
    (tmp_path / "stream.pt").write_bytes(HARM[name])
    for file in ("rewritten.pt", "stream.pt"):
        with pytest.raises(UserError, match="none or is damaged") as caught:
            read_state_dict(tmp_path / file)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_a_checkpoint_may_well_hold_is_not_taken_for_harm(protocol):
    content = {(1, (2, "b")): [{"a": (3,)}] * 9, "many": list(range(500)), "set": {(1, 2), "c"},
               "frozen": frozenset([1]), "numbers": tuple(range(300)), "raw": b"b" * 300,
               }  # fmt: skip
    file = io.BytesIO(pickle.dumps(content, protocol) + b"more")
    check_pickle(file)
    assert file.read() == b"more"


# ------------------------------------------------------------------ what does not fit its storage


def rewritten(path, change):
    """The archive with each record changed by a function of its name and content."""
    made = path.with_name("rewritten.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return made


class Liar:
    """Says of a tensor what it likes."""

    def __init__(self, storage, offset, shape, stride):
        self.said = (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.said


LIES = {
    "a place beyond the end": (9, (2,), (1,)),
    "a shape that is too large": (0, (11,), (1,)),
    "strides that lead out": (0, (3, 3), (5, 1)),
    "more numbers than there are": (0, (4, 2**40), (1, 0)),
    "a place before the start": (-1, (2,), (1,)),
    "negative strides": (9, (2,), (-1,)),
    "fewer strides than sides": (0, (2, 2), (1,)),
    "no whole numbers": (0.0, (2,), (1,)),
    "a shape that is a word": (0, "ab", (1, 1)),
    "a truth for a number": (True, (2,), (1,)),
    "numbers beyond all machines": (0, (2**80,), (2**80,)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_reads_nothing_outside_its_storage(form, lie, tmp_path):
    storage = torch.arange(10.0).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    path = save({"honest": Liar(typed, 8, (2,), (1,))}, tmp_path / "net.pt", form)
    assert read_state_dict(path)["honest"].tolist() == [8, 9]
    save({"weight": Liar(typed, *LIES[lie])}, path, form)
    with pytest.raises(UserError, match="none or is damaged"):
        read_state_dict(path)


def test_a_storage_shorter_than_it_is_said_to_be_is_refused(tmp_path):
    path = save({"weight": torch.arange(10.0)}, tmp_path / "net.pt")
    short = rewritten(path, lambda name, old: old[:-4] if "/data/" in name else old)
    with pytest.raises(UserError, match="not as long"):
        read_state_dict(short)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_refused(form, share, tmp_path):
    path = save({"weight": torch.randn(1000)}, tmp_path / "net.pt", form)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="fetch the one that its project publishes"):
        read_state_dict(path)


def test_a_number_that_changed_on_the_way_is_noticed(tmp_path):
    path = save({"weight": torch.full((1000,), 3.0)}, tmp_path / "net.pt")
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<f", 3.0) * 9)
    data[place + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="CRC"):
        read_state_dict(path)


def test_records_that_would_swell_are_refused(tmp_path):
    path = save({"weight": torch.zeros(1000)}, tmp_path / "net.pt")
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match="packed"):
        read_state_dict(packed)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"a text", bytes(5000)])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a file that torch\.save wrote"):
        read_state_dict(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(list(FORMS)), data=st.data())
def test_whatever_bytes_change_the_file_is_read_or_refused(form, data, tmp_path):
    path = save({"model": {"a": torch.arange(4.0), "b": torch.ones(2, 2)}}, tmp_path / "x.pt", form)
    content = bytearray(path.read_bytes())
    if form == "archive":  # its checksums would hide all else
        with zipfile.ZipFile(path) as old:
            name = next(name for name in old.namelist() if name.endswith("data.pkl"))
            content = bytearray(old.read(name))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if form == "archive":
        path = rewritten(path, lambda n, old: bytes(content) if n == name else old)
    else:
        path.write_bytes(content)
    try:
        found = read_state_dict(path)
    except UserError:
        return
    assert all(isinstance(value, torch.Tensor) and value.numel() <= 16 for value in found.values())
