from tests.support.teachers import _small_teacher, family_teacher

__all__ = ["_small_teacher", "family_teacher"]
