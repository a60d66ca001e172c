from __future__ import annotations

import tempfile

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from prefix_cache.tools import key, make_record, same

from ragvl.prefix_cache import PrefixRecord
from ragvl.prefix_cache.record import DamagedRecordError, encode_record, read_record

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


def test_another_record_is_refused():
    with pytest.raises(DamagedRecordError, match=f"of another key, {key(0)}"):
        read(GOOD, number=1)
