"""Archives of images: listed and read by our own loop, checked file by file, handed over as packs and a table."""
