"""Pages of datasets: the list, one dataset, its rows as a file, and what can be done with them."""
