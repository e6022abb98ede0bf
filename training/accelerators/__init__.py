"""The GPUs of the workers' machines: which there are, and which run holds which."""
