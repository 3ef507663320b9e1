"""`dearkd export`, `evaluate` and `predict`, plugged into the CLI (entry point group `dearkd.commands`)."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dearkd.choices import FolderOrder
from dearkd.cli.hub_push import Public, Push, require_pushable
from dearkd.cli.output import AsJson
from dearkd.identifiers import is_id

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Its id (mdl-…), a run's (run-…: its newest checkpoint), or a folder."),
]


class Format(StrEnum):
    safetensors = "safetensors"
    onnx = "onnx"
    pt2 = "pt2"
    hf = "hf"


def register_export(app: typer.Typer) -> None:
    @app.command()
    def export(
        model: ModelArgument,
        directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
        to: Annotated[
            Format,
            typer.Option(
                help="safetensors: weights and timm's config.json; onnx; pt2: an archive of torch.export; hf: a folder "
                "for the Hub, which transformers and timm load without dearkd."
            ),
        ],
        licence: Annotated[
            str | None,
            typer.Option("--license", help="For the model card (hf), such as apache-2.0.", show_default="unknown"),
        ] = None,
        preprocess: Annotated[
            bool,
            typer.Option(
                "--preprocess",
                help="onnx, pt2: the graph normalises; it takes uint8 images (batch, height, width, channels).",
            ),
        ] = False,
        opset: Annotated[
            int | None, typer.Option(metavar="N", help="onnx: version of its operators.", show_default="18")
        ] = None,
        epoch: Annotated[
            int | None,
            typer.Option(
                metavar="N", min=1, help="Of a run: the checkpoint of the end of epoch N.", show_default="the newest"
            ),
        ] = None,
        push: Push = None,
        public: Public = False,
        as_json: AsJson = False,
    ) -> None:
        """Write a trained student to a folder, for timm, ONNX Runtime or the Hugging Face Hub.

        Or for torch alone: --to pt2. Given a run, its newest checkpoint, also while the run goes on.
        """
        from dearkd_trainer.commands.export import ExportOptions, run_export

        if licence is not None and to is not Format.hf:
            raise typer.BadParameter(f"--license is for the model card of --to hf, there is none in {to}")
        if opset is not None and to is not Format.onnx:
            raise typer.BadParameter(f"--opset is for --to onnx, there are no such operators in {to}")
        if preprocess and to not in (Format.onnx, Format.pt2):
            raise typer.BadParameter(f"--preprocess is for --to onnx and --to pt2, there is no graph in {to}")
        if epoch is not None and not is_id(model, "run"):
            raise typer.BadParameter(f"--epoch is for the checkpoints of a run (run-…), and {model} is none")
        require_pushable(push, public=public, is_hub_form=to is Format.hf)
        options = ExportOptions(
            licence=licence, preprocess=preprocess, opset=opset, push=push, public=public, epoch=epoch
        )
        run_export(model, directory, to.value, options, as_json=as_json)


def register_evaluate(app: typer.Typer) -> None:
    @app.command()
    def evaluate(
        model: ModelArgument,
        dataset: Annotated[
            str,
            typer.Argument(metavar="DATASET", help="Its id (ds-…), or a folder of *.tar shards or of class folders."),
        ],
        out: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="A new or empty folder for evaluation.json and pictures."),
        ] = None,
        batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 256,
        split: Annotated[str | None, typer.Option(help="Of a folder that holds several: train, val, test, …")] = None,
        class_order: Annotated[
            FolderOrder | None,
            typer.Option(help="Of class folders that the model does not name: as torchvision, by number, as timm."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Measure a trained student on a dataset: accuracy, calibration, confusion, how far its attention reaches."""
        from dearkd_trainer.commands.evaluate import run_evaluate

        run_evaluate(
            model,
            dataset,
            out=out,
            batch_size=batch_size,
            as_json=as_json,
            split=split,
            class_order=class_order,
        )


def register_predict(app: typer.Typer) -> None:
    @app.command()
    def predict(
        model: ModelArgument,
        images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files.")],
        teacher: Annotated[
            str | None,
            typer.Option(metavar="ID", help="Ask it too (tch-…).", show_default="the model's, where it can be had"),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="A new or empty folder for predictions.json and pictures of attention."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Classify images with a trained student, beside its teacher."""
        from dearkd_trainer.commands.predict import run_predict

        run_predict(model, images, teacher=teacher, out=out, as_json=as_json)
