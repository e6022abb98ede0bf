"""The registry as Hugging Face clients see it: a thin map onto the registry's services (docs/adr/0009)."""
