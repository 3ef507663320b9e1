"""The facts of a run that its trainer cannot know: where its data, its teacher and its model come from."""

from pydantic import BaseModel, ConfigDict, Field


class RunFacts(BaseModel):
    """The surroundings of a run, as its card and its report tell of them. All of it is text for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    """The name of the model; None: the spec's."""
    model: str | None = None
    """The id by which the API will know the model; None for one that stays a folder."""
    run: str | None = None
    """The run's id, where it has one."""
    dataset: str | None = None
    """The id of the dataset, where the spec names the job that makes it; None: as the spec names it."""
    synthetic: bool | None = None
    """True if the training images were made from the teacher alone; None if that is not known."""
    data: dict[str, str] = Field(default_factory=dict)
    """Further lines about the training images, by what they tell."""
    quality: dict[str, float | None] = Field(default_factory=dict)
    """Figures of synthetic images, by the teacher's own judgement (`dearkd_synth.quality`)."""
    teacher: dict[str, str] = Field(default_factory=dict)
    """Further lines about the teacher: `id`, `weights`, …"""
