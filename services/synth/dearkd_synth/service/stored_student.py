"""A stored model as the student that the adaptive term competes with.

Networks of students are the trainer's. It plugs in how one is loaded under the entry point group `dearkd.students`, a
function of `config.json` as an object and of the path of the weights, so that nothing here imports the trainer.
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
    """A stored model as `DeepInversion` takes it.

    Raises:
        InvalidInput: at `/adaptive_student`, if nothing that is installed can load students.
        NotFound: if the model was deleted.
        CorruptData: if its files are not what its manifest says, or `config.json` does not say what its input is.
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
