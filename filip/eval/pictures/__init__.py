"""Pictures of what models see: one module per kind, which ``filip eval picture kind=…`` draws."""
