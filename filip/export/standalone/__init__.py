"""Code that travels with an exported model: it imports torch, timm and the library it is written for, never filip."""
