"""Pages of the registry: the list of models, one model, one version, trying a version."""
