"""Captions as token ids: CLIP's tokenizer, those of `tokenizer.json`, and the words of a text."""
