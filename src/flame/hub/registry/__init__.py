"""Master images: the environments that programs run in."""
