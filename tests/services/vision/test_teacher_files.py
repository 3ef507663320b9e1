"""Files of weights at the door: sizes before memory, types, counters, statistics, and files that are written right."""

import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.vision.bounded_construction import ParametersOnMeta, TooLargeToBuild, bounded_construction
from dearkd.vision.teachers import build_teacher, check_teacher, describe_teacher, load_teacher, save_teacher
from tests.support.programs import run_program
from tests.unit.vision.test_teachers import refusal, saved, spec

FAMILIES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "resnet10t": {},
    "regnety_002": {},
    "efficientnet_b0": {},
    "mobilenetv3_small_050": {},
    "densenet121": {"block_config": [2, 2, 2, 2], "growth_rate": 8},
    "vgg11_bn": {"mlp_ratio": 0.01},
    "ghostnet_100": {},
    "resnext50_32x4d": {"layers": [1, 1, 1, 1]},
    "test_byobnet": {},
}

LOADING = """
import resource, sys
from pathlib import Path
from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.vision.teachers import load_teacher
spec = TeacherSpec.model_validate_json(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_teacher(spec, Path(sys.argv[2]))
except InvalidInput as error:
    print(error.message)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("resnet10t", {"layers": [9000, 1, 1, 1]}),
        ("densenet121", {"block_config": [60_000, 60_000, 1, 1]}),
        ("vgg11_bn", {"mlp_ratio": 60_000}),
        ("resnet10t", {"channels": [30_000, 30_000, 30_000, 30_000]}),
        ("resnet10t", {"channels": [30_000, 30_000, 30_000, -1]}),  # refused by timm, after the large ones
        ("regnety_002", {"w0": 60_000, "output_strid": 8}),
        ("vit_gigantic_patch14_224", {}),
        ("vit_gigantic_patch14_224", {"no_such_argument": 1}),
    ],
)
def test_a_network_is_compared_with_its_file_before_it_takes_memory(
    tmp_path: Path, architecture: str, model_args: dict[str, Any]
) -> None:
    """Each would take gigabytes, or minutes, if it were built."""
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(8)}, path)
    teacher = spec(architecture, model_args=model_args)
    done = run_program(LOADING, teacher.model_dump_json(), str(path))
    assert done.returncode == 0, done.stderr
    message, megabytes = done.stdout.rsplit("\n", 2)[:2]
    assert message.startswith(("/weights: they do not fit", "/model_args: "))
    assert architecture in message
    assert int(megabytes) < 200


@pytest.mark.parametrize(("architecture", "model_args"), FAMILIES.items())
def test_every_family_is_laid_out_without_values_as_it_is_built(architecture: str, model_args: dict[str, Any]) -> None:
    """Also where the constructor reads numbers from tensors, which `torch.device("meta")` cannot give it."""
    teacher = spec(architecture, model_args=model_args)
    built = {name: (tensor.shape, tensor.dtype) for name, tensor in build_teacher(teacher).state_dict().items()}
    for way in (torch.device("meta"), ParametersOnMeta()):
        with bounded_construction(10_000), way:
            laid_out = build_teacher(teacher).state_dict()
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in laid_out.items()} == built
        assert all(tensor.is_meta for tensor in laid_out.values() if tensor.is_floating_point())


def test_construction_ends_at_its_bound_even_if_the_network_swallows_the_error() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(100):
                try:
                    self.add_module(str(i), nn.Identity())
                except Exception:
                    continue

    with bounded_construction(100):
        Stubborn()
    with pytest.raises(TooLargeToBuild), bounded_construction(99):
        Stubborn()
    Stubborn()  # the bound is gone with its block


def test_a_bound_on_construction_is_of_one_thread() -> None:
    def build() -> None:
        built.append(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))

    built: list[nn.Module] = []
    with bounded_construction(1):
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    assert built


@pytest.mark.parametrize(
    ("model_args", "pointer"),
    [
        ({"layers": [1, 1, 1, 10**9]}, "/model_args/layers"),
        ({"layers": [1] * 65}, "/model_args/layers"),
        ({"mlp_ratio": 1e300}, "/model_args/mlp_ratio"),
        ({"depth": -(10**400)}, "/model_args/depth"),
        ({"stem width": 1}, "/model_args/stem width/[key]"),
        ({f"a{i}": 1 for i in range(65)}, "/model_args"),
        ({"device": 0}, "/model_args"),
        ({"pretrained_cfg": 1}, "/model_args"),
    ],
)
def test_numbers_that_no_network_has_are_refused_with_the_spec(model_args: dict[str, Any], pointer: str) -> None:
    assert refusal(lambda: spec(model_args=model_args))[0] == pointer


KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REFUSED = [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_floating_point_type_of_16_bits_or_more_is_taken(tmp_path: Path, kind: torch.dtype) -> None:
    """Also of the counters, which who casts a whole state casts too; nothing reads them."""
    path = saved(tmp_path, spec(), lambda state: state.update({k: v.to(kind) for k, v in state.items()}))
    describe_teacher(spec(), path)
    assert {parameter.dtype for parameter in load_teacher(spec(), path).parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", [*REFUSED, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("name", ["conv1.0.weight", "fc.bias", "layer1.0.bn1.running_var"])
def test_other_types_are_refused_by_the_tensors_name(tmp_path: Path, kind: torch.dtype, name: str) -> None:
    path = saved(tmp_path, spec(), lambda state: state.update({name: state[name].to(kind)}))
    pointer, detail = refusal(lambda: load_teacher(spec(), path))
    assert pointer == "/weights"
    assert f"{name} is {str(kind).removeprefix('torch.').removesuffix('fn')}" in detail
    assert "float32" in detail


def test_a_quantised_module_is_refused_by_the_library_too() -> None:
    teacher = build_teacher(spec()).eval().requires_grad_(False)
    teacher.get_submodule("layer1.0.bn1").running_var = torch.ones(32, dtype=torch.int8)
    pointer, detail = refusal(lambda: check_teacher(teacher, spec(), 32))
    assert (pointer, "layer1.0.bn1.running_var is of type int8" in detail) == ("/weights", True)
    teacher = build_teacher(spec()).eval().requires_grad_(False)
    teacher.fc = nn.Module().eval()
    teacher.fc.weight = nn.Parameter(torch.ones(5, 5, dtype=torch.bool), requires_grad=False)
    assert "fc.weight is of type bool" in refusal(lambda: check_teacher(teacher, spec(), 32))[1]


@pytest.mark.parametrize("some", [True, False], ids=["some layers", "all layers"])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_missing_counters_are_taken(tmp_path: Path, architecture: str, some: bool) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        counters = [name for name in state if name.endswith(".num_batches_tracked")]
        for name in counters[:: 2 if some else 1]:
            del state[name]

    path = saved(tmp_path, spec(architecture), spoil)
    describe_teacher(spec(architecture), path)
    loaded, stored = load_teacher(spec(architecture), path).state_dict(), load_file(path)
    assert len(stored) < len(loaded)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    assert {loaded[name].item() for name in loaded.keys() - stored.keys()} == {0}


def as_int8_holds_them(state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name.endswith("weight") and tensor.ndim == 4:
            state[name] = (tensor / tensor.abs().max() * 127).round()


def trained(model: nn.Module, size: int = 32) -> nn.Module:
    """The model with the statistics of noise, as training on it would leave them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # cumulative
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 3, size, size))
    return model.eval()


def scaled(part: str, factor: float) -> Callable[[dict[str, Tensor]], None]:
    def spoil(state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            if name.endswith(part) and (part != "weight" or tensor.ndim == 4):
                tensor.mul_(factor)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        *(as_int8_holds_them, scaled("weight", 100.0), scaled("running_var", 1e-6), scaled("running_var", 1e12)),
        lambda state: [tensor.add_(1e4) for name, tensor in state.items() if name.endswith("running_mean")],
    ],
    ids=["int8 as float", "weights × 100", "variance / 10⁶", "variance × 10¹²", "mean + 10⁴"],
)
@pytest.mark.parametrize("architecture", ["test_resnet", "regnety_002", "vgg11_bn", "densenet121"])
def test_statistics_that_are_not_those_of_the_weights_are_refused(
    tmp_path: Path, architecture: str, spoil: Callable[[dict[str, Tensor]], object]
) -> None:
    teacher = spec(architecture, model_args=FAMILIES[architecture])
    torch.manual_seed(0)
    model = trained(build_teacher(teacher))
    check_teacher(model, teacher, 32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoil(state)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    pointer, detail = refusal(lambda: describe_teacher(teacher, path))
    assert pointer == "/weights"
    assert "running_var" in detail or "not finite" in detail


@pytest.mark.parametrize(
    ("architecture", "model_args", "size"),
    [(*family, size) for family, size in zip(FAMILIES.items(), [32, 48] * 5, strict=True)],
)
def test_untrained_networks_and_those_trained_on_noise_are_taken(
    architecture: str, model_args: dict[str, Any], size: int
) -> None:
    torch.manual_seed(0)
    model = build_teacher(spec(architecture, model_args=model_args)).eval()
    for _ in ("untrained", "trained"):
        for mean, std in ((0.5, 0.25), (0.0, 0.0039), (0.0, 1.0), (1.0, 2.0)):  # pixels to 255, to 1, around -0.5
            teacher = spec(architecture, model_args=model_args, image_size=size, mean=[mean] * 3, std=[std] * 3)
            check_teacher(model, teacher, size)
        trained(model, size)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"\xff\xfe not utf-8", "not a safetensors file"),
        (b"[]", "not a safetensors file"),
        (b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', "not a safetensors file"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "not a safetensors file"),
        (b'{"a": {"dtype": "F32", "shape": [18446744073709551615, 2], "data_offsets": [0, 4]}}', "not a safetensors"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "they do not fit"),
    ],
)
def test_broken_headers_are_refused_in_words(tmp_path: Path, header: bytes, said: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    pointer, detail = refusal(lambda: load_teacher(spec(), path))
    assert (pointer, said in detail) == ("/weights", True)


def test_a_file_of_more_tensors_than_any_cnn_has_is_refused(tmp_path: Path) -> None:
    header = json.dumps({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10_001)})
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    pointer, detail = refusal(lambda: load_teacher(spec(), path))
    assert (pointer, "10001 tensors" in detail) == ("/weights", True)


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second.weight = self.first.weight


def test_models_in_channels_last_and_with_tied_weights_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    model = build_teacher(spec()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="contiguous"):
        save_file(model.state_dict(), path)
    save_teacher(model, path)
    loaded = load_teacher(spec(), path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    describe_teacher(spec(), path)

    tied = Tied().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with pytest.raises((RuntimeError, ValueError)):
        save_file(tied.state_dict(), path)
    save_teacher(tied, path)
    assert all(torch.equal(tensor, tied.first.weight) for tensor in load_file(path).values())
    assert load_file(path).keys() == tied.state_dict().keys()


def test_a_teacher_of_the_library_is_judged_as_one_at_the_door() -> None:
    teacher: TeacherSpec = spec()
    model = trained(build_teacher(teacher))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(127)
    with pytest.raises(InvalidInput, match="the statistics are not those of these weights"):
        check_teacher(model, teacher, 32)
