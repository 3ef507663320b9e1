"""The evaluation of a student: accuracy, attention, pictures, and the report of it all."""
