"""The model, as the paper has it: tower, queries, hybrid decoder, generation, checkpoints."""
