"""Reports as text: sections, the labeler, contradictions, comparison, scores."""
