"""`dearkd demo`: the main job on real digits, through the HTTP API of its own `dearkd up`, as any client does it."""

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Plug the command into the CLI (entry point group `dearkd.commands`)."""

    @app.command()
    def demo(
        data: Path = typer.Option(Path("dearkd-data"), help="Folder for everything that the demo makes."),
        seed: int = typer.Option(0, min=0, help="Changes everything random; the held-out digits stay the same."),
        compare: bool = typer.Option(
            False, help="Also train on real digits, on plain DeepInversion images, and with each part turned off."
        ),
        pictures: bool = typer.Option(True, help="Show the images while they are made, where the terminal can."),
        json: bool = typer.Option(False, "--json", help="Print the report as JSON, and nothing else."),
    ) -> None:
        """Make a ViT out of a CNN's weights alone, on real handwritten digits, and measure it on held-out ones."""
        from dearkd_trainer.demo.steps import run_demo

        run_demo(data, seed=seed, compare=compare, as_json=json, pictures=pictures)
