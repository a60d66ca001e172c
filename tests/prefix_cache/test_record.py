from __future__ import annotations

import hashlib
import json
import tempfile
import zlib

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from prefix_cache.tools import key, make_record, same

from ragvl.prefix_cache.record import (
    DamagedRecordError,
    PrefixRecord,
    are_finite,
    encode_record,
    read_record,
)

DTYPES = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
]


@st.composite
def tensors(draw) -> torch.Tensor:
    """Any bits, NaNs of every kind among them, in any shape, contiguous or not."""
    dtype = getattr(torch, draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    count = torch.Size(shape).numel() * dtype.itemsize
    bits = torch.tensor(list(draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8)
    if dtype == torch.bool:
        bits %= 2
    tensor = bits.view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


def read(content: bytes, number: int = 0) -> PrefixRecord:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        return read_record(key(number), file)


def encode(record: PrefixRecord) -> bytes:
    return b"".join(encode_record(key(0), record))


@given(
    st.dictionaries(st.text(max_size=5), tensors(), max_size=6),
    st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3),
)
def test_round_trip(tensors, info):
    record = PrefixRecord(tensors, info)
    content = encode(record)
    assert same(read(content), record)
    library = safetensors.torch.load(content)
    assert same(PrefixRecord(library, info), record)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, tmp_path):
    x = torch.arange(48, dtype=torch.uint8).view(getattr(torch, dtype))
    if x.dtype == torch.bool:
        x = torch.arange(48) % 3 == 0
    # The byte in front must not leave the others askew for a reader that maps the file.
    record = PrefixRecord({"byte": torch.zeros(1, dtype=torch.int8), "x": x})
    assert same(read(encode(record)), record)
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode(record))
    assert same(PrefixRecord(safetensors.torch.load_file(path)), record)


def test_what_is_read_has_memory_of_its_own():
    again = read(encode(make_record()))
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in again.tensors.values())
    again.tensors["v"].zero_()  # and can be written to


def test_nbytes_is_what_is_held():
    whole = torch.zeros(2, 100)
    assert PrefixRecord({"a": whole}).nbytes == 800
    assert PrefixRecord({"k": whole[0], "v": whole[1]}).nbytes == 800
    assert PrefixRecord({"crop": whole[:, :3]}).nbytes == 800
    assert PrefixRecord({"crop": whole[:, :3].clone()}).nbytes == 24
    assert PrefixRecord({}).nbytes == 0


def test_a_copy_is_made_only_of_what_is_not_contiguous():
    x = torch.zeros(8, 8)
    record = PrefixRecord({"x": x})
    *_, piece = encode_record(key(0), record)
    x[0, 0] = 1
    assert bytes(piece) == x.numpy().tobytes()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("far", torch.zeros(2, device="meta"), "'far' is torch.strided on meta"),
        ("thin", torch.eye(2).to_sparse(), "'thin' is torch.sparse_coo on cpu"),
        ("wide", torch.zeros(2, dtype=torch.complex128), "'wide' is torch.complex128"),
        ("__metadata__", torch.zeros(2), "cannot be named"),
    ],
)
def test_what_a_record_cannot_hold(name, tensor, message):
    with pytest.raises(ValueError, match=message):
        PrefixRecord({name: tensor})


def foreign(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


GOOD = encode(make_record(nbytes=16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"x", "cut short"),
        (b"\x80\x04\x95" + bytes(100), "cut short"),  # a pickle
        (foreign(b""), "not a record"),
        (foreign(b"[]"), "not a record"),
        (foreign(b"7"), "not a record"),
        (foreign(b"\xff\xfe"), "not a record"),
        (foreign(b"[" * 100_000), "not a record"),
        (foreign(b'{"__metadata__": "x"}'), "not a record"),
        (foreign(b'{"__metadata__": {"format": "1"}}'), "not a record"),
        (safetensors.torch.save({"x": torch.zeros(2)}), "not a record"),
        (safetensors.torch.save({"x": torch.zeros(2)}, {"format": "pt"}), "not a record"),
        (GOOD.replace(b'"format":"1"', b'"format":"2"'), "format '2' and this ragvl reads '1'"),
        (GOOD.replace(b"number", b"nomber"), "header is damaged"),
        (GOOD[:-1], f"{len(GOOD) - 1} of {len(GOOD)} bytes"),
        (GOOD + b"\0", f"{len(GOOD) + 1} of {len(GOOD)} bytes"),
        (GOOD[:-4] + bytes(4), "tensors are damaged"),
    ],
)
def test_what_is_wrong_is_said(content, message):
    with pytest.raises(DamagedRecordError, match=message):
        read(content)


def forged(layout: object, data: bytes = b"", **changes: object) -> bytes:
    """A record whose checksums are right, whatever it says."""
    metadata = {
        "format": "1",
        "key": key(0),
        "info": "{}",
        "data_crc32": f"{zlib.crc32(data):08x}",
        **changes,
    }
    hashed = hashlib.sha256(json.dumps([metadata, layout]).encode()).hexdigest()
    header = {"__metadata__": {**metadata, "header_sha256": hashed}, **layout}  # type: ignore[dict-item]
    return foreign(json.dumps(header).encode(), data)


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_header_that_is_true_is_believed():
    assert read(forged({"x": entry()}, bytes(4))).tensors["x"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"x": entry(shape=[10**12], offsets=[0, 4 * 10**12])}, "4 of|bytes"),
        ({"x": entry(shape=[10**30])}, "describes no tensor under x"),
        ({"x": entry(shape=[0, 10**18, 10**18])}, "describes no tensor"),
        ({"x": entry(shape=[1] * 100)}, "describes no tensor"),
        ({"x": entry(shape=[-1])}, "describes no tensor"),
        ({"x": entry(shape=[True])}, "describes no tensor"),
        ({"x": entry(shape=1)}, "describes no tensor"),
        ({"x": entry(dtype="F4")}, "describes no tensor"),
        ({"x": entry(dtype=["F32"])}, "describes no tensor"),
        ({"x": 7}, "describes no tensor"),
        ({"\x1b[31m": {}}, r"under \\x1b\[31m"),
        ({"x": entry(offsets=[4, 8])}, "overlap or lie apart"),
        ({"x": entry(offsets=None)}, "overlap or lie apart"),
        ({"x": entry("U8", [2], [0, 2]), "y": entry("U8", [2], [1, 3])}, "overlap or lie apart"),
    ],
)
def test_a_forged_header_is_refused_before_memory_is_taken(layout, message, monkeypatch):
    monkeypatch.setattr(torch, "empty", None)
    with pytest.raises(DamagedRecordError, match=message):
        read(forged(layout, bytes(4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"info": "[]"}, "says nothing"),
        ({"info": 7}, "says nothing"),
        ({"info": '{"kind": 1}'}, "says nothing"),
        ({"key": None}, "of another key, None"),
        ({"format": "\x1b[31m" * 100}, r"format '\\x1b"),
        ({"data_crc32": 7}, "tensors are damaged"),
    ],
)
def test_forged_metadata_is_refused(changes, message):
    with pytest.raises(DamagedRecordError, match=message):
        read(forged({"x": entry()}, bytes(4), **changes))


def test_a_header_has_a_sane_length():
    content = (1 << 40).to_bytes(8, "little")
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.truncate(1 << 41)  # a sparse file is as long as it says
        file.seek(0)
        with pytest.raises(DamagedRecordError, match="header of 1099511627776 bytes"):
            read_record(key(0), file)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16"]) | json_values,
        "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 8), min_size=2, max_size=2) | json_values,
    }
)


@pytest.mark.slow
@given(
    st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3),
    st.binary(max_size=16),
    st.dictionaries(st.sampled_from(["info", "key", "format", "data_crc32"]), json_values),
)
def test_nothing_but_damage_comes_of_a_forged_record(layout, data, changes):
    try:
        record = read(forged(layout, data, **changes))
    except DamagedRecordError:
        return
    assert sum(x.nbytes for x in record.tensors.values()) == len(data)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.startswith(("float", "b", "complex"))])
def test_are_finite(dtype):
    x = torch.ones(70).to(getattr(torch, dtype))
    assert are_finite([x, x[:0]])
    if dtype == "bool":
        return
    bits = x.clone().view(torch.uint8)
    bits[-x.itemsize :] = 0x80 if dtype.endswith("fnuz") else 0x7F
    nan = x.clone()
    nan[-1:] = bits.view(x.dtype)[-1:] if x.itemsize == 1 else torch.nan
    assert not are_finite([x, nan])
    if x.itemsize > 1 and dtype != "complex64":
        nan[-1] = torch.inf
        assert not are_finite([x, nan])


def test_another_record_is_refused():
    with pytest.raises(DamagedRecordError, match=f"of another key, {key(0)}"):
        read(GOOD, number=1)
