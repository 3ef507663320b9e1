"""A stored model as the student that the adaptive term competes with."""

from dearkd.errors import InvalidInput, NotFound
from dearkd.specs import TeacherSpec
from dearkd.storage.catalog import models
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision import students
from dearkd_synth.student.student_view import StudentView


def load_student(storage: Storage, model_id: str, teacher: TeacherSpec, cache: FileCache) -> StudentView:
    """Load a stored model as a network that `DeepInversion` takes.

    Raises:
        InvalidInput: at `/adaptive_student`, if no installed package can load it.
        NotFound: if the model was deleted.
        CorruptData: if its files are not what its manifest says, or `config.json` does not describe its input.
    """
    try:
        model = models(storage).get(model_id)
    except NotFound:
        raise NotFound(f"the model {model_id} was deleted after this job was accepted") from None
    try:
        stored = students.load_student(storage, model, cache)
    except InvalidInput as error:
        raise InvalidInput.at("/adaptive_student", error.message) from None
    about = stored.config.pretrained_cfg
    return StudentView(stored.network, teacher, mean=about.mean, std=about.std, image_size=model.image_size).eval()
