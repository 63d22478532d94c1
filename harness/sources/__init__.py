"""Where models, texts and tools come from; one file a source."""
