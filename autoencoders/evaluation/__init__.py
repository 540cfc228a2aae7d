"""How good a model is: bounds, metrics.py, and diagnosis.py, which puts them into words."""
