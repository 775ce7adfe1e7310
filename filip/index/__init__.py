"""Search a folder of images by text: the tokens of every image in an embedded store, ranked by late interaction."""
