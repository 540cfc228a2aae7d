"""Pictures of what a model has learnt, a film of its training, and the report."""
