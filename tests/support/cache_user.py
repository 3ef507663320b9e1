"""A process that uses a shared cache at random, and fails if a file it uses is gone or another's."""

import random
import sys
from pathlib import Path

from dearkd.settings import Settings
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from tests.services.core.test_file_cache import SIZE, content, fetch


def use(root: Path, storage: Storage, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(150):
        with FileCache(root, 3 * SIZE) as cache:
            used = [(number, fetch(cache, storage, number)) for number in chance.sample(range(12), 2)]
            for number, path in used:
                assert path.read_bytes() == content(number)


if __name__ == "__main__":
    use(Path(sys.argv[1]), Storage.open(Settings(storage_url=sys.argv[2])), int(sys.argv[3]))
