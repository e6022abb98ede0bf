"""The inference server: it answers for deployments on a port of its own, with the models in memory."""
