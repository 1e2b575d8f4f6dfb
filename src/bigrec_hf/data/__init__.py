"""The file formats of the suite, one per module: catalog, examples, generations, rankings, item scores."""
