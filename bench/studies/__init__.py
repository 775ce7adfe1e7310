"""Studies that were made once, to choose a default or to write a table of docs/: each is run again by its command."""
