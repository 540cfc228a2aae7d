"""Further operations under the same contract. They are not needed to understand the engine or the models; each file has
one family."""
