"""Pages of training, one module a page: home, runs, run, new run, compare, experiments."""
