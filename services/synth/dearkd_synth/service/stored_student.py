"""A stored model as the student that the adaptive term competes with.

Students' networks belong to the trainer, which nothing here imports: it provides a loader under the entry point group
`dearkd.students`, a function of the object in `config.json` and of the path of the weights.
"""

import json
from importlib.metadata import entry_points

from dearkd.errors import CorruptData, InvalidInput, NotFound
from dearkd.specs import TeacherSpec
from dearkd.storage.catalog import fetch_model_file, models
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd_synth.student.student_view import StudentView

GROUP = "dearkd.students"


def load_student(storage: Storage, model_id: str, teacher: TeacherSpec, cache: FileCache) -> StudentView:
    """Load a stored model as a network that `DeepInversion` takes.

    Raises:
        InvalidInput: at `/adaptive_student`, if no installed package can load students.
        NotFound: if the model was deleted.
        CorruptData: if its files are not what its manifest says, or `config.json` lacks the input's mean or std.
    """
    plugins = list(entry_points(group=GROUP))
    if not plugins:
        raise InvalidInput.at(
            "/adaptive_student",
            f"nothing here can load a model: install what provides {GROUP}, such as dearkd[trainer]",
        )
    try:
        model = models(storage).get(model_id)
    except NotFound:
        raise NotFound(f"the model {model_id} was deleted after this job was accepted") from None
    config = json.loads(fetch_model_file(storage, model, "config.json", cache).read_text(encoding="utf-8"))
    weights = fetch_model_file(storage, model, "model.safetensors", cache)
    try:
        mean, std = config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]
    except KeyError as missing:
        raise CorruptData(f"config.json of {model_id} does not say {missing}") from None
    return StudentView(
        plugins[0].load()(config, weights), teacher, mean=mean, std=std, image_size=model.image_size
    ).eval()
