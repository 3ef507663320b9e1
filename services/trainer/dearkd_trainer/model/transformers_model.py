"""The network as a model of transformers: read by `hub_files` as text, for the model file of an export.

Nothing in dearkd imports it, and dearkd does not need transformers.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch

from dearkd_trainer.model.vision_transformer import DearKDVisionTransformer, build_network

try:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import ImageClassifierOutput
except ImportError:  # whoever wants the network for timm alone needs none of them
    PretrainedConfig = PreTrainedModel = ImageClassifierOutput = object


class DearKDConfig(PretrainedConfig):
    """`config.json` as transformers reads it; timm reads the same file.

    Args:
        architecture: its name in timm's registry.
        model_args: arguments of the network, without the number of classes, which is `num_labels`.
        pretrained_cfg: size, mean and std of the input, as timm names them.
        kwargs: transformers' own.
    """

    model_type = "dearkd"

    def __init__(
        self,
        architecture: str = "",
        model_args: Mapping[str, Any] | None = None,
        pretrained_cfg: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.architecture = architecture
        self.model_args = {name: value for name, value in (model_args or {}).items() if name != "num_classes"}
        self.pretrained_cfg = dict(pretrained_cfg or {})
        for name in ("num_classes", "label_names"):  # timm's words for what `id2label` says
            kwargs.pop(name, None)
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON, in which timm's words agree with transformers' if the classes were changed."""
        output: dict[str, Any] = super().to_dict()
        output["num_classes"] = self.num_labels
        output["label_names"] = [self.id2label[index] for index in range(self.num_labels)]
        output["pretrained_cfg"] = {**copy.deepcopy(self.pretrained_cfg), "num_classes": self.num_labels}
        return output


class DearKDForImageClassification(PreTrainedModel):
    """Turns `pixel_values` (B, in_chans, image_size, image_size), normalised, into logits (B, num_labels).

    `network` is the timm model, under whose own names the weights are stored.
    """

    config_class = DearKDConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, config: DearKDConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        arguments = {**config.model_args, "num_classes": config.num_labels, "pretrained_cfg": config.pretrained_cfg}
        # Not by timm's registry: another version of this file may have registered the name before.
        self.network = build_network(DearKDVisionTransformer, config.architecture, False, {}, arguments)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> Any:
        """An `ImageClassifierOutput`, or a tuple of loss and logits.

        Args:
            pixel_values: as the image processor gives them.
            labels: (B,), of which a loss is computed.
            return_dict: False for the tuple.
        """
        logits = self.network(pixel_values)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, but under the network's own names, by which timm loads the weights too."""
        kwargs.setdefault("state_dict", self.network.state_dict())
        super().save_pretrained(save_directory, *args, **kwargs)
