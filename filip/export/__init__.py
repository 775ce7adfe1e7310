"""Export trained models in the formats that other tools read: ``filip export to=hf model=m.safetensors out=folder``."""
