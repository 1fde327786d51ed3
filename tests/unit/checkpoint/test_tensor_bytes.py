import safetensors.torch
import torch

from mgpt4_hpc.checkpoint.tensor_bytes import encode_tensors


def _bytes(tensors):
    return b"".join(encode_tensors(tensors))


def test_bytes_equal_the_librarys_for_every_dtype():
    tensors = {
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "naïve": torch.arange(6, dtype=torch.int16).reshape(2, 3),
    }
    for dtype in (
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint16, torch.uint32, torch.uint64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    ):
        tensors[f"b.{dtype}"] = torch.ones(3, dtype=dtype)
        tensors[f"a.{dtype}"] = torch.ones(2, 2, dtype=dtype)
    assert _bytes(tensors) == safetensors.torch.save(tensors)


def test_order_of_insertion_and_strides_do_not_show():
    weight = torch.randn(5, 7)
    one = {"b": weight, "a": torch.zeros(2)}
    other = {"a": torch.zeros(2), "b": weight.t().contiguous().t()}
    assert not other["b"].is_contiguous()
    assert _bytes(one) == _bytes(other)


def test_no_tensors_is_a_file_too():
    assert safetensors.torch.load(_bytes({})) == {}


def test_the_pieces_alias_the_tensors():
    weight = torch.zeros(4)
    pieces = list(encode_tensors({"w": weight}))
    weight.fill_(1)
    assert bytes(pieces[1]) == torch.ones(4).numpy().tobytes()


def test_an_unknown_dtype_is_named():
    try:
        _bytes({"z": torch.zeros(1, dtype=torch.complex64)})
    except TypeError as error:
        assert "'z'" in str(error) and "complex64" in str(error)
    else:
        raise AssertionError("complex was stored")
