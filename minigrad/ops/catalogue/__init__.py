"""Further operations under the same contract; the models need none of them. Each file has one family."""
