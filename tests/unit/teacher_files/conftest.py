from tests.support.teacher_files import add

__all__ = ["add"]
