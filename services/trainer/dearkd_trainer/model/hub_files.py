"""The files by which transformers and timm load a student where there is no dearkd.

The code in them is that of our own modules, joined at the time of the export: what is trained and what is exported
cannot drift apart.
"""

import ast
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save

import dearkd
from dearkd.data import image_files

MODEL_FILE = "modeling_dearkd.py"
IMAGES_FILE = "image_processing_dearkd.py"
PREPROCESSOR = "preprocessor_config.json"
OURS = ("dearkd", "dearkd_trainer")
"""The packages that are not there where the files go."""


class Source(NamedTuple):
    """Code that goes into a file."""

    name: str
    """Its full name, by which it is found in dearkd."""
    code: str
    around: str
    """The module that it stands in, which has its imports."""


HEAD = '''"""{about}

Written by `dearkd export --to hf` (dearkd {version}) out of dearkd's own modules, of which it is a copy:

{modules}

Licensed under the Apache License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0); dearkd's authors. It is
distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND. The weights beside it have the licence
that the model card names.
"""
'''

REGISTRATION = """
NATIVE_SIZES: dict[str, dict[str, int]] = {sizes}

default_cfgs = generate_default_cfgs({{name: default_cfg(size["img_size"]) for name, size in NATIVE_SIZES.items()}})


def _register(name: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> DearKDVisionTransformer:
        return build_network(DearKDVisionTransformer, name, pretrained, NATIVE_SIZES[name], kwargs)

    entrypoint.__name__ = name
    register_model(entrypoint)


for _name in NATIVE_SIZES:
    if not is_model(_name):  # dearkd itself, or another folder's file, may have been imported before
        _register(_name)
"""


def model_file(native_sizes: Mapping[str, Mapping[str, int]]) -> str:
    """`modeling_dearkd.py`: the network, its architectures for timm, and the model of transformers.

    Args:
        native_sizes: arguments of each architecture that importing the file registers with timm.
    """
    return joined(
        "DearKD-ViT: a vision transformer with multi-head convolutional attention in its early blocks.\n\n"
        "Importing this registers its architectures with timm; `AutoModelForImageClassification` imports it by itself.",
        [_module("mhca"), _module("vision_transformer"), _module("transformers_model")],
        imports=["from timm.models import generate_default_cfgs, is_model, register_model"],
        tail=REGISTRATION.format(sizes=json.dumps({name: dict(size) for name, size in native_sizes.items()}, indent=4)),
    )


def images_file() -> str:
    """`image_processing_dearkd.py`: the image processor of transformers."""
    around = inspect.getsource(image_files)
    conversion = Source(f"{image_files.__name__}.in_channels", inspect.getsource(image_files.in_channels), around)
    return joined("The image processor of DearKD's students.", [conversion, _module("transformers_images")])


def write_hub_files(
    folder: Path, code: str, weights: Path, config: Mapping[str, Any], class_names: Sequence[str]
) -> dict[str, Any]:
    """Write code, weights and the image processor's configuration; returns the `config.json` for both libraries.

    Args:
        folder: to write to.
        code: as `Student.hub_code` gives it.
        weights: safetensors, which are written again with the mark that some versions of transformers ask for.
        config: the student's `config.json`.
        class_names: in the order of the outputs.
    """
    (folder / MODEL_FILE).write_text(code, encoding="utf-8")
    (folder / IMAGES_FILE).write_text(images_file(), encoding="utf-8")
    (folder / weights.name).write_bytes(save(load_file(weights), metadata={"format": "pt"}))
    processor = {"AutoImageProcessor": f"{Path(IMAGES_FILE).stem}.DearKDImageProcessor"}
    preprocessor = {
        "image_processor_type": "DearKDImageProcessor",
        "auto_map": processor,
        "pretrained_cfg": config["pretrained_cfg"],
    }
    (folder / PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    module, named = Path(MODEL_FILE).stem, dict(enumerate(class_names))
    return {
        **config,
        "model_type": "dearkd",
        "architectures": ["DearKDForImageClassification"],
        # Of a local folder, transformers looks for the image processor here.
        "auto_map": {
            "AutoConfig": f"{module}.DearKDConfig",
            "AutoModelForImageClassification": f"{module}.DearKDForImageClassification",
            **processor,
        },
        "num_labels": len(named),
        "id2label": named,
        "label2id": {name: index for index, name in named.items()},
        "problem_type": "single_label_classification",
    }


def joined(about: str, parts: Iterable[Source], *, imports: Sequence[str] = (), tail: str = "") -> str:
    """One Python file of several, without their imports of each other.

    Args:
        about: the docstring's beginning.
        parts: each after what it needs.
        imports: further lines of import.
        tail: code that comes last.
    """
    needed, bodies, names = [ast.parse(line).body[0] for line in imports], [], []
    for part in parts:
        names.append(f"- {part.name}")
        needed += ast.parse(part.around).body
        bodies.append(f"# {part.name}\n\n{_body(part.code)}")
    code = "\n\n\n".join(bodies) + "\n" + tail
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    head = HEAD.format(about=about, version=dearkd.__version__, modules="\n".join(names))
    return head + "\n" + "\n".join(_import_lines(needed, used)) + "\n\n" + code


def _module(name: str) -> Source:
    """A module beside this one, as text: importing some of them takes transformers."""
    code = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return Source(f"{__package__}.{name}", code, code)


def _body(source: str) -> str:
    """Code without the module's docstring, the imports at its top level and what is said about these."""
    lines: list[str | None] = [None if line == "# isort: split" else line for line in source.splitlines()]
    for number, node in enumerate(ast.parse(source).body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[line] = None
    return "\n".join(line for line in lines if line is not None).strip()


def _import_lines(nodes: Iterable[ast.stmt], used: set[str]) -> list[str]:
    """Lines that import what is used, of all but our own packages."""
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            plain |= {f"import {ast.unparse(alias)}" for alias in node.names if (alias.asname or alias.name) in used}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] not in OURS:
            found = {ast.unparse(alias) for alias in node.names if (alias.asname or alias.name) in used}
            names.setdefault(node.module, set()).update(found)
    return sorted(plain) + [
        f"from {module} import {', '.join(sorted(found))}" for module, found in sorted(names.items()) if found
    ]
