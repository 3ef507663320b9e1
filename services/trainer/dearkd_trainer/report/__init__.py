"""The report of a run: one page of HTML with all that is known of its model."""
