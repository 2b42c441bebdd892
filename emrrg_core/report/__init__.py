"""The report: the draft and its edits, and sessions on disk."""
