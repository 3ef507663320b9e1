"""The completion of requests to specs: looks up what they refer to, and reports every broken rule at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dearkd.data.manifests import DatasetManifest
from dearkd.errors import Conflict, InvalidInput, NewerSchema, NotFound, Unreadable
from dearkd.identifiers import is_id, sibling
from dearkd.jobs.model import Job, dataset_of
from dearkd.specs import (
    DatasetFacts,
    Limits,
    StudentSpec,
    SynthesisRequest,
    SynthesisSpec,
    TrainingRequest,
    TrainingSpec,
)
from dearkd.specs.class_order import other_order, share_names, uncertain_order
from dearkd.storage.catalog import Catalog, ManifestT, Model, Teacher
from dearkd_api.backend import Backend
from dearkd_api.bodies import ErrorCollector, Posted
from dearkd_api.webhook_targets import require_allowed


def complete_synthesis(
    posted: Posted[SynthesisRequest], backend: Backend, viewer: str | None
) -> tuple[SynthesisSpec, Teacher]:
    """The complete spec of a synthesis job, and its teacher. What `viewer` may not see counts as missing.

    Raises:
        InvalidInput: with a pointer for everything that is wrong with it.
    """
    request, errors = posted.request, ErrorCollector(posted.refusal)
    spec, teacher = None, None
    with errors:
        teacher = find(request.teacher, "/teacher", backend.teachers, viewer)
    with errors:
        if posted.refusal is None:
            require_allowed(request.webhook, backend.settings)
    with errors:
        student = find(request.adaptive_student, "/adaptive_student", backend.models, viewer)
        if student is not None and teacher is not None:
            _require_same_labels(student, teacher)
    with errors:
        if teacher is not None and posted.refusal is None:
            settings = backend.settings
            limits = Limits(
                max_images=settings.max_images,
                max_image_size=settings.max_image_size,
                max_iterations=settings.max_iterations,
                max_shards=settings.max_shards,
            )
            spec = request.complete(teacher.spec, limits, refused_input_sizes=teacher.refused_input_sizes)
            _require_a_weight_for_each_layer(spec, teacher)
    errors.raise_if_any()
    assert spec is not None
    assert teacher is not None
    return spec, teacher


@dataclass(frozen=True, slots=True)
class TrainingSubmission:
    """A checked training run. `waits_for` is the synthesis job that makes its dataset, if it names one."""

    spec: TrainingSpec
    facts: DatasetFacts
    waits_for: str | None


def complete_training(
    posted: Posted[TrainingRequest], backend: Backend, caller: str | None, viewer: str | None
) -> TrainingSubmission:
    """The complete spec of a training run.

    Jobs of other owners than `caller` count as missing, and what `viewer` may not see. A dataset's own teacher serves
    whoever may see the dataset.

    Raises:
        InvalidInput: with a pointer for everything that is wrong with it.
        Conflict: `dataset_failed`, if its dataset's job failed or was canceled.
    """
    request, errors = posted.request, ErrorCollector(posted.refusal)
    spec, facts, teacher, initial, waits_for = None, None, None, None, None
    with errors:
        facts, waits_for = _dataset(request.dataset, backend, caller, viewer)
    with errors:
        if posted.refusal is None:
            require_allowed(request.webhook, backend.settings)
    with errors:
        teacher = find(request.teacher, "/teacher", backend.teachers, viewer)
        if facts is not None and teacher is not None:
            _require_same_order("/teacher", teacher.id, teacher.class_names, facts.class_names)
            if teacher.id != facts.teacher:
                _require_certain_order("/dataset", facts, teacher.id, teacher.class_names)
            if not facts.synthetic:
                # Real images are converted to what the teacher takes; so are those of the evaluation.
                facts = replace(facts, in_chans=teacher.in_chans)
        elif facts is not None and facts.teacher is not None:
            try:
                teacher = _readable(facts.teacher, "/teacher", backend.teachers)
            except NotFound:  # deleted since: the run is as one on a dataset without a teacher
                facts = replace(facts, teacher=None)
    with errors:
        evaluation = find(request.eval_dataset, "/eval_dataset", backend.datasets, viewer)
        if evaluation is not None and facts is not None:
            _require_same_task(evaluation, facts)
            if teacher is not None:
                _require_same_order(
                    "/eval_dataset",
                    evaluation.id,
                    evaluation.facts.class_names,
                    teacher.class_names,
                    whose=teacher.id,
                )
            if not share_names(evaluation.facts.class_names, facts.class_names):
                whose, known = (teacher.id, teacher.class_names) if teacher else ("the dataset", facts.class_names)
                _require_certain_order("/eval_dataset", evaluation.facts, whose, known)
    with errors:
        model = find(request.init, "/init", backend.models, viewer)
        if model is not None:
            if facts is not None and model.in_chans != facts.in_chans:
                raise InvalidInput.at("/init", f"it takes {model.in_chans} channels, the dataset has {facts.in_chans}")
            initial = StudentSpec.check(model.spec.get("student"), prefix="/init")
    with errors:
        if facts is not None and posted.refusal is None and (teacher is not None or not errors):
            spec = request.complete(
                facts, teacher.spec if teacher else None, initial, on_ray=backend.settings.ray_address is not None
            )
    errors.raise_if_any()
    assert spec is not None
    assert facts is not None
    return TrainingSubmission(spec, facts, waits_for)


def _dataset(
    reference: str | None, backend: Backend, caller: str | None, viewer: str | None
) -> tuple[DatasetFacts | None, str | None]:
    """The facts of a dataset, and the synthesis job to wait for if the reference is a job's id, else None."""
    if reference is None:
        return None, None
    if not is_id(reference, "syn"):
        try:
            found = find(reference, "/dataset", backend.datasets, viewer)
            return found.facts if found else None, None
        except InvalidInput as error:
            if error.code in (Unreadable.default_code, NewerSchema.default_code):
                raise  # it is finished, but damaged
            maker = sibling(reference, "syn") if is_id(reference, "ds") else None
            if maker is None or not _job_exists(maker, backend, caller):
                raise
            raise InvalidInput.at(
                "/dataset", f"{reference} is not finished: name the job that makes it, {maker}, and the run waits"
            ) from None
    try:
        job = backend.store.get(reference, owner=caller)
    except NotFound:
        # Redis was lost since; a dataset that was finished is there all the same.
        try:
            backend.store.require_visible(reference, caller)
            return _readable(dataset_of(reference), "/dataset", backend.datasets).facts, None
        except NotFound:
            raise InvalidInput.at("/dataset", f"there is no synthesis job {reference!r}") from None
    require_dataset_to_come(job)
    if job.status == "succeeded":
        try:
            return _readable(dataset_of(reference), "/dataset", backend.datasets).facts, reference
        except NotFound:
            raise InvalidInput.at("/dataset", f"the dataset of {reference} was deleted: make it again") from None
    return _facts_to_come(job, backend), reference


def require_dataset_to_come(job: Job) -> None:
    """Raises `Conflict` (`dataset_failed`) if a synthesis job will make no dataset."""
    if job.status in ("failed", "canceled"):
        raise Conflict(
            f"the synthesis job {job.id}, which makes this dataset, is {job.status}: retry it first, or name another "
            "dataset",
            code="dataset_failed",
        )


def _facts_to_come(job: Job, backend: Backend) -> DatasetFacts:
    spec = job.synthesis_spec
    teacher = _readable(spec.teacher, "/dataset", backend.teachers)
    # Of a job that may end early only the first round is certain: batches must fit it, epochs are those of the plan.
    certain = spec.least_samples // len(spec.classes)
    return DatasetFacts(
        num_samples=spec.num_samples,
        num_classes=teacher.num_classes,
        image_size=teacher.image_size,
        in_chans=teacher.in_chans,
        synthetic=True,
        mirrored=spec.flip > 0 or None,
        teacher=teacher.id,
        stored_logits=spec.store_logits,
        class_samples=(certain,) * len(spec.classes),
        class_names=tuple(teacher.class_names) if teacher.class_names else None,
    )


def _require_same_task(evaluation: DatasetManifest, facts: DatasetFacts) -> None:
    if evaluation.num_classes != facts.num_classes:
        raise InvalidInput.at(
            "/eval_dataset",
            f"{evaluation.id} has {evaluation.num_classes} classes, the dataset has {facts.num_classes}; if only some "
            "of them occur in it, register it again with a class_names.json that names all",
        )
    _require_same_order("/eval_dataset", evaluation.id, evaluation.facts.class_names, facts.class_names)


def _require_same_order(
    pointer: str, name: str, theirs: Sequence[str] | None, ours: Sequence[str] | None, *, whose: str = "the dataset"
) -> None:
    difference = other_order(theirs, ours)
    if difference is not None:
        raise InvalidInput.at(
            pointer,
            f"{name} has the classes of {whose} in another order ({difference}): make its labels again in that order "
            "(class folders take it from a class_names.json beside them); a teacher without class_names counts its "
            "outputs from 0",
        )


def _require_certain_order(pointer: str, facts: DatasetFacts, whose: str, known: Sequence[str] | None) -> None:
    """Raises `InvalidInput` if neither names nor anybody has said whether these labels are those of a teacher.

    Args:
        pointer: to the dataset.
        facts: of it.
        whose: the teacher or dataset whose labels these must be.
        known: class names of that one, in order; if it shares a name with this dataset, the names have been compared.
    """
    if facts.class_order is not None or facts.class_names is None or share_names(facts.class_names, known):
        return
    if (orders := uncertain_order(facts.class_names)) is not None:
        lacks = "has no class names" if known is None else "names none of these classes"
        raise InvalidInput.at(
            pointer,
            f"{whose} {lacks}, and the order of this dataset's classes is not certain: {orders}. Add the dataset again "
            "and say which order its teacher was trained with (`dearkd dataset add --class-order "
            "name|natural|number`, or `class_order` in POST /v1/datasets), or upload the teacher with its class_names",
        )


def _require_a_weight_for_each_layer(spec: SynthesisSpec, teacher: Teacher) -> None:
    weights = spec.batch_norm_layer_weights
    if weights is not None and len(weights) != teacher.batch_norm_layers:
        raise InvalidInput.at(
            "/batch_norm_layer_weights",
            f"{len(weights)} weights, but the teacher has {teacher.batch_norm_layers} BatchNorm layers: give one for "
            "each",
        )


def _require_same_labels(student: Model, teacher: Teacher) -> None:
    """The adaptive term compares their answers to the same images, class by class."""
    for name, count in (("classes", "num_classes"), ("input channels", "in_chans")):
        theirs, ours = getattr(student, count), getattr(teacher, count)
        if theirs != ours:
            raise InvalidInput.at(
                "/adaptive_student",
                f"{student.id} has {theirs} {name}, the teacher {ours}: name a model that was trained on images of "
                "this teacher",
            )
    _require_same_order("/adaptive_student", student.id, student.class_names, teacher.class_names, whose="the teacher")


def find(reference: str | None, pointer: str, catalog: Catalog[ManifestT], viewer: str | None) -> ManifestT | None:
    """The manifest that a field of a request names; None where it names none.

    An unknown name breaks a rule (422), and so does that of what `viewer` may not see.
    """
    if reference is None:
        return None
    try:
        return _readable(reference, pointer, catalog, viewer)
    except NotFound:
        raise InvalidInput.at(
            pointer, f"there is no {reference!r:.80} in {catalog.root}; GET /v1/{catalog.root} lists them"
        ) from None


def _readable(identifier: str, pointer: str, catalog: Catalog[ManifestT], viewer: str | None = None) -> ManifestT:
    """The manifest of an id. Raises `NotFound`, and `InvalidInput` at `pointer` if the manifest is damaged."""
    try:
        manifest = catalog.get(identifier, viewer=viewer)
        if isinstance(manifest, Teacher):
            manifest.spec  # noqa: B018  # what a manifest says need not be what a teacher may be
    except Unreadable as error:
        raise InvalidInput.at(pointer, error.message, code=error.code) from None
    return manifest


def _job_exists(identifier: str, backend: Backend, caller: str | None) -> bool:
    try:
        backend.store.get(identifier, owner=caller)
    except NotFound:
        return False
    return True
