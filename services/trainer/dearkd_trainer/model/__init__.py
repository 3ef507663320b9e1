"""The student: architecture, MHCA, initial weights, and its exports."""
