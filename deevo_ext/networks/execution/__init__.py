"""How networks are run: images on their way in, weights from rows, threads, sinks."""
