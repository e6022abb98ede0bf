"""Experiments on deployments: A/B tests, A/A tests, bandits and canaries, and what they read from the prediction log."""
