"""Folders and files that only their owner may read: images, models, prompts of customers and keys lie in them."""

import os
from pathlib import Path


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter; what is there already keeps its mode, which somebody chose."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)


def keep_files_private() -> None:
    """Let this process, and those that it starts, make files and folders that only their owner may read."""
    os.umask(0o077)
