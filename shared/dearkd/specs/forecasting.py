"""Forecasts along a synthesis job: after which rounds one is made, and how long its student may learn.

After 2, 4, 8, … rounds a small student learns from the first half of the images and is judged on the other half. A
forward pass counts as a third of a forward and backward pass, and so does an image in the student's training: it takes
a quarter beside a small teacher, such as a resnet10t, and less beside larger ones [R].
"""

from collections.abc import Mapping

SHARE = 0.05
"""The most of a job's teacher passes that its forecasts may take [R]."""
LEAST_EPOCHS, MOST_EPOCHS = 10, 30
"""Epochs of the student: fewer teach it too little to say anything, more are not needed [R]."""
MOST_IMAGES = 10_000
"""Images that the student learns from at the most, since all are in memory; so many it is judged on likewise."""
LEAST_POINTS = 3
"""Judgements on which a forecast must rest: two always lie on a line [R]."""


def forecast_epochs(iterations: int) -> int:
    """The epochs of a forecast's student, by the iterations of an image; below `LEAST_EPOCHS` there is no forecast.

    Since the last forecast half of all images were made, as many as the student learns from. For each of these two
    images are labelled by the teacher, and on one the student is judged: three forward passes.
    """
    return min(MOST_EPOCHS, int(3 * SHARE * iterations) - 3)


def forecast_rounds(rounds: int, round_samples: int, iterations: int) -> list[int]:
    """The numbers of rounds after which a forecast is made: powers of two; none where too few are possible.

    Args:
        rounds: of the job.
        round_samples: samples of a round.
        iterations: of an image.
    """
    numbers = [2**power for power in range(1, rounds.bit_length()) if 2 ** (power - 1) * round_samples <= MOST_IMAGES]
    return numbers if forecast_epochs(iterations) >= LEAST_EPOCHS and len(numbers) >= LEAST_POINTS else []


def no_forecast(rounds: int, round_samples: int, iterations: int) -> str | None:
    """Say why a job has no forecasts; None where it has some. Takes what `forecast_rounds` takes."""
    if forecast_rounds(rounds, round_samples, iterations):
        return None
    if forecast_epochs(iterations) < LEAST_EPOCHS:
        return (
            f"with {iterations} iterations an image {SHARE:.0%} of the teacher passes do not teach a student enough to "
            "judge by"
        )
    if rounds < 2**LEAST_POINTS:
        return f"it takes {2**LEAST_POINTS} rounds, and the images are made in {rounds}"
    return f"a round has {round_samples:,} images, too many for a student that learns from {MOST_IMAGES:,} at the most"


def groups_with_forecasts(shards: int, ends: Mapping[int, int]) -> list[list[str]]:
    """Units in groups: the shards, and behind those of 2, 4, … rounds the unit of a forecast.

    Args:
        shards: number of all shards.
        ends: number of rounds → shards of so many rounds, where a forecast follows.
    """
    groups, start = [], 0
    for number, end in ends.items():
        groups += [[str(shard) for shard in range(start, end)], [f"forecast-{number}"]]
        start = end
    return groups + [[str(shard) for shard in range(start, shards)]] * (start < shards)
